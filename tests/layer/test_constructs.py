"""Every construct of the tar format and of layers comes to the tree that GNU tar and umoci make of it.

Where one of them does not know a construct, or is known to get it wrong, the case says so, and the other one judges.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import zstandard

from layerfs.contract import LayerRoot, Whiteouts
from layerfs.layer.apply import apply
from tests.layer import trees
from tests.layer.archives import END, GNU, directory, extension, file, hard_link, header, pad, pax, record, symlink
from tests.support.images import write_layout

pytestmark = pytest.mark.root

V7 = bytes(8)


def base256(value: int, width: int) -> bytes:
    """Write a number as GNU tar does where octal digits do not do."""
    return ((1 << (8 * width - 1)) | (value & ((1 << (8 * width - 1)) - 1))).to_bytes(width, "big")


def gnu_sparse(name: bytes, data: bytes, size: int, *extents: tuple[int, int]) -> bytes:
    """Pack a file in old GNU's sparse format, with as many blocks for its map as it takes."""
    made = bytearray(header(name, b"S", size=len(data), magic=GNU))
    pairs = [b"%011o\0%011o\0" % extent for extent in extents]
    made[386:482] = b"".join(pairs[:4]).ljust(96, b"\0")
    made[482] = len(pairs) > 4
    made[483:495] = b"%011o\0" % size
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    rest = pairs[4:]
    blocks = [b"".join(rest[start : start + 21]) for start in range(0, len(rest), 21)]
    more = b"".join(
        block.ljust(504, b"\0") + bytes([number < len(blocks)]) + bytes(7) for number, block in enumerate(blocks, 1)
    )
    return bytes(made) + more + pad(data)


def repeated(*records: tuple[bytes, bytes]) -> bytes:
    """Pack a PAX header in which keys may come more than once."""
    return extension(b"x", b"".join(record(key, value) for key, value in records))


CAPABILITY = b"\x01\x00\x00\x02" + b"\x00\x04" + bytes(14)
ACL = b"\x02\0\0\0" + b"".join(
    tag.to_bytes(2, "little") + mode.to_bytes(2, "little") + number.to_bytes(4, "little")
    for tag, mode, number in (
        (1, 6, -1 % (1 << 32)),
        (2, 7, 7),
        (4, 4, -1 % (1 << 32)),
        (16, 7, (1 << 32) - 1),
        (32, 4, (1 << 32) - 1),
    )
)
# GNU tar starts each extent in a block of its own, others do not: so each fills its blocks, as those of GNU tar do.
SPARSE = b"a" * 512 + b"c" * 512
MAP = (b"3\n0\n512\n8192\n512\n9294\n0\n").ljust(512, b"\0")  # the last one tells the length, as GNU tar has it
MANY = (*((number * 8192, 512) for number in range(30)), (1 << 20, 0))


@dataclass(frozen=True)
class Construct:
    """Layers, the lowest first, and who can judge what becomes of them."""

    layers: tuple[bytes, ...]
    tar: bool = True
    umoci: bool = True
    times: bool = True
    """Whether the times of directories count."""


def one(*entries: bytes, tar: bool = True, umoci: bool = True) -> Construct:
    return Construct((b"".join(entries) + END,), tar, umoci)


def stacked(*layers: tuple[bytes, ...], times: bool = True) -> Construct:
    """Stack layers, of which tar knows nothing: it takes whiteouts for files."""
    return Construct(tuple(b"".join(entries) + END for entries in layers), tar=False, times=times)


LOWER = (
    directory(b"d"),
    file(b"d/f", b"1"),
    directory(b"d/s", 0o700),
    file(b"d/s/g", b"2"),
    symlink(b"l", b"d"),
    file(b"e", b"3"),
)

CONSTRUCTS = {
    "Unix V7": one(header(b"d/", b"\0", mode=0o755, magic=V7), header(b"d/f", b"\0", size=1, magic=V7) + pad(b"x")),
    "contiguous file": one(header(b"f", b"7", size=1) + pad(b"x"), umoci=False),
    "ustar prefix": one(directory(b"p"), directory(b"p/" + b"q" * 90), file(b"f", b"x", prefix=b"p/" + b"q" * 90)),
    "directory with and without a slash": one(directory(b"a/"), directory(b"b"), directory(b"./c/")),
    "leading dot and slash": one(
        directory(b"./"), directory(b"./d"), file(b"./d/f", b"x"), file(b"d//g"), file(b"./h"), directory(b"d")
    ),
    "directories not listed": one(file(b"x/y/z", b"x"), tar=False, umoci=False),
    "GNU long name": one(extension(b"L", b"n" * 180 + b"\0"), file(b"n" * 100, b"x")),
    "GNU long link": one(extension(b"K", b"t" * 180 + b"\0"), symlink(b"l", b"t" * 100)),
    "GNU long name and link": one(
        file(b"x", b"x"),
        extension(b"K", b"./" * 60 + b"x\0"),
        extension(b"L", b"n" * 180 + b"\0"),
        hard_link(b"n", b"t"),
    ),
    "GNU long directory": one(
        directory(b"a" * 90), extension(b"L", b"a" * 90 + b"/" + b"b" * 90 + b"/\0"), directory(b"a")
    ),
    "PAX path": one(pax({b"path": b"n" * 200}), file(b"short", b"x")),
    "PAX path with a line feed": one(pax({b"path": b"a\nb = 1\n"}), file(b"short", b"x")),
    "PAX linkpath": one(pax({b"linkpath": b"t" * 200}), symlink(b"l", b"short")),
    "PAX size": one(pax({b"size": b"700"}), header(b"f", size=0) + pad(b"x" * 700), file(b"g", b"y")),
    "PAX owners": one(pax({b"uid": b"3000000", b"gid": b"4000000"}), file(b"f", b"x")),
    "PAX times with fractions": one(pax({b"mtime": b"1234567890.123456789", b"atime": b"1.5"}), file(b"f", b"x")),
    "PAX time before 1970": one(pax({b"mtime": b"-100"}), file(b"f", b"x")),
    "PAX record taken back": one(
        pax({b"mtime": b"5"}, b"g"), pax({b"mtime": b""}), file(b"f", b"x"), tar=False, umoci=False
    ),
    "PAX record of someone": one(pax({b"comment": b"c", b"VENDOR.key": b"v"}), file(b"f", b"x")),
    "PAX global header": one(pax({b"mtime": b"77"}, b"g"), file(b"f", b"x"), file(b"g", b"y"), umoci=False),
    "PAX global comment": one(pax({b"comment": b"c"}, b"g"), file(b"f", b"x"), umoci=False),
    "SCHILY xattr": one(pax({b"SCHILY.xattr.user.k": b"v=\n", b"SCHILY.xattr.trusted.t": b"\0\xff"}), file(b"f", b"x")),
    "SCHILY xattr of a directory": one(pax({b"SCHILY.xattr.user.k": b"v"}), directory(b"d"), file(b"d/f")),
    "LIBARCHIVE xattr": one(pax({b"LIBARCHIVE.xattr.user.k%20": b"dg=="}), file(b"f", b"x"), tar=False, umoci=False),
    "file capability": one(
        pax({b"SCHILY.xattr.security.capability": CAPABILITY}), file(b"f", b"x", mode=0o755, uid=1000)
    ),
    "access control list": one(pax({b"SCHILY.xattr.system.posix_acl_access": ACL}), file(b"f", b"x", mode=0o674)),
    "base-256 owner": one(file(b"f", b"x", uid=base256(3_000_000, 8), gid=base256(1 << 22, 8))),
    "base-256 size": one(header(b"f", size=base256(3, 12)) + pad(b"xyz"), file(b"g", b"y")),
    "base-256 time": one(file(b"f", b"x", mtime=base256(1 << 33, 12))),
    "base-256 time before 1970": one(file(b"f", b"x", mtime=base256(-5, 12))),
    "numbers with blanks around": one(file(b"f", b"x", mode=b"   644 \0", uid=b"     5 \0", gid=b"      7\0")),
    "numbers without an end": one(file(b"f", b"x", mode=b"00000644", uid=b"00000005")),
    "set-user-id of another owner": one(
        file(b"f", b"x", mode=0o6755, uid=1000, gid=1000), directory(b"d", 0o2770, gid=5)
    ),
    "sticky directory": one(directory(b"d", 0o1777), file(b"d/f", b"x", uid=9)),
    "symbolic link": one(symlink(b"l", b"/nowhere/at all"), symlink(b"m", b"../up")),
    "hard link": one(file(b"f", b"x"), hard_link(b"h", b"f"), hard_link(b"i", b"./h")),
    "hard link with the size of its target": one(file(b"f", b"x"), header(b"h", b"1", link=b"f", size=1), file(b"g")),
    "hard link to a symbolic link": one(symlink(b"l", b"t"), hard_link(b"h", b"l")),
    "devices and FIFO": one(
        header(b"c", b"3", major=1, minor=3, mode=0o666),
        header(b"b", b"4", major=7, minor=200, gid=6),
        header(b"p", b"6", mode=0o622),
    ),
    "file over file": one(file(b"f", b"long"), file(b"f", b"x", mode=0o600)),
    "file over link": one(file(b"t", b"t"), symlink(b"l", b"t"), file(b"l", b"x")),
    "directory over directory": one(directory(b"d", 0o700), file(b"d/f", b"x"), directory(b"d", 0o755, uid=4)),
    "times of directories last": one(
        directory(b"d", mtime=5), file(b"d/f", b"x"), directory(b"d/e", mtime=7), file(b"d/e/g")
    ),
    "names that are no UTF-8": one(file(b"\xff\xfe", b"x"), directory(b"\x80"), file(b"\x80/ \\t\x01", b"y")),
    "sparse 0.0": one(
        repeated(
            (b"GNU.sparse.size", b"9294"),
            (b"GNU.sparse.numblocks", b"3"),
            (b"GNU.sparse.offset", b"0"),
            (b"GNU.sparse.numbytes", b"512"),
            (b"GNU.sparse.offset", b"8192"),
            (b"GNU.sparse.numbytes", b"512"),
            (b"GNU.sparse.offset", b"9294"),
            (b"GNU.sparse.numbytes", b"0"),
        ),
        file(b"f", SPARSE),
    ),
    "sparse 0.1": one(
        pax(
            {
                b"GNU.sparse.size": b"9294",
                b"GNU.sparse.numblocks": b"3",
                b"GNU.sparse.map": b"0,512,8192,512,9294,0",
                b"GNU.sparse.name": b"f",
            }
        ),
        file(b"GNUSparseFile.1/f", SPARSE),
    ),
    "sparse 1.0": one(
        pax(
            {
                b"GNU.sparse.major": b"1",
                b"GNU.sparse.minor": b"0",
                b"GNU.sparse.realsize": b"9294",
                b"GNU.sparse.name": b"f",
            }
        ),
        file(b"GNUSparseFile.1/f", MAP + SPARSE),
    ),
    "sparse of old GNU": one(
        gnu_sparse(b"f", SPARSE, 9294, (0, 512), (8192, 512), (9294, 0)), file(b"g", b"y"), umoci=False
    ),
    "sparse of old GNU with a long map": one(
        gnu_sparse(b"f", b"x" * 512 * 30, 1 << 20, *MANY), file(b"g", b"y"), umoci=False
    ),
    "whiteout": stacked(LOWER, (file(b"d/.wh.f"), file(b".wh.e"))),
    "whiteout of a directory": stacked(LOWER, (file(b".wh.d"),)),
    "whiteout of nothing": stacked(LOWER, (file(b"d/.wh.none"), directory(b"n"), file(b"n/.wh.x"))),
    "whiteout before what replaces it": stacked(LOWER, (file(b".wh.d"), directory(b"d", 0o711), file(b"d/new"))),
    "whiteout behind what replaces it": stacked(
        LOWER, (directory(b"d", 0o711), file(b"d/new"), file(b".wh.d")), times=False
    ),
    "opaque before its siblings": stacked(LOWER, (directory(b"d"), file(b"d/.wh..wh..opq"), file(b"d/new", b"n"))),
    "opaque behind its siblings": stacked(LOWER, (directory(b"d"), file(b"d/new", b"n"), file(b"d/.wh..wh..opq"))),
    "opaque further down": stacked(LOWER, (directory(b"d"), directory(b"d/s"), file(b"d/s/.wh..wh..opq"))),
    "directory over a lower file": stacked(LOWER, (directory(b"e"), file(b"e/f", b"x"))),
    "file over a lower directory": stacked(LOWER, (file(b"d", b"x"),)),
    "link over a lower directory": stacked(LOWER, (symlink(b"d", b"e"),)),
    "attributes of a lower directory": stacked(LOWER, (directory(b"d", 0o711, uid=8, mtime=9),)),
    "hard link to a lower file": stacked(LOWER, (hard_link(b"h", b"d/f"),)),
    "file through a lower link": stacked(LOWER, (file(b"l/new", b"x"),)),
}


def ours(top: Path, construct: Construct) -> dict[bytes, trees.Seen]:
    root = top / "ours"
    root.mkdir()
    for number, layer in enumerate(construct.layers):
        packed = gzip.compress(layer) if number % 2 else zstandard.ZstdCompressor().compress(layer)
        (top / "layer").write_bytes(packed)
        with (top / "layer").open("rb") as stream:
            apply(stream, LayerRoot(root, Whiteouts.REMOVE), base=number == 0)
    return _seen(root)


def tars(top: Path, construct: Construct) -> dict[bytes, trees.Seen]:
    root = top / "tar"
    root.mkdir()
    for layer in construct.layers:
        options = ("--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*")
        subprocess.run(["tar", "-xpf", "-", *options, "-C", root], input=layer, check=True, capture_output=True)
    return _seen(root)


def umocis(top: Path, construct: Construct) -> dict[bytes, trees.Seen]:
    write_layout(top / "oci", construct.layers, name="x")
    subprocess.run(["umoci", "unpack", "--image", f"{top}/oci:x", top / "bundle"], check=True, capture_output=True)
    return _seen(top / "bundle/rootfs")


def _seen(root: Path) -> dict[bytes, trees.Seen]:
    seen = trees.describe(root)
    del seen[b"."]
    return seen


def _difference(construct: Construct, one: dict[bytes, trees.Seen], other: dict[bytes, trees.Seen]) -> object:
    for seen in () if construct.times else (one, other):
        seen.update({name: replace(found, mtime=0) for name, found in seen.items() if found.kind == "dir"})
    return trees.difference(one, other)


@pytest.mark.parametrize("name", [name for name, construct in CONSTRUCTS.items() if construct.tar])
def test_the_tree_is_that_of_gnu_tar(name: str, fresh_dir: Path) -> None:
    assert not _difference(CONSTRUCTS[name], ours(fresh_dir, CONSTRUCTS[name]), tars(fresh_dir, CONSTRUCTS[name]))


@pytest.mark.parametrize("name", [name for name, construct in CONSTRUCTS.items() if construct.umoci])
def test_the_tree_is_that_of_umoci(name: str, fresh_dir: Path) -> None:
    if shutil.which("umoci") is None:
        pytest.skip("umoci is not installed")
    assert not _difference(CONSTRUCTS[name], ours(fresh_dir, CONSTRUCTS[name]), umocis(fresh_dir, CONSTRUCTS[name]))


def test_what_neither_of_them_knows(fresh_dir: Path) -> None:
    """Directories that are not listed are root's and of 1970, PAX values can be taken back, LIBARCHIVE has xattrs."""
    neither = {name for name, construct in CONSTRUCTS.items() if not construct.tar and not construct.umoci}
    assert neither == {"directories not listed", "PAX record taken back", "LIBARCHIVE xattr"}
    seen: dict[bytes, trees.Seen] = {}
    for number, name in enumerate(sorted(neither)):
        place = fresh_dir / str(number)
        place.mkdir()
        seen |= {b"%d/%s" % (number, path): one for path, one in ours(place, CONSTRUCTS[name]).items()}
    assert seen[b"0/f"].xattrs == (("user.k ", b"v"),)
    assert seen[b"1/f"].mtime == 1_600_000_000 * 10**9
    for path in (b"2/x", b"2/x/y"):
        assert (seen[path].mode, seen[path].owner, seen[path].mtime) == (0o755, (0, 0), 0)
