"""Layers that are made to escape, to exhaust or to confuse: each says what it must do, and nothing outside changes."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard

from layerfs.contract import LayerRoot, Whiteouts
from layerfs.errors import Corrupt, LayerfsError, Unsupported
from layerfs.kernel.syscalls import rename_exchange
from layerfs.layer.apply import apply
from layerfs.layer.compression import Compression, decompress
from layerfs.layer.limits import LimitExceeded, Limits
from layerfs.tree import remove_tree
from tests.layer import trees
from tests.layer.archives import END, directory, extension, file, hard_link, header, pad, pax, record, symlink, unpack

pytestmark = pytest.mark.root


@pytest.fixture
def root(fresh_dir: Path) -> Iterator[Path]:
    """Give the root of a layer; its neighbours, threads and descriptors must be as before at the end."""
    canary = fresh_dir / "canary"
    (canary / "etc").mkdir(parents=True)
    (canary / "etc" / "passwd").write_text("secret")
    (canary / "etc" / "passwd").chmod(0o600)
    (fresh_dir / "root").mkdir()
    before = trees.describe(canary)
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    yield fresh_dir / "root"
    assert not trees.difference(before, trees.describe(canary))
    assert sorted(path.name for path in fresh_dir.iterdir() if path.name != "lower") == ["canary", "root"]
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors


OUT = b"../canary/etc"


@dataclass(frozen=True)
class Escape:
    """A layer that tries to get out, and the names that it must make inside."""

    name: str
    entries: tuple[bytes, ...]
    inside: tuple[str, ...]


ESCAPES = (
    Escape("parent", (file(b"../canary/new", b"x"),), ("canary", "canary/new")),
    Escape("deep parent", (file(b"a/../../../canary/new", b"x"),), ("canary", "canary/new")),
    Escape("absolute", (file(b"/canary/new", b"x"),), ("canary", "canary/new")),
    Escape("many slashes", (file(b"////canary//.//new", b"x"),), ("canary", "canary/new")),
    Escape("through link", (symlink(b"l", OUT), file(b"l/new", b"x")), ("canary", "canary/etc", "canary/etc/new", "l")),
    Escape("through absolute link", (symlink(b"l", b"/tmp"), file(b"l/new", b"x")), ("l", "tmp", "tmp/new")),
    Escape("over link", (symlink(b"l", OUT + b"/passwd"), file(b"l", b"x")), ("l",)),
    Escape("directory over link", (symlink(b"l", OUT), directory(b"l", 0o777), file(b"l/new")), ("l", "l/new")),
    Escape("link to itself and parent", (symlink(b"l", b"."), symlink(b"m", b".."), file(b"l/m/l/x")), ("l", "m", "x")),
    Escape("hard link over link", (file(b"f"), symlink(b"l", OUT), hard_link(b"l", b"f")), ("f", "l")),
    Escape("hard link to link", (symlink(b"l", OUT + b"/passwd"), hard_link(b"h", b"l")), ("h", "l")),
    Escape(
        "replaced between entries",
        (directory(b"d"), file(b"d/a"), symlink(b"d", OUT), file(b"d/b")),
        ("canary", "canary/etc", "canary/etc/b", "d"),
    ),
    Escape("root is a link", (symlink(b"./", OUT), file(b"x")), ("x",)),
    Escape("root is a file", (file(b".", b"x"), file(b"..", b"x"), file(b"x")), ("x",)),
    Escape("whiteout through link", (symlink(b"l", OUT), file(b"l/.wh.passwd")), ("l",)),
    Escape("opaque through link", (symlink(b"l", OUT), file(b"l/.wh..wh..opq")), ("l",)),
)


@pytest.mark.parametrize("case", ESCAPES, ids=lambda case: case.name)
@pytest.mark.parametrize("whiteouts", list(Whiteouts))
def test_stays_inside(case: Escape, whiteouts: Whiteouts, root: Path) -> None:
    unpack(root, *case.entries, whiteouts=whiteouts, base=True)
    assert trees.names(root) == sorted(case.inside)


REFUSED = {
    "hard link outside": (hard_link(b"h", OUT + b"/passwd"),),
    "hard link to absolute": (hard_link(b"h", b"/etc/passwd"),),
    "hard link to nothing": (hard_link(b"h", b""),),
    "hard link to root": (hard_link(b"h", b"/"),),
    "hard link to directory": (directory(b"d"), hard_link(b"h", b"d")),
    "hard link forward": (hard_link(b"h", b"f"), file(b"f")),
    "whiteout of nothing": (file(b"a/.wh."),),
    "whiteout of here": (file(b".wh.."),),
    "whiteout of parent": (file(b"a/.wh..."),),
    "link loop": (symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x")),
    "file below file": (file(b"f"), file(b"f/x")),
    "name of 256 bytes": (pax({b"path": b"n" * 256}), file(b"n")),
    "target of 5,000 bytes": (pax({b"linkpath": b"t" * 4096}), symlink(b"l", b"t")),
    "NUL in a name": (pax({b"path": b"a\0b"}), file(b"n")),
    "NUL in a target": (pax({b"linkpath": b"a\0b"}), symlink(b"l", b"t")),
    "empty target": (symlink(b"l", b""),),
    "bad checksum": (header(b"f", checksum=1),),
    "unknown type": (header(b"f", b"Z"),),
    "not octal": (header(b"f", size=b"0000000009\0\0"),),
    "underscores in a number": (header(b"f", mode=b"00_0644\0"),),
    "negative size": (header(b"f", size=b"\xff" * 12),),
    "negative owner": (header(b"f", uid=b"\xff" * 8),),
    "owner -1": (header(b"f", uid=b"\x80\0\0\0\xff\xff\xff\xff"),),
    "time beyond all clocks": (header(b"f", mtime=b"\x80\x7f" + b"\xff" * 10),),
    "PAX time that is none": (pax({b"mtime": b"1e9"}), file(b"f")),
    "PAX size that is none": (pax({b"size": b"-1"}), file(b"f")),
    "PAX size beyond the end": (pax({b"size": b"99999"}), file(b"f", b"x")),
    "PAX record without length": (extension(b"x", b"path=a\n"), file(b"f")),
    "PAX record of length 0": (extension(b"x", b"0 path=a\n"), file(b"f")),
    "PAX record too long": (extension(b"x", b"99 path=a\n"), file(b"f")),
    "PAX record without key": (extension(b"x", record(b"", b"a")), file(b"f")),
    "PAX header without entry": (pax({b"path": b"a"}),),
    "long name without entry": (extension(b"L", b"name\0"),),
    "global path": (pax({b"path": b"a"}, b"g"), file(b"f")),
    "two long names": (extension(b"L", b"gnu\0"), pax({b"path": b"posix"}), file(b"f")),
    "two long targets": (pax({b"linkpath": b"posix"}), extension(b"K", b"gnu\0"), symlink(b"l", b"t")),
    "file with the name of a directory": (file(b"d/"),),
    "attributes with too long names": (
        pax({b"SCHILY.xattr.user." + b"%0200d" % n: b"v" for n in range(400)}),
        file(b"f"),
    ),
    "attribute with too long a value": (pax({b"SCHILY.xattr.user.k": b"v" * 65537}), file(b"f")),
    "links that lead round and round": (
        *(pax({b"linkpath": b"./" * 2000 + b"l%d" % (n + 1)}) + symlink(b"l%d" % n, b"t") for n in range(30)),
        directory(b"l30"),
        file(b"l0/f"),
    ),
    "lone zero block": (bytes(512), file(b"f")),
    "device number": (header(b"d", b"3", major=4096, minor=0),),
    "attribute name with NUL": (pax({b"SCHILY.xattr.user.\0": b"a"}), file(b"f")),
    "sparse map beyond the end": (pax({b"GNU.sparse.size": b"4", b"GNU.sparse.map": b"3,2"}), file(b"f", b"xx")),
    "sparse map overlaps": (pax({b"GNU.sparse.size": b"9", b"GNU.sparse.map": b"2,2,3,2"}), file(b"f", b"xxxx")),
    "sparse map odd": (pax({b"GNU.sparse.size": b"9", b"GNU.sparse.map": b"2"}), file(b"f", b"xx")),
    "sparse map too short": (pax({b"GNU.sparse.size": b"9", b"GNU.sparse.map": b"0,1"}), file(b"f", b"xx")),
    "sparse map truncated": (
        pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9"}),
        file(b"f", b"2\n0\n"),
    ),
    "sparse map of more than can be counted": (
        pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9"}),
        file(b"f", pad(b"%d\n0\n9\n" % 10**29)),
    ),
    "sparse directory": (pax({b"GNU.sparse.size": b"9", b"GNU.sparse.map": b"0,0"}), directory(b"d")),
    "unknown sparse format": (pax({b"GNU.sparse.major": b"2", b"GNU.sparse.minor": b"0"}), file(b"f")),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("whiteouts", [Whiteouts.REMOVE, Whiteouts.OVERLAY])
def test_is_refused(name: str, whiteouts: Whiteouts, root: Path) -> None:
    with pytest.raises(Corrupt):
        unpack(root, *REFUSED[name], whiteouts=whiteouts)


@pytest.mark.parametrize("cut", [1, 511, 512, 700, 1023])
def test_a_cut_tar_is_refused(cut: int, root: Path) -> None:
    whole = file(b"f", b"x" * 600)
    if cut == 512:
        whole = file(b"g") + whole
        cut += 512
    with pytest.raises(Corrupt, match="truncated"):
        unpack(root, whole[:cut], end=b"")


@pytest.mark.parametrize("end", [b"", bytes(512), END, END + b"garbage after the end"])
def test_the_digest_covers_the_stream_to_its_last_byte(end: bytes, root: Path) -> None:
    applied = unpack(root, file(b"f", b"x"), end=end)
    data = file(b"f", b"x") + end
    assert applied.diff_id == applied.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert applied.size == applied.compressed_size == len(data)
    assert applied.entries == 1


LIMITS = {
    "stream_bytes": ({"stream_bytes": 4096}, (file(b"f", bytes(5000)),)),
    "file_bytes": ({"file_bytes": 100}, (file(b"f", bytes(101)),)),
    "entries": ({"entries": 3}, tuple(file(b"%d" % n) for n in range(4))),
    "header_bytes": ({}, (extension(b"x", b"", size=1 << 40),)),
    "header_bytes of a long name": ({}, (extension(b"L", b"", size=1 << 21),)),
    "global_bytes of all global headers": (
        {"global_bytes": 1000},
        tuple(pax({b"SCHILY.xattr.user.k%d" % n: b"v" * 500}, b"g") for n in range(3)),
    ),
    "global_bytes": ({}, (pax({b"SCHILY.xattr.user.k": b"v" * 4096}, b"g"), file(b"f"))),
    "path_bytes": ({}, (pax({b"path": b"a/" * 2049 + b"f"}), file(b"f"))),
    "depth": ({"depth": 10}, (pax({b"path": b"a/" * 11 + b"f"}), file(b"f"))),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_named(name: str, root: Path) -> None:
    settings, entries = LIMITS[name]
    with pytest.raises(LimitExceeded, match=name.partition(" ")[0]) as caught:
        unpack(root, *entries, limits=Limits(**settings))
    assert caught.value.hint is not None


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_bomb_is_stopped(kind: str, root: Path) -> None:
    plain = header(b"f", size=64 << 20) + bytes(64 << 20)
    packed = gzip.compress(plain, 9) if kind == "gzip" else zstandard.ZstdCompressor().compress(plain)
    limits = Limits(ratio=100, ratio_free=1 << 20)
    with pytest.raises(LimitExceeded, match="ratio"):
        apply(io.BytesIO(packed), LayerRoot(root, Whiteouts.REMOVE), limits=limits)
    assert (root / "f").stat().st_size < 8 << 20


@pytest.mark.parametrize("length", [0, 1, 10, 300, 70_000])
@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_damage_is_seen(kind: str, length: int, root: Path) -> None:
    content = os.urandom(length) * 10
    plain = file(b"f", content) + END
    packed = gzip.compress(plain) if kind == "gzip" else zstandard.ZstdCompressor(write_checksum=True).compress(plain)
    for bad in (
        packed[:-1],
        packed[: len(packed) // 2],
        packed + b"garbage",
        packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:],
        packed[:-1] + bytes([packed[-1] ^ 1]),
    ):
        with pytest.raises(Corrupt):
            apply(io.BytesIO(bad), LayerRoot(root, Whiteouts.REMOVE))


@pytest.mark.parametrize("magic", [b"BZh91AY", b"\xfd7zXZ\0", b"PK\x03\x04"])
def test_other_compressions_are_named(magic: bytes, root: Path) -> None:
    with pytest.raises(Unsupported, match="not supported"):
        apply(io.BytesIO(magic + bytes(100)), LayerRoot(root, Whiteouts.REMOVE))


def test_several_members_and_padding(root: Path) -> None:
    content = os.urandom(3 << 20)
    plain = file(b"f", content) + END
    cuts = [0, 1, 600, 700_000, 2_000_000, len(plain)]
    pieces = [plain[start:end] for start, end in pairwise(cuts)]
    skippable = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"skip!"
    tiny = [content[start : start + 3] for start in range(0, 30_000, 3)]
    assert b"".join(decompress([b"".join(map(gzip.compress, [b"", *tiny, b""]))], Compression.GZIP)) == content[:30_000]
    for packed in (
        b"".join(gzip.compress(piece, 1) for piece in pieces) + bytes(1000),
        skippable + skippable.join(zstandard.ZstdCompressor().compress(piece) for piece in pieces) + skippable,
    ):
        applied = apply(io.BytesIO(packed), LayerRoot(root, Whiteouts.REMOVE))
        assert (root / "f").read_bytes() == content
        assert applied.size == len(plain)
        assert applied.compressed_size == len(packed)


class _Failing(io.BytesIO):
    """A stream that breaks, as a network does."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 600_000:
            raise ConnectionResetError("the peer went away")
        return super().read(size)


def test_an_error_of_the_stream_arrives(root: Path) -> None:
    with pytest.raises(LayerfsError, match="the peer went away"):
        apply(_Failing(file(b"f", bytes(1_000_000)) + END), LayerRoot(root, Whiteouts.REMOVE))


def test_a_listener_that_raises_leaves_no_thread(root: Path) -> None:
    def listener(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(io.BytesIO(gzip.compress(os.urandom(5 << 20))), LayerRoot(root, Whiteouts.REMOVE), listener=listener)


def test_somebody_who_swaps_directories_meanwhile(root: Path, fresh_dir: Path) -> None:
    """A process of the same user turns a directory into a link to the canary and back while files come into it."""
    names = [b"d/%d/f" % number for number in range(40)]
    layer = b"".join(directory(b"d/%d" % number) for number in range(40)) + b"".join(
        file(name, b"x") + hard_link(name + b"2", name) + file(b"d/.wh.etc") + symlink(b"d/etc/l", b"x")
        for name in names
    )
    (root / "d").mkdir()
    (root / "other").symlink_to(fresh_dir / "canary")
    stop = threading.Event()

    def swap() -> None:
        fd = os.open(root, os.O_RDONLY)
        while not stop.is_set():
            rename_exchange(fd, b"d", fd, b"other")
        os.close(fd)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(60):
            with suppress(LayerfsError):
                unpack(root, layer)
    finally:
        stop.set()
        swapper.join()


def test_odd_names_are_kept(root: Path) -> None:
    odd = [b"new\nline", b"\xff\xfe", b" ", b"-rf", b"a" * 255, b"...", b".wh", b"\\", b"\x01"]
    unpack(root, *(pax({b"path": name}) + file(b"x") for name in odd))
    assert sorted(os.listdir(os.fsencode(root))) == sorted(odd)


@pytest.mark.parametrize("whiteouts", [Whiteouts.REMOVE, Whiteouts.OVERLAY])
def test_a_path_of_4096_characters_is_made(whiteouts: Whiteouts, root: Path) -> None:
    """The kernel takes no such path at once (PATH_MAX), but each of its directories one after the other."""
    path = b"/".join([b"n" * 255] * 16)
    assert len(path) == 4095
    unpack(root, pax({b"path": path[:-1] + b"/n"}) + file(b"f", b"x"), whiteouts=whiteouts)
    fd = os.open(root, os.O_RDONLY)
    for part in path[:-1].split(b"/"):
        below = os.open(part, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    assert os.listdir(fd) == ["n"]
    os.close(fd)
    with pytest.raises(LimitExceeded, match="path_bytes"):
        unpack(root, pax({b"path": path + b"/n"}) + file(b"f", b"x"), whiteouts=whiteouts)
    remove_tree(root / ("n" * 255))


def test_a_later_entry_replaces_an_earlier(root: Path) -> None:
    unpack(
        root, file(b"a", b"1"), directory(b"a"), file(b"a/b"), symlink(b"a", b"x"), file(b"a", b"2"), file(b"a", b"33")
    )
    assert trees.names(root) == ["a"]
    assert (root / "a").read_bytes() == b"33"


def test_orders_to_an_overlay_are_not_taken(root: Path) -> None:
    for name in (b"redirect", b"metacopy", b"whiteout"):
        for whiteouts, prefix in ((Whiteouts.OVERLAY, b"trusted"), (Whiteouts.OVERLAY_USER, b"user")):
            entry = pax({b"SCHILY.xattr." + prefix + b".overlay." + name: b"y"}) + file(b"f")
            with pytest.raises(Unsupported, match="order"):
                unpack(root, entry, whiteouts=whiteouts)
    unpack(root, pax({b"SCHILY.xattr.trusted.overlay.opaque": b"y"}) + directory(b"d"), whiteouts=Whiteouts.OVERLAY)
    assert os.listxattr(root / "d") == ["trusted.overlay.overlay.opaque"]
    with pytest.raises(Unsupported, match="0/0"):
        unpack(root, header(b"n", b"3"), whiteouts=Whiteouts.OVERLAY)


def test_a_hostile_lower_tree_is_not_followed(root: Path, fresh_dir: Path) -> None:
    lower = fresh_dir / "lower"
    lower.mkdir()
    (lower / "out").symlink_to(fresh_dir / "canary/etc")
    (lower / "up").symlink_to("../../../../etc")
    unpack(root, file(b"out/new"), file(b"up/new"), file(b"out/.wh.passwd"), whiteouts=Whiteouts.OVERLAY, lower=lower)
    assert "etc/new" in trees.names(root)
    with pytest.raises(Corrupt, match="target"):
        unpack(root, hard_link(b"h", b"up/passwd"), whiteouts=Whiteouts.OVERLAY, lower=lower)


def test_a_deep_tree(root: Path) -> None:
    names = [b"/".join([b"d"] * depth) for depth in range(1, 1000)]
    unpack(root, *(pax({b"path": name}) + directory(b"x") for name in names), file(b"f"))
    assert len(trees.describe(root)) == 1001
    unpack(root, file(b".wh.d"))
    assert trees.names(root) == ["f"]


@pytest.mark.parametrize("whiteouts", list(Whiteouts))
@pytest.mark.parametrize("hidden", [b"d/.wh..wh..opq", b".wh.d"])
def test_what_a_deep_tree_hides_behind_itself(whiteouts: Whiteouts, hidden: bytes, root: Path) -> None:
    """More directories than stay open, with siblings at each of them, are looked through when the whiteout comes."""
    names = [b"/".join([b"d"] * depth) for depth in range(1, 600)]
    lower = root / "/".join(["d"] * 300)
    if whiteouts is Whiteouts.REMOVE:
        lower.mkdir(parents=True)
        for path in (lower, *lower.relative_to(root).parents):
            (root / path / "of-lower").write_text("")
    entries = [pax({b"path": name}) + directory(b"x") for name in names]
    entries += [pax({b"path": name + b"/of-this"}) + file(b"x") for name in names]
    unpack(root, *entries, file(hidden), whiteouts=whiteouts)
    seen = trees.describe(root)
    assert not [name for name in seen if name.startswith(b"d/") and name.endswith(b"of-lower")]
    assert sum(name.endswith(b"of-this") for name in seen) == len(names)
    assert {seen[name].mtime for name in names} == {1_600_000_000 * 10**9}


def test_random_bytes_never_crash(root: Path) -> None:
    whole = b"".join(
        (
            directory(b"d"),
            file(b"d/f", b"x" * 700),
            pax({b"path": b"p" * 150, b"mtime": b"1.5", b"SCHILY.xattr.user.a": b"b"}) + file(b"x"),
            extension(b"L", b"l" * 120 + b"\0") + symlink(b"l", b"d"),
            hard_link(b"h", b"d/f"),
            pax({b"GNU.sparse.size": b"9000", b"GNU.sparse.map": b"2,2,4096,2"}) + file(b"s", b"xxxx"),
        )
    )
    state = 1
    for turn in range(1500):
        state = zlib.crc32(b"%d" % turn, state)
        position, value = state % len(whole), state >> 24
        changed = bytearray(whole)
        changed[position] = value
        block = position - position % 512
        if turn % 2 and changed[block + 257 : block + 262] == b"ustar":  # give it a checksum that is right
            changed[block + 148 : block + 156] = b" " * 8
            changed[block + 148 : block + 156] = b"%06o\0 " % sum(changed[block : block + 512])
        try:
            unpack(root, bytes(changed), limits=Limits(file_bytes=1 << 30))
        except LayerfsError as error:
            assert str(error)  # noqa: PT017  most of them are accepted; those that are not must say why
