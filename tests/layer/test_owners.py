"""Layers under an id map: the owners on disk are those outside, those in layers the ones inside."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from layerfs.contract import LayerRoot, Whiteouts
from layerfs.errors import FailedPrecondition, InvalidArgument, LayerfsError, Unsupported
from layerfs.kernel.userns import IdMap, IdRange
from layerfs.layer.apply import apply
from layerfs.layer.changes import changes
from layerfs.layer.compression import Compression
from layerfs.layer.owners import Owners, format_ranges, parse_ranges
from layerfs.layer.tar import REGULAR, Header
from layerfs.layer.write import write_layer
from tests.layer import trees
from tests.layer.archives import END, directory, file, hard_link, pax, symlink

MAP = IdMap((IdRange(0, 100_000, 1000), IdRange(1000, 7, 1)), (IdRange(0, 200_000, 65536),))


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Pack an access control list of (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
INSIDE = acl((1, 6, NOBODY), (2, 6, 5), (4, 4, NOBODY), (8, 4, 7), (16, 6, NOBODY), (32, 0, NOBODY))
OUTSIDE = acl((1, 6, NOBODY), (2, 6, 100_005), (4, 4, NOBODY), (8, 4, 200_007), (16, 6, NOBODY), (32, 0, NOBODY))
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""cap_net_bind_service in the form without a root id."""
ROOTED = struct.pack("<IIIIII", 0x03000001, 1 << 10, 0, 0, 0, 1000)


def xattr(name: bytes, value: bytes) -> bytes:
    return pax({b"SCHILY.xattr." + name: value})


LAYER = b"".join(
    [
        directory(b"listed", uid=5, gid=6),
        file(b"implied/user", b"x", uid=1000, gid=1000),
        symlink(b"link", b"x"),
        hard_link(b"hard", b"implied/user"),
        xattr(b"system.posix_acl_access", INSIDE) + file(b"acl", b"x"),
        xattr(b"system.posix_acl_default", INSIDE) + directory(b"acls"),
        xattr(b"security.capability", CAPABILITY) + file(b"capable", b"x"),
        xattr(b"security.capability", ROOTED) + file(b"rooted", b"x"),
        END,
    ]
)


def _apply(root: Path, data: bytes, owners: Owners | None, whiteouts: Whiteouts = Whiteouts.REMOVE) -> None:
    root.mkdir()
    apply(io.BytesIO(data), LayerRoot(root, whiteouts), base=True, owners=owners)


def _write(root: Path, owners: Owners | None) -> bytes:
    out = io.BytesIO()
    write_layer(
        changes(None, root), LayerRoot(root, Whiteouts.REMOVE), out, compression=Compression.NONE, owners=owners
    )
    return out.getvalue()


@pytest.mark.root
@pytest.mark.parametrize("whiteouts", list(Whiteouts))
def test_owners_are_those_outside(fresh_dir: Path, whiteouts: Whiteouts) -> None:
    root = fresh_dir / "mapped"
    _apply(root, LAYER, Owners(MAP), whiteouts)
    seen = trees.describe(root)
    assert {name: file.owner for name, file in seen.items()} == {
        b".": (100_000, 200_000),
        b"listed": (100_005, 200_006),
        b"implied": (100_000, 200_000),
        b"implied/user": (7, 201_000),
        b"hard": (7, 201_000),
        b"link": (100_000, 200_000),
        b"acl": (100_000, 200_000),
        b"acls": (100_000, 200_000),
        b"capable": (100_000, 200_000),
        b"rooted": (100_000, 200_000),
    }
    assert dict(seen[b"acl"].xattrs)["system.posix_acl_access"] == OUTSIDE
    assert dict(seen[b"acls"].xattrs)["system.posix_acl_default"] == OUTSIDE
    assert dict(seen[b"capable"].xattrs)["security.capability"] == CAPABILITY
    assert dict(seen[b"rooted"].xattrs)["security.capability"] == ROOTED[:-4] + struct.pack("<I", 7)


@pytest.mark.root
def test_a_layer_written_back_is_that_of_a_store_without_a_map(fresh_dir: Path) -> None:
    for name, owners in (("plain", None), ("mapped", Owners(MAP))):
        _apply(fresh_dir / name, LAYER, owners)
        os.utime(fresh_dir / name, ns=(0, 0))
    assert _write(fresh_dir / "plain", None) == _write(fresh_dir / "mapped", Owners(MAP))


@pytest.mark.root
@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (file(b"f", uid=1001), "user id 1001"),
        (file(b"f", gid=65536), "group id 65536"),
        (directory(b"d", uid=1001), "user id 1001"),
        (xattr(b"system.posix_acl_access", acl((2, 6, 1001))) + file(b"f"), "user id 1001 of an access"),
        (xattr(b"system.posix_acl_default", acl((8, 6, 70_000))) + directory(b"d"), "group id 70000 of an access"),
        (xattr(b"security.capability", ROOTED[:-4] + struct.pack("<I", 2000)) + file(b"f"), "user id 2000"),
    ],
)
def test_ids_without_a_counterpart_are_refused(fresh_dir: Path, entry: bytes, what: str) -> None:
    with pytest.raises(Unsupported, match=what) as caught:
        _apply(fresh_dir / "root", entry + END, Owners(MAP))
    assert "--uidmap" in (caught.value.hint or "")


@pytest.mark.root
def test_an_access_control_list_that_is_none_is_the_kernels_to_refuse(fresh_dir: Path) -> None:
    with pytest.raises(LayerfsError):
        _apply(fresh_dir / "root", xattr(b"system.posix_acl_access", INSIDE[:-1]) + file(b"f") + END, Owners(MAP))


@pytest.mark.root
def test_owners_on_disk_without_a_counterpart_are_refused(fresh_dir: Path) -> None:
    root = fresh_dir / "root"
    _apply(root, LAYER, Owners(MAP))
    (root / "by-host-root").touch()
    with pytest.raises(FailedPrecondition, match="'by-host-root' has the user id 0"):
        _write(root, Owners(MAP))


@pytest.mark.parametrize(
    "texts", [["0:0"], ["a:0:1"], ["0:0:0"], ["-1:0:1"], ["0:0:4294967296"], ["0:5:4294967295"], [""], ["0:0:1:1"]]
)
def test_what_is_no_range_is_refused(texts: Sequence[str]) -> None:
    with pytest.raises(InvalidArgument, match="no range"):
        parse_ranges(texts)


@pytest.mark.parametrize("texts", [["0:100:10", "9:200:1"], ["0:100:10", "10:109:1"]])
def test_ranges_may_not_overlap_on_either_side(texts: Sequence[str]) -> None:
    with pytest.raises(InvalidArgument, match="two ranges"):
        parse_ranges(texts)


def test_a_map_without_root_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no root"):
        Owners(IdMap((IdRange(1, 1, 1),), (IdRange(0, 0, 1),)))


def test_ranges_are_written_as_they_are_read() -> None:
    assert parse_ranges(format_ranges(MAP.users).split()) == MAP.users


@pytest.mark.parametrize(("inside", "outside"), [(0, 100_000), (999, 100_999), (1000, 7)])
def test_both_directions_undo_each_other(inside: int, outside: int) -> None:
    owners = Owners(MAP)
    entry = Header(b"f", REGULAR, 0o644, inside, 0, 0, 0, b"", 0, 0, 0)
    (unpacked,) = owners.unpacked([entry])
    assert (unpacked.uid, unpacked.gid) == (outside, 200_000)
    packed = owners.packed(unpacked)
    assert (packed.uid, packed.gid) == (inside, 0)
