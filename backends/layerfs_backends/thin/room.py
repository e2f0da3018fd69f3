"""Whether a pool has room for more, and what to say where it has none."""

from __future__ import annotations

import os
from pathlib import Path

from layerfs.errors import LayerfsError, NoSpace, OperationFailed
from layerfs_backends.thin.plan import Fill, low_water


class Room:
    """The room in the pool of a driver's directory; ``files`` tells that the pool lies in files there."""

    def __init__(self, root: Path, *, files: bool) -> None:
        self._root = root
        self._files = files

    def check(self, fill: Fill) -> None:
        """Raise `NoSpace` before the pool is full, or the disk that its files are on."""
        short = fill.free < low_water(fill.total) or fill.metadata_free < low_water(fill.metadata_total)
        if fill.mode != "rw" or short:
            raise self.full(fill)
        if self._files:
            disk = os.statvfs(self._root)
            if disk.f_bavail * disk.f_frsize < low_water(disk.f_blocks * disk.f_frsize):
                raise NoSpace(
                    f"the disk of {self._root} is nearly full, and the pool is a file on it",
                    hint="free some space there, or remove clones and images (`layerfs prune`)",
                )

    def check_complete(self, fill: Fill | None) -> None:
        """Raise where what a mount has written may not be there: an unmount does not tell.

        A full pool calls itself writable again at the next flush if a block is left, so a rest of one part in a hundred
        counts as none. No ``fill`` is that of a pool that is gone.
        """
        if fill is None or fill.mode != "rw" or fill.free < fill.total // 100:
            raise self.full(fill)

    def full(self, fill: Fill | None) -> LayerfsError:
        """Return the error for a pool that is full, or failed."""
        if fill is None or fill.mode in {"Fail", "needs_check", "ro"}:
            return OperationFailed(
                f"the thin pool of {self._root} has failed ({fill.mode if fill else 'gone'})",
                hint="look into dmesg; `layerfs store close`, then thin_check and thin_repair on its metadata",
            )
        return NoSpace(
            f"the thin pool of {self._root} is nearly full: {fill.free >> 20} MiB of {fill.total >> 20} are free,"
            f" {fill.metadata_free >> 20} of {fill.metadata_total >> 20} for its metadata",
            hint="remove clones and images (`layerfs prune` shows what nobody uses)",
        )
