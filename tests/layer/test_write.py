"""The layers that are written: the same bytes each time, and read alike by other programs."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from layerfs.contract import LayerRoot, Mount, Whiteouts
from layerfs.errors import Corrupt, FailedPrecondition, InvalidArgument, NoSpace, Unsupported
from layerfs.events import Progress
from layerfs.kernel.mounting import mounted
from layerfs.layer.apply import apply
from layerfs.layer.changes import Change, ChangeKind, changes, upper_changes
from layerfs.layer.compression import Compression, compressor, decompress
from layerfs.layer.digest import Digest, chain_id, chain_ids
from layerfs.layer.write import Written, write_layer
from layerfs.tree import copy_tree
from tests.layer import trees
from tests.layer.trees import Node

SPEC = {
    b"d": Node("dir", mode=0o750),
    b"d/f": Node("file", content=b"content"),
    b"d/h": Node("hard", target=b"d/f"),
    b"d-e": Node("file"),
    b"gone": Node("dir", mode=0o755),
    b"gone/x": Node("file"),
    b"l": Node("link", target=b"d"),
}


def written(before: Path | None, after: Path, compression: Compression = Compression.NONE) -> tuple[bytes, Written]:
    out = io.BytesIO()
    result = write_layer(changes(before, after), LayerRoot(after, Whiteouts.REMOVE), out, compression=compression)
    return out.getvalue(), result


@pytest.mark.root
@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("size", [10, 3_000_000])
def test_bytes_and_digests(compression: Compression, size: int, fresh_dir: Path) -> None:
    for name in ("one", "other"):
        trees.make(fresh_dir / name, SPEC | {b"big": Node("file", content=b"0123456789" * (size // 10))})
    data, result = written(None, fresh_dir / "one", compression)
    assert written(None, fresh_dir / "other", compression) == (data, result)
    plain = _uncompressed(data, compression)
    assert result.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert result.diff_id == f"sha256:{hashlib.sha256(plain).hexdigest()}"
    assert (result.size, result.diff_size, result.entries) == (len(data), len(plain), 9)
    (fresh_dir / "back").mkdir()
    applied = apply(io.BytesIO(data), LayerRoot(fresh_dir / "back", Whiteouts.REMOVE))
    assert (applied.diff_id, applied.digest, applied.size) == (result.diff_id, result.digest, result.diff_size)
    assert not trees.difference(trees.describe(fresh_dir / "back"), trees.describe(fresh_dir / "one"))


def _uncompressed(data: bytes, compression: Compression) -> bytes:
    match compression:
        case Compression.GZIP:
            return gzip.decompress(data)
        case Compression.ZSTD:
            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
        case Compression.NONE:
            return data


def members_of(layer: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        return archive.getmembers()


@pytest.mark.root
def test_order_and_form(fresh_dir: Path) -> None:
    before = trees.make(fresh_dir / "a", SPEC)
    copy_tree(before, fresh_dir / "b")
    after = fresh_dir / "b"
    subprocess.run(["rm", "-r", after / "gone", after / "d/h"], check=True)
    (after / "d/new").write_text("n")
    (after / "d/a").mkdir()
    assert [(change.kind, change.path, change.size) for change in changes(before, after)] == [
        (ChangeKind.MODIFIED, b".", 0),
        (ChangeKind.MODIFIED, b"d", 0),
        (ChangeKind.ADDED, b"d/a", 0),
        (ChangeKind.DELETED, b"d/h", 7),
        (ChangeKind.ADDED, b"d/new", 1),
        (ChangeKind.DELETED, b"gone", 0),
    ]
    data, _ = written(before, after)
    members = members_of(data)
    assert [member.name for member in members] == [".", ".wh.gone", "d", "d/.wh.h", "d/a", "d/new"]
    assert {(member.uname, member.gname) for member in members} == {("", "")}
    assert {(member.mtime, member.size, member.mode) for member in members if ".wh." in member.name} == {(0, 0, 0)}


@pytest.mark.root
def test_a_changed_link_brings_its_unchanged_names(fresh_dir: Path) -> None:
    before = trees.make(fresh_dir / "a", SPEC)
    copy_tree(before, fresh_dir / "b")
    after = fresh_dir / "b"
    os.link(after / "d/f", after / "z")
    listed = [change for change in changes(before, after) if change.path != b"."]
    assert listed == [Change(ChangeKind.ADDED, b"z", 7)]
    out = io.BytesIO()
    assert write_layer(listed, LayerRoot(after, Whiteouts.REMOVE), out, compression=Compression.NONE).entries == 4
    members = members_of(out.getvalue())
    assert [(member.name, member.linkname) for member in members] == [("z", ""), ("d", ""), ("d/f", "z"), ("d/h", "z")]


@pytest.mark.root
def test_sockets_are_left_out(fresh_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh_dir)
    trees.make(Path("a"), {b"s": Node("socket"), b"f": Node("file"), b"t": Node("file")})
    trees.make(Path("b"), {b"s": Node("socket"), b"f": Node("socket"), b"u": Node("socket"), b"t": Node("file")})
    assert list(changes(Path("a"), Path("b"))) == [Change(ChangeKind.DELETED, b"f")]
    data, _ = written(None, Path("b"))
    assert [member.name for member in members_of(data)] == [".", "t"]


@pytest.mark.root
def test_content_is_compared_on_request(fresh_dir: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"two")):
        trees.make(fresh_dir / name, {b"f": Node("file", content=content)})
    assert list(changes(fresh_dir / "a", fresh_dir / "b")) == []
    assert list(changes(fresh_dir / "a", fresh_dir / "b", verify_content=True)) == [
        Change(ChangeKind.MODIFIED, b"f", 3)
    ]


@pytest.mark.root
def test_names_that_would_delete_are_refused(fresh_dir: Path) -> None:
    tree = trees.make(fresh_dir / "a", {b".wh.f": Node("file")})
    with pytest.raises(Unsupported, match="mean deletions"):
        written(None, tree)


@pytest.mark.root
def test_a_tree_that_changes_meanwhile(fresh_dir: Path) -> None:
    tree = trees.make(fresh_dir / "a", SPEC)
    listed = list(changes(None, tree))
    (tree / "d-e").unlink()
    with pytest.raises(FailedPrecondition, match="changed while"):
        write_layer(listed, LayerRoot(tree, Whiteouts.REMOVE), io.BytesIO())


class _Full(io.BytesIO):
    def write(self, _: object, /) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.root
def test_a_full_disk_is_said_and_leaves_no_thread(fresh_dir: Path) -> None:
    tree = trees.make(fresh_dir / "a", {b"f": Node("file", content=os.urandom(20 << 20))})
    count = threading.active_count()
    for compression in Compression:
        with pytest.raises(NoSpace):
            write_layer(changes(None, tree), LayerRoot(tree, Whiteouts.REMOVE), _Full(), compression=compression)
    assert threading.active_count() == count


@pytest.mark.root
def test_progress(fresh_dir: Path) -> None:
    tree = trees.make(fresh_dir / "a", SPEC)
    events: list[Progress] = []
    out = io.BytesIO()
    write_layer(changes(None, tree), LayerRoot(tree, Whiteouts.REMOVE), out, item="x", listener=events.append)
    assert events[-1].action == "diff"
    assert events[-1].done == events[-1].total == 14
    size = len(out.getvalue())
    out.seek(0)
    (fresh_dir / "b").mkdir()
    apply(out, LayerRoot(fresh_dir / "b", Whiteouts.REMOVE), item="y", total=size, listener=events.append)
    assert (events[-1].action, events[-1].item, events[-1].done, events[-1].total) == ("unpack", "y", size, size)


# -- a real overlay ----------------------------------------------------------------------------------------------------


@pytest.fixture
def overlay(fresh_dir: Path) -> Iterator[tuple[Path, Path, Path]]:
    """Give the lower tree, the upper directory and the place where both are mounted, to be changed."""
    lower = trees.make(fresh_dir / "lower", SPEC)
    for name in ("upper", "work"):
        (fresh_dir / name).mkdir()
    options = (f"lowerdir={lower}", f"upperdir={fresh_dir}/upper", f"workdir={fresh_dir}/work")
    with mounted([Mount("overlay", "overlay", (*options, "redirect_dir=off", "metacopy=off"))]) as merged:
        yield lower, fresh_dir / "upper", merged


@pytest.mark.root
def test_an_overlay_says_the_same_as_two_trees(overlay: tuple[Path, Path, Path], fresh_dir: Path) -> None:
    lower, upper, merged = overlay
    script = """
        rm -r gone; mkdir gone; touch gone/new            # opaque
        mv d/f d/moved; echo more >> d/moved              # a whiteout, and a link broken
        touch -r d-e stamp; chmod 600 d-e; chmod 644 d-e  # copied up and unchanged
        rm l; mkdir l; ln -s x l/y                        # a link becomes a directory
        mkfifo p; mknod null c 1 3; setfattr -n user.k -v v d
        ln d-e d-link
    """
    subprocess.run(["bash", "-ec", script], cwd=merged, check=True)
    root = LayerRoot(upper, Whiteouts.OVERLAY)
    listed = list(upper_changes(root, lower))
    assert listed == list(changes(lower, merged, verify_content=True))
    assert Change(ChangeKind.DELETED, b"gone/x") in listed
    assert b"d-e" not in [change.path for change in listed]
    out = io.BytesIO()
    write_layer(listed, root, out, compression=Compression.GZIP)
    assert not any("overlay" in key for member in members_of(out.getvalue()) for key in member.pax_headers)
    copy_tree(lower, fresh_dir / "c")
    apply(io.BytesIO(out.getvalue()), LayerRoot(fresh_dir / "c", Whiteouts.REMOVE))
    assert not trees.difference(trees.describe(fresh_dir / "c"), trees.describe(merged))


@pytest.mark.root
def test_a_copy_up_that_breaks_a_link_is_a_change(overlay: tuple[Path, Path, Path]) -> None:
    lower, upper, merged = overlay
    os.utime(merged / "d/h", ns=(5, trees.describe(lower)[b"d/h"].mtime))
    listed = list(upper_changes(LayerRoot(upper, Whiteouts.OVERLAY), lower))
    assert listed == [Change(ChangeKind.MODIFIED, b"."), Change(ChangeKind.MODIFIED, b"d/h", 7)]
    assert [change for change in changes(lower, merged) if change.path != b"d/f"] == listed


@pytest.mark.root
@pytest.mark.parametrize("mark", ["redirect", "metacopy"])
def test_an_upper_directory_that_refers_to_lower_names_is_refused(mark: str, fresh_dir: Path) -> None:
    lower = trees.make(fresh_dir / "lower", SPEC)
    upper = trees.make(fresh_dir / "upper", {b"d": Node("dir", mode=0o755)})
    os.setxattr(upper / "d", f"trusted.overlay.{mark}", b"/e")
    with pytest.raises(FailedPrecondition, match=mark):
        list(upper_changes(LayerRoot(upper, Whiteouts.OVERLAY), lower))


@pytest.mark.root
@pytest.mark.parametrize("announced", [False, True])
def test_empty_files_with_the_mark_of_a_whiteout_are_deletions(announced: bool, fresh_dir: Path) -> None:  # noqa: FBT001
    lower = trees.make(fresh_dir / "lower", SPEC)
    upper = trees.make(
        fresh_dir / "upper",
        {b"d": Node("dir", mode=0o750), b"d/f": Node("file"), b"l": Node("file"), b"new": Node("file")},
    )
    for name in ("d/f", "l", "new"):  # the last hides what is not there
        os.setxattr(upper / name, "trusted.overlay.whiteout", b"y")
    if announced:
        for path in (upper, upper / "d"):
            os.setxattr(path, "trusted.overlay.opaque", b"x")
    told = {change.path: change.kind for change in upper_changes(LayerRoot(upper, Whiteouts.OVERLAY), lower)}
    assert {path for path, kind in told.items() if kind is ChangeKind.DELETED} == {b"d/f", b"l"}
    assert b"new" not in told


# -- parts -------------------------------------------------------------------------------------------------------------


def test_digests() -> None:
    empty = Digest.of(b"")
    assert empty == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert Digest.parse(empty) == empty
    assert (empty.algorithm, len(empty.hex)) == ("sha256", 64)
    other = Digest.of(b"x")
    assert chain_id(None, empty) == empty
    assert chain_ids((empty, other)) == (empty, Digest.of(f"{empty} {other}".encode()))
    for bad in ("", "sha256:", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "../x", f"{empty}\n", "sha256:" + "/" * 64):
        with pytest.raises(InvalidArgument):
            Digest.parse(bad)
    with pytest.raises(Unsupported):
        Digest.parse("sha512:" + "a" * 128)


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD])
@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
def test_compression_in_pieces_of_any_size(compression: Compression, step: int) -> None:
    content = os.urandom(3000) + bytes(3_000_000 if step > 100 else 3000) + os.urandom(3000)
    levels = (None, 0, 1, 2, 6, 9) if compression is Compression.GZIP else (None, 1, 19)
    for level in levels:
        tool = compressor(compression, level)
        packed = tool.compress(content) + tool.flush()
        again = compressor(compression, level)
        assert packed == again.compress(content) + again.flush()
        pieces = [packed[start : start + step] for start in range(0, len(packed), step)]
        blocks = list(decompress(iter(pieces), compression))
        assert b"".join(blocks) == content
        assert max(map(len, blocks)) <= 1 << 21
        with pytest.raises(Corrupt):
            list(decompress(iter(pieces[: len(pieces) // 2]) if step < 1000 else [packed[:-3]], compression))


@pytest.mark.parametrize(("compression", "level"), [("gzip", 10), ("gzip", -1), ("zstd", 0), ("zstd", 23), ("none", 1)])
def test_levels_that_there_are_not(compression: str, level: int) -> None:
    with pytest.raises(InvalidArgument):
        compressor(Compression(compression), level)


def test_one_block_of_a_zstd_bomb_is_small() -> None:
    packed = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 28))
    assert len(packed) < 1 << 16
    assert max(map(len, decompress([packed], Compression.ZSTD))) <= 1 << 21
