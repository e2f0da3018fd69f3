"""The inventories of snapshots on the disk: a damaged one is none, whatever it says of itself."""

from __future__ import annotations

from pathlib import Path

import layerfs
from layerfs.sealing import inventory
from layerfs.sealing.book import Book

_HEADER = 18
"""The most bytes that the header of a zstd frame has (RFC 8878, section 3.1.1)."""


def test_what_another_check_is_writing_stays(tmp_path: Path) -> None:
    """Two checks that read contents may run at once; what one left that died is deleted."""
    with layerfs.open(tmp_path / "store", driver="copy") as store:
        with layerfs.open(tmp_path / "store") as other:
            token = other.snapshotter.owner
            new = store.path / "seals" / f".{token}.0123456789abcdef"
            new.parent.mkdir()
            new.touch()
            Book(store._parts).forget(set())
            assert new.exists()
        Book(store._parts).forget(set())
        assert not new.exists()


def test_an_inventory_with_a_damaged_header_is_none(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"file{number}").write_bytes(bytes([number]))
    found = inventory.take(tmp_path)
    with layerfs.open(tmp_path / "store", driver="copy") as store:
        store.snapshotter.prepare("key")
        store.snapshotter.commit("name", "key")
        snapshot_id = store.snapshotter.snapshot("name").id
        book = Book(store._parts)
        book.put("name", found, checked=1)
        place, digest = store.path / "seals" / str(snapshot_id), inventory.digest(found)
        assert book.inventory(snapshot_id, digest) == found
        data = place.read_bytes()
        for bit in range(8 * _HEADER):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            place.write_bytes(damaged)
            assert book.inventory(snapshot_id, digest) in (None, found)
        place.write_bytes(data[:-5])
        assert book.inventory(snapshot_id, digest) is None
