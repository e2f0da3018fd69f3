"""What a layer makes of a directory: whiteouts in every position, attributes in the right order, links, holes."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.contract import LayerRoot, Mount, Whiteouts
from layerfs.errors import Corrupt, FailedPrecondition, PermissionDenied
from layerfs.kernel.mounting import mounted
from layerfs.layer import attributes
from layerfs.layer.apply import OwnerPolicy, apply
from layerfs.layer.digest import Digest
from tests.layer import trees
from tests.layer.archives import directory, extension, file, hard_link, header, pax, symlink, unpack
from tests.layer.trees import Node
from tests.support.rootless import Rootless

LOWER = {
    b"d": Node("dir", mode=0o750, uid=7, gid=8, mtime=5, xattrs=((b"user.k", b"v"),)),
    b"d/f": Node("file", content=b"lower", uid=9, mtime=6, xattrs=((b"user.f", b"w"),)),
    b"d/sub": Node("dir", mode=0o711, mtime=7),
    b"d/sub/x": Node("file"),
    b"e": Node("file", content=b"e"),
    b"l": Node("link", target=b"/d"),
    b".": Node("dir", mode=0o755, mtime=99),
}


@pytest.fixture
def lower(fresh_dir: Path) -> Path:
    return trees.make(fresh_dir / "lower", LOWER)


def both(fresh_dir: Path, lower: Path, *entries: bytes, blind: bool = True) -> dict[bytes, trees.Seen]:
    """Apply a layer to a copy of the lower tree, and as an overlay with a view of it; describe the result.

    Both must show the same. So must, by names, an overlay without the view, if ``blind``.
    """
    whole = fresh_dir / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    trees.make(whole, LOWER)
    unpack(whole, *entries)
    expected = trees.describe(whole)
    for name, view in (("known", lower), ("unknown", None))[: 1 + blind]:
        upper = fresh_dir / name
        shutil.rmtree(upper, ignore_errors=True)
        upper.mkdir()
        os.utime(upper, ns=(99, 99))
        unpack(upper, *entries, whiteouts=Whiteouts.OVERLAY, lower=view)
        with mounted([Mount("overlay", "overlay", ("ro", f"lowerdir={upper}:{lower}"))]) as merged:
            shown = trees.describe(merged)
        if view is not None:
            assert not trees.difference(shown, expected)
        else:
            assert shown.keys() == expected.keys()
    return expected


def listed(seen: dict[bytes, trees.Seen]) -> set[str]:
    return {os.fsdecode(name) for name in seen} - {"."}


CASES = {
    "whiteout of a file": ((file(b"d/.wh.f"),), {"d", "d/sub", "d/sub/x", "e", "l"}),
    "whiteout of a directory": ((file(b".wh.d"),), {"e", "l"}),
    "whiteout of nothing": ((file(b".wh.nothing"), file(b"no/.wh.thing")), None),
    "whiteout below a whiteout": ((file(b".wh.d"), file(b"d/.wh.f")), {"e", "l"}),
    "whiteout below a file": ((file(b"e/.wh.f"),), None),
    "whiteout through a link": ((file(b"l/.wh.f"),), {"d", "d/sub", "d/sub/x", "e", "l"}),
    "directory again": ((file(b".wh.d"), directory(b"d"), file(b"d/new")), {"d", "d/new", "e", "l"}),
    "directory of one's own": (
        (directory(b"d"), file(b"d/new"), file(b"d/sub/y"), file(b".wh.d")),
        {"d", "d/new", "d/sub", "d/sub/y", "e", "l"},
    ),
    "opaque": (
        (directory(b"d"), file(b"d/new"), file(b"d/sub/y"), file(b"d/.wh..wh..opq")),
        {"d", "d/new", "d/sub", "d/sub/y", "e", "l"},
    ),
    "opaque and a whiteout": (
        (directory(b"d"), file(b"d/.wh..wh..opq"), file(b"d/.wh.f"), file(b"d/sub/.wh.x"), file(b"d/n")),
        {"d", "d/n", "e", "l"},
    ),
    "file over whiteout": ((file(b".wh.e"), file(b"e", b"new")), None),
    "whiteout over own file": ((file(b"e", b"new"), file(b".wh.e")), None),
    "file over directory": ((file(b"d", b"new"),), {"d", "e", "l"}),
    "directory over file": ((directory(b"e"), file(b"e/x")), {"d", "d/f", "d/sub", "d/sub/x", "e", "e/x", "l"}),
    "directory over a replaced directory": ((file(b"d"), directory(b"d")), {"d", "e", "l"}),
    "directory over a link": ((directory(b"l"), file(b"l/x")), {"d", "d/f", "d/sub", "d/sub/x", "e", "l", "l/x"}),
    "AUFS": (
        (file(b".wh..wh.aufs"), directory(b".wh..wh.plnk"), file(b".wh..wh.plnk/1.2"), file(b".wh..wh.orph/x")),
        None,
    ),
}


@pytest.mark.root
@pytest.mark.parametrize("name", CASES)
def test_whiteouts(name: str, fresh_dir: Path, lower: Path) -> None:
    entries, expected = CASES[name]
    expected = expected or {os.fsdecode(path) for path in LOWER} - {"."}
    orders = (
        [entries]
        if name.startswith(("file over", "directory over", "directory again", "opaque and"))
        else itertools.permutations(entries)
    )
    blind = not name.startswith(("whiteout of nothing", "whiteout below a file", "whiteout through"))
    for order in itertools.islice(orders, 24):
        assert listed(both(fresh_dir, lower, *order, blind=blind)) == expected


@pytest.mark.root
def test_an_opaque_root(fresh_dir: Path, lower: Path) -> None:
    layer = (file(b"d/new"), file(b".wh..wh..opq"), file(b"d/other"))
    whole = trees.make(fresh_dir / "whole", LOWER)
    unpack(whole, *layer)
    assert trees.names(whole) == ["d", "d/new", "d/other"]
    unpack(fresh_dir / "upper", *layer, whiteouts=Whiteouts.OVERLAY, lower=lower)
    with mounted([Mount("overlay", "overlay", ("ro", f"lowerdir={fresh_dir}/upper:{lower}"))]) as merged:
        assert trees.names(merged) == ["d", "d/new", "d/other"]
    with pytest.raises(FailedPrecondition, match="hides everything"):
        unpack(fresh_dir / "blind", *layer, whiteouts=Whiteouts.OVERLAY)


@pytest.mark.root
def test_directories_that_the_layer_does_not_list_stay_as_they_are(fresh_dir: Path, lower: Path) -> None:
    before = trees.describe(lower)
    after = both(fresh_dir, lower, file(b"d/sub/new", b"n"), file(b"l/linked"), file(b"d/.wh.f"), blind=False)
    assert after[b"d"] == before[b"d"]
    assert after[b"d/sub"] == before[b"d/sub"]
    assert after[b"."] == before[b"."]
    assert after[b"d/linked"].kind == "file"


@pytest.mark.root
def test_a_directory_gives_up_the_attributes_of_the_one_below(fresh_dir: Path, lower: Path) -> None:
    after = both(fresh_dir, lower, pax({b"SCHILY.xattr.user.new": b"n"}) + directory(b"d", 0o1777, mtime=3))
    assert after[b"d"] == trees.Seen("dir", 0o1777, (0, 0), 3 * 10**9, xattrs=(("user.new", b"n"),))
    assert after[b"d/f"].content == trees.describe(lower)[b"d/f"].content


@pytest.mark.root
@pytest.mark.parametrize("others", range(194, 204))
def test_what_was_brought_is_known_after_directories_were_closed(others: int, fresh_dir: Path) -> None:
    """Some 200 directories stay open: these numbers close ``p``, ``p/a``, or neither, between their entries."""
    root = trees.make(
        fresh_dir / "r",
        {
            b"p": Node("dir", mode=0o755),
            b"p/a": Node("dir", mode=0o755),
            b"p/a/low": Node("file"),
            b"p/l": Node("link", target=b"a/.."),
        },
    )
    many = tuple(directory(b"%d" % number) for number in range(others))
    unpack(root, file(b"p/a/.wh.nothing"), *many, file(b"p/a/new"), file(b"p/l/two"), file(b"p/.wh.a"), file(b".wh.p"))
    assert [name for name in trees.names(root) if name.startswith("p")] == ["p", "p/a", "p/a/new", "p/two"]
    assert (root / "p").stat().st_mtime_ns == Node("dir").mtime


@pytest.mark.root
def test_a_hard_link_to_a_lower_file(fresh_dir: Path, lower: Path) -> None:
    whole = trees.make(fresh_dir / "whole", LOWER)
    layer = (hard_link(b"h", b"/l/f"), hard_link(b"d/h2", b"h"))
    unpack(whole, *layer)
    expected = trees.describe(whole)
    assert expected[b"h"].names == (b"d/f", b"d/h2", b"h")
    unpack(fresh_dir / "upper", *layer, whiteouts=Whiteouts.OVERLAY, lower=lower)
    with mounted([Mount("overlay", "overlay", ("ro", f"lowerdir={fresh_dir}/upper:{lower}"))]) as merged:
        shown = trees.describe(merged)
    del shown[b"."], expected[b"."]
    assert not trees.difference(shown, expected)
    with pytest.raises(Corrupt, match="not there") as caught:
        unpack(fresh_dir / "blind", *layer, whiteouts=Whiteouts.OVERLAY)
    assert caught.value.hint


@pytest.mark.root
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_digest_that_is_known_is_passed_on_and_the_diff_id_is_made(
    compress: Callable[[bytes], bytes], fresh_dir: Path
) -> None:
    tar = file(b"f", os.urandom(2 << 20)) + bytes(1024)
    stream = compress(tar)
    known = Digest(f"sha256:{hashlib.sha256(stream).hexdigest()}")
    applied = apply(io.BytesIO(stream), LayerRoot(fresh_dir, Whiteouts.REMOVE), known=known)
    assert applied.digest == known
    assert applied.diff_id == f"sha256:{hashlib.sha256(tar).hexdigest()}"


@pytest.mark.root
@pytest.mark.parametrize("kind", ["pax", "gnu"])
def test_a_long_name_that_its_header_cuts_at_a_slash_is_no_directory(kind: str, fresh_dir: Path) -> None:
    long = b"d" * 99 + b"/name"
    named = pax({b"path": long}) if kind == "pax" else extension(b"L", long + b"\0")
    unpack(
        fresh_dir,
        directory(b"d" * 99 + b"/"),
        named,
        file(long[:100], b"content"),
        header(b"old/", b"\0"),
        file(b"next", b"x"),
    )
    assert (fresh_dir / long.decode()).read_bytes() == b"content"
    assert (fresh_dir / "old").is_dir()
    assert (fresh_dir / "next").read_bytes() == b"x"


@pytest.mark.root
def test_a_name_that_ends_in_dots_is_not_taken_for_the_directory_of_the_next(fresh_dir: Path) -> None:
    with pytest.raises(Corrupt, match="'/a' is no directory"):
        unpack(fresh_dir, directory(b"a/b"), file(b"a/b/.."), file(b"a/b/x"))
    assert trees.names(fresh_dir) == ["a"]


@pytest.mark.root
def test_a_link_that_becomes_a_directory_leads_the_next_files_there(fresh_dir: Path) -> None:
    unpack(
        fresh_dir,
        *(directory(b"x"), symlink(b"a", b"x"), file(b"a/1"), file(b"./a/2")),
        *(directory(b"a/"), file(b"a/3"), directory(b"./x/"), file(b"./x/4"), file(b"/x//5"), directory(b"./")),
    )
    assert trees.names(fresh_dir) == ["a", "a/3", "x", "x/1", "x/2", "x/4", "x/5"]


@pytest.mark.root
def test_more_directories_than_stay_open(fresh_dir: Path) -> None:
    many = [b"d/%d" % number for number in range(500)]
    unpack(
        fresh_dir,
        *(directory(b"d", mtime=5), file(b"d/first")),
        *(
            entry
            for name in many
            for entry in (directory(name, 0o700, mtime=7), file(b"d/.wh.none"), file(name + b"/f"))
        ),
        *(file(b"d/last"), *(file(name + b"/g") for name in many)),
    )
    assert len(list((fresh_dir / "d").iterdir())) == 502
    assert (fresh_dir / "d").stat().st_mtime == 5
    for name in many:
        status = (fresh_dir / os.fsdecode(name)).stat()
        assert (status.st_mtime, stat.S_IMODE(status.st_mode)) == (7, 0o700)
        assert sorted(os.listdir(fresh_dir / os.fsdecode(name))) == ["f", "g"]


@pytest.mark.root
def test_nothing_is_hidden_below_the_lowest_layer(fresh_dir: Path) -> None:
    layer = (directory(b"d"), file(b"d/.wh..wh..opq"), file(b".wh.x"), file(b"d/.wh.y"), file(b"z/.wh.y"), file(b"d/f"))
    for whiteouts in Whiteouts:
        root = fresh_dir / whiteouts
        unpack(root, *layer, whiteouts=whiteouts, base=True)
        assert trees.names(root) in (["d", "d/f"], ["d", "d/f", "z"])
        assert os.listxattr(root / "d") == []


@pytest.mark.root
@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_attributes(umask: int, fresh_dir: Path) -> None:
    capability = b"\x01\x00\x00\x02" + b"\x00\x04" + bytes(14)
    old = os.umask(umask)
    try:
        unpack(
            fresh_dir / "r",
            directory(b"g", 0o2775, gid=5, mtime=1),
            file(b"g/inherits", mode=0o664),
            directory(b"g/d", 0o755),
            pax({b"SCHILY.xattr.security.capability": capability, b"mtime": b"-1.5", b"uid": b"3000000"})
            + file(b"cap", b"x", mode=0o755),
            file(b"suid", b"x", mode=0o6755, uid=5, gid=6, mtime=b"\x80" + b"\0" * 6 + b"\x02" + b"\0" * 4),
            symlink(b"s", b"nowhere"),
            header(b"fifo", b"6", mode=0o666),
            header(b"null", b"3", mode=0o666, major=1, minor=3),
            header(b"loop", b"4", mode=0o660, gid=6, major=7, minor=300),
        )
    finally:
        os.umask(old)
    seen = trees.describe(fresh_dir / "r")
    assert (seen[b"g"].mode, seen[b"g"].owner, seen[b"g"].mtime) == (0o2775, (0, 5), 10**9)
    assert (seen[b"g/inherits"].mode, seen[b"g/inherits"].owner) == (0o664, (0, 0))
    assert (seen[b"g/d"].mode, seen[b"g/d"].owner) == (0o755, (0, 0))
    assert seen[b"cap"].xattrs == (("security.capability", capability),)
    assert (seen[b"cap"].mtime, seen[b"cap"].owner) == (-1_500_000_000, (3000000, 0))
    assert (seen[b"suid"].mode, seen[b"suid"].owner, seen[b"suid"].mtime) == (0o6755, (5, 6), (2 << 32) * 10**9)
    assert (seen[b"null"].kind, seen[b"null"].device, seen[b"null"].mode) == ("char", os.makedev(1, 3), 0o666)
    assert (seen[b"loop"].kind, seen[b"loop"].device, seen[b"loop"].owner) == ("block", os.makedev(7, 300), (0, 6))
    assert seen[b"fifo"].mode == 0o666
    assert {seen[name].mtime for name in (b"s", b"fifo", b"null")} == {1_600_000_000 * 10**9}


@pytest.mark.root
def test_a_default_acl_is_not_inherited_by_what_the_layer_brings(fresh_dir: Path) -> None:
    root = fresh_dir / "r"
    root.mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:7:rwx,g:8:r", root], check=True)
    acl = os.getxattr(root, "system.posix_acl_default")
    unpack(
        root,
        file(b"f", mode=0o640),
        directory(b"d", 0o750),
        file(b"d/g", mode=0o604),
        header(b"p", b"6"),
        pax({b"SCHILY.xattr.system.posix_acl_default": acl}) + directory(b"keeps"),
        file(b"keeps/h", mode=0o600),
    )
    seen = trees.describe(root)
    assert {name: (one.mode, [key for key, _ in one.xattrs]) for name, one in seen.items() if name != b"."} == {
        b"f": (0o640, []),
        b"d": (0o750, []),
        b"d/g": (0o604, []),
        b"p": (0o644, []),
        b"keeps": (0o755, ["system.posix_acl_default"]),
        b"keeps/h": (0o600, []),
    }


@pytest.mark.root
def test_sparse_files_of_every_format(fresh_dir: Path) -> None:
    content = b"ab" + bytes(8190) + b"cd" + bytes(100)
    map_1_0 = (b"2\n0\n2\n8192\n2\n").ljust(512, b"\0")
    numbers = {b"GNU.sparse.size": b"8294", b"GNU.sparse.numblocks": b"2"}
    pairs = b"".join(
        b"%d %s\n" % (len(text) + 4, text)
        for text in (
            b"GNU.sparse.offset=0",
            b"GNU.sparse.numbytes=2",
            b"GNU.sparse.offset=8192",
            b"GNU.sparse.numbytes=2",
        )
    )
    old = header(b"old", b"S", size=4, magic=b"ustar  \0")
    old = old[:386] + b"%011o\0%011o\0%011o\0%011o\0" % (0, 2, 8192, 2) + old[434:483] + b"%011o\0" % 8294 + old[495:]
    old = old[:148] + b"%06o\0 " % (sum(old[:148]) + sum(old[156:]) + 256) + old[156:]
    unpack(
        fresh_dir / "r",
        extension(b"x", pax(numbers)[512:].rstrip(b"\0") + pairs) + file(b"v00", b"abcd"),
        pax({b"GNU.sparse.size": b"8294", b"GNU.sparse.map": b"0,2,8192,2", b"GNU.sparse.name": b"v01"})
        + file(b"x", b"abcd"),
        pax(
            {
                b"GNU.sparse.major": b"1",
                b"GNU.sparse.minor": b"0",
                b"GNU.sparse.realsize": b"8294",
                b"GNU.sparse.name": b"v10",
            }
        )
        + file(b"x", map_1_0 + b"abcd"),
        old + b"abcd".ljust(512, b"\0"),
    )
    for name in ("v00", "v01", "v10", "old"):
        assert (fresh_dir / "r" / name).read_bytes() == content


@pytest.mark.root
def test_gnu_tar_and_umoci_agree(fresh_dir: Path) -> None:
    if shutil.which("umoci") is None:
        pytest.skip("umoci is not installed")
    spec = LOWER | {
        b"h": Node("hard", target=b"d/f"),
        b"n" * 150: Node("file", content=os.urandom(100_000), mode=0o4755),
        b"sparse": Node("file", content=b"a" + bytes(1 << 20) + b"b"),
        b"p": Node("fifo"),
        b"null": Node("char"),
        b"\xff\n": Node("link", target=b"t" * 120),
    }
    source = trees.make(fresh_dir / "source", spec)
    layer = fresh_dir / "layer.tar"
    options: list[str | Path] = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--sort=name", "-C", source]
    for kind in (
        ["--format=posix"],
        ["--format=posix", "--sparse"],
        ["--format=posix", "--sparse", "--sparse-version=0.1"],
    ):
        subprocess.run(["tar", *kind, *options, "-cf", layer, "."], check=True)
        shutil.rmtree(fresh_dir / "ours", ignore_errors=True)
        unpack(fresh_dir / "ours", layer.read_bytes(), end=b"")
        assert not trees.difference(trees.describe(fresh_dir / "ours"), trees.describe(source))
    for kind in (["--format=gnu"], ["--format=gnu", "--sparse"]):
        options = ["--numeric-owner", "--sort=name", "-C", source]
        subprocess.run(["tar", *kind, *options, "-cf", layer, "."], check=True)
        for name in ("ours", "theirs"):
            shutil.rmtree(fresh_dir / name, ignore_errors=True)
            (fresh_dir / name).mkdir()
        unpack(fresh_dir / "ours", layer.read_bytes(), end=b"")
        subprocess.run(["tar", "-xpf", layer, "--numeric-owner", "-C", fresh_dir / "theirs"], check=True)
        assert not trees.difference(trees.describe(fresh_dir / "ours"), trees.describe(fresh_dir / "theirs"))
    _compare_with_umoci(fresh_dir, source)


def _compare_with_umoci(top: Path, source: Path) -> None:
    """Let umoci pack two layers, the second with deletions, and compare what it unpacks with what we do."""
    image, bundle = f"{top}/oci:x", top / "bundle"

    def umoci(*words: str | Path) -> None:
        subprocess.run(["umoci", *words], check=True, capture_output=True)

    umoci("init", "--layout", top / "oci")
    umoci("new", "--image", image)
    umoci("unpack", "--image", image, bundle)
    (bundle / "rootfs").rmdir()
    subprocess.run(["cp", "-a", source, bundle / "rootfs"], check=True)
    umoci("repack", "--image", image, bundle)
    shutil.rmtree(bundle)
    umoci("unpack", "--image", image, bundle)
    shutil.rmtree(bundle / "rootfs/d/sub")
    (bundle / "rootfs/e").unlink()
    (bundle / "rootfs/e").mkdir()
    umoci("repack", "--image", image, bundle)
    shutil.rmtree(bundle)
    umoci("unpack", "--image", image, bundle)
    blobs = sorted((top / "oci/blobs/sha256").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    layers = [path for path in blobs if path.read_bytes()[:2] == b"\x1f\x8b"]
    shutil.rmtree(top / "ours")
    for layer in layers:
        unpack(top / "ours", layer.read_bytes(), end=b"")
    assert len(layers) == 2
    assert not trees.difference(trees.describe(top / "ours"), trees.describe(bundle / "rootfs"))


# -- without root ------------------------------------------------------------------------------------------------------


def _as_user(top: Path) -> tuple[list[str], int, int]:
    root = top / "r"
    user, group = os.getuid(), os.getgid()
    layer = (
        directory(b"ro", 0o755, uid=5),
        file(b"ro/f", b"x", mode=0o4644, uid=user, gid=group),
        pax({b"SCHILY.xattr.trusted.t": b"v", b"SCHILY.xattr.user.u": b"w"}) + file(b"x", b"y", gid=7),
        header(b"null", b"3", major=1, minor=3),
        header(b"fifo", b"6"),
    )
    applied = unpack(root, *layer, owner=OwnerPolicy.SQUASH)
    with pytest.raises(PermissionDenied):
        unpack(top / "k", *layer)
    assert os.listxattr(root / "x") == ["user.u"]
    mode = stat.S_IMODE((root / "ro/f").stat().st_mode)
    return trees.names(root), mode, applied.squashed


@pytest.mark.rootless
def test_without_root_owners_are_squashed(run_rootless: Rootless, rootless_dir: Path) -> None:
    names, mode, squashed = run_rootless(_as_user, rootless_dir)
    assert names == ["fifo", "ro", "ro/f", "x"]
    assert mode == 0o4644
    assert squashed == 1


def _closed_directories(top: Path) -> dict[str, int]:
    root, squash = top / "r", OwnerPolicy.SQUASH
    unpack(
        root,
        directory(b".", 0o555),
        directory(b"bin", 0o555),
        file(b"bin/one"),
        directory(b"bin/deep", 0o500),
        directory(b"bin/deep/er", 0o511),
        file(b"bin/deep/er/x"),
        directory(b"gone", 0o111),
        file(b"gone/x"),
        owner=squash,
    )
    unpack(root, file(b"bin/two"), file(b".wh.gone"), directory(b"bin/deep", 0o755), file(b"new"), owner=squash)
    return {
        str(path.relative_to(root)): stat.S_IMODE(path.stat().st_mode)
        for path in (root, *sorted(root.rglob("*")))
        if path.is_dir()
    } | {"files": len([path for path in root.rglob("*") if path.is_file()])}


@pytest.mark.rootless
def test_an_ordinary_user_fills_directories_that_deny_their_owner(run_rootless: Rootless, rootless_dir: Path) -> None:
    """Fedora's /usr/bin has mode 0555: it is filled, and has it afterwards."""
    assert run_rootless(_closed_directories, rootless_dir) == {
        ".": 0o555,
        "bin": 0o555,
        "bin/deep": 0o755,
        "bin/deep/er": 0o511,
        "files": 4,
    }


@pytest.mark.root
def test_an_empty_capability_is_none(fresh_dir: Path) -> None:
    """The kernel takes one, and cannot read it again: a diff of the file would fail for ever."""
    empty = pax({b"SCHILY.xattr.security.capability": b"", b"SCHILY.xattr.user.k": b"v"})
    unpack(fresh_dir / "root", empty + file(b"f"), empty + directory(b"d"))
    for name in ("f", "d"):
        assert os.listxattr(fresh_dir / "root" / name) == ["user.k"]
        os.setxattr(fresh_dir / "root" / name, "security.capability", b"")  # by a program in a clone
        assert attributes.read(os.fsencode(fresh_dir / "root" / name)) == {b"user.k": b"v"}
    unpack(fresh_dir / "root", empty + directory(b"d"))


@pytest.mark.root
@pytest.mark.driver("btrfs")
def test_properties_of_the_file_system_stay(btrfs_mount: Path) -> None:
    root = btrfs_mount / "compressed"
    root.mkdir()
    subprocess.run(["btrfs", "property", "set", root, "compression", "zstd"], check=True)
    unpack(root, directory(b"d"), pax({b"SCHILY.xattr.user.k": b"v"}) + file(b"d/f", b"x"))
    assert sorted(os.listxattr(root / "d/f")) == ["btrfs.compression", "user.k"]
    seen = attributes.from_disk(attributes.read(os.fsencode(root / "d/f")), Whiteouts.REMOVE)
    assert seen == {b"user.k": b"v"}, "and are no part of a layer"
