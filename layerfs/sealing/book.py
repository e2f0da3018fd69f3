"""The seals of snapshots that came from no blob: clones' snapshots, and what containerd commits.

::

    <store>/seals/<id>     the inventory of a snapshot, compressed by zstd, so that a damaged file can be named

The digest of the inventory is in the database. Nothing waits for the disk: a seal that a power cut took is made anew by
the next check that reads contents.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, RawIOBase
from pathlib import Path
from stat import S_ISREG
from typing import cast

from layerfs.contract import SnapshotId, id_of
from layerfs.errors import os_error
from layerfs.metadata import seals
from layerfs.metadata.seals import Seal
from layerfs.parts import Parts
from layerfs.sealing import inventory
from layerfs.sealing.inventory import Inventory

_SEALS = "seals"
_NEW = re.compile(r"\.([0-9]{1,18})\.[0-9a-f]{16}")
"""The name of an inventory in the making: the token of the process, and a number."""


class Book:
    """The seals of one store."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._root = parts.path / _SEALS

    def put(self, name: str, found: Inventory, checked: int) -> None:
        """Seal a committed snapshot with an inventory that was just taken of it."""
        size = sum(entry.size for path, entry in found.items() if S_ISREG(entry.mode) and entry.linked in {"", path})
        self._write(self._parts.snapshotter.snapshot(name).id, found)
        with self._parts.database.write(durable=False) as connection:
            seals.put(connection, name, Seal(len(found), size, inventory.digest(found), checked))

    def inventory(self, snapshot_id: SnapshotId, digest: str) -> Inventory | None:
        """Return what a snapshot held when it was sealed; None where that list is gone, or another."""
        from zstandard import ZstdDecompressor, ZstdError  # noqa: PLC0415  only a check needs it

        try:
            # Line by line: a damaged file may say of itself that it has more bytes than there is memory.
            with (
                open(self._root / str(snapshot_id), "rb") as file,
                ZstdDecompressor().stream_reader(file) as stream,
                BufferedReader(cast("RawIOBase", stream)) as lines,
            ):
                found = inventory.from_lines(lines)
        except (OSError, ZstdError, ValueError, TypeError):
            return None
        return found if inventory.digest(found) == digest else None

    def forget(self, kept: set[SnapshotId]) -> None:
        """Delete the inventories of snapshots that are gone, and what processes left that died over one."""
        with suppress(FileNotFoundError):
            for name in os.listdir(self._root):
                writer = _NEW.fullmatch(name)
                if id_of(name) not in kept and not (writer and self._parts.snapshotter.is_alive(int(writer[1]))):
                    (self._root / name).unlink(missing_ok=True)

    @contextmanager
    def shown(self, name: str) -> Iterator[Path]:
        """Give what a committed snapshot holds: its own directory as it lies on the disk, else its mounted tree."""
        root = self._parts.layer_root(name)
        if root is not None:
            yield root.path
            return
        with self._parts.tree(name) as tree:
            yield tree

    def _write(self, snapshot_id: SnapshotId, found: Inventory) -> None:
        from zstandard import ZstdCompressor  # noqa: PLC0415  as above

        data = ZstdCompressor().compress(b"".join(inventory.to_lines(found)))
        new = self._root / f".{self._parts.snapshotter.owner}.{os.urandom(8).hex()}"
        try:
            self._root.mkdir(mode=0o700, exist_ok=True)
            new.write_bytes(data)
            new.replace(self._root / str(snapshot_id))
        except OSError as error:
            new.unlink(missing_ok=True)
            raise os_error(f"seal snapshot {snapshot_id}", error) from error
