"""What an upper directory takes, against the quota that it is held to.

The *ledger* never says less than what is there: what it hears of is entered as it happens, and what it does not hear of
only makes room. Before it refuses something it looks at the directory anew, unless nothing has happened since.

The quota is a file, ``{"size": bytes or null, "inodes": number or null}``, that may change at any moment; one that is
gone is no limit. Who counts by it holds a lock beside it, so that others can tell whether it is obeyed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from layerfs.contract import NO_QUOTA, Quota, Usage
from layerfs_fuse.union.places import fail


def write_quota(place: Path, quota: Quota) -> None:
    """Write a quota down, all of it or nothing, so that it is on the disk."""
    new = place.with_name(f"{place.name}.new")
    with open(new, "w", encoding="ascii") as file:
        json.dump(asdict(quota), file)
        file.flush()
        os.fsync(file.fileno())
    new.rename(place)


def read_quota(place: Path) -> Quota:
    """Return the quota that a file says."""
    try:
        return Quota(**json.loads(place.read_text(encoding="ascii")))
    except FileNotFoundError:
        return NO_QUOTA


def hold(place: Path) -> int:
    """Say that the quota of a file is obeyed, until the descriptor that is returned is closed."""
    descriptor = os.open(place.with_name(f"{place.name}.held"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def is_held(place: Path) -> bool:
    """Tell whether somebody obeys the quota of a file."""
    try:
        descriptor = os.open(place.with_name(f"{place.name}.held"), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


class Ledger:
    """The account of one upper directory; ``measure`` looks at what is there."""

    def __init__(self, place: Path, measure: Callable[[], Usage]) -> None:
        self._place = place
        self._measure = measure
        self._quota = NO_QUOTA
        self._version = (-1, -1)
        self.used = measure()
        self._exact = True

    @property
    def quota(self) -> Quota:
        """Return the quota of now."""
        try:
            status = os.stat(self._place)
        except FileNotFoundError:
            self._version = (-1, -1)
            return NO_QUOTA
        version = (status.st_ino, status.st_mtime_ns)
        if version != self._version:
            self._quota, self._version = read_quota(self._place), version
        return self._quota

    def add(self, size: int, inodes: int = 0) -> None:
        """Enter what came, or went."""
        if size or inodes:
            self.used = Usage(self.used.size + size, self.used.inodes + inodes)
            self._exact = False

    def doubt(self) -> None:
        """Note that something may have gone, so that it pays to look."""
        self._exact = False

    def require(self, size: int, inodes: int = 0) -> None:
        """Raise ``OSError`` EDQUOT unless there is room for so many bytes and inodes, which are not entered yet."""
        if not self.fits(size, inodes):
            fail(errno.EDQUOT)

    def fits(self, size: int, inodes: int = 0) -> bool:
        """Tell whether there is room for so much."""
        return self._fits(size, inodes) or (self._look() and self._fits(size, inodes))

    def fits_inode(self) -> bool:
        """Tell whether there is room for one more inode, whatever there is of bytes."""
        return self._fits_inodes(1) or (self._look() and self._fits_inodes(1))

    def room(self) -> int:
        """Return how many bytes may come; below 0 where there is more than the quota says."""
        limit = self.quota.size
        if limit is None:
            return 1 << 62
        self._look()
        return limit - self.used.size

    def _fits(self, size: int, inodes: int) -> bool:
        quota = self.quota
        if quota.size is not None and self.used.size + size > quota.size:
            return False
        return not inodes or self._fits_inodes(inodes)

    def _fits_inodes(self, inodes: int) -> bool:
        limit = self.quota.inodes
        return limit is None or self.used.inodes + inodes <= limit

    def _look(self) -> bool:
        """Count anew; return False where nothing can have changed."""
        if self._exact:
            return False
        self.used, self._exact = self._measure(), True
        return True

    def statvfs(self, below: os.statvfs_result) -> os.statvfs_result:
        """Return the state of a file system with the quota as its size, as xfs and ext4 show project quotas."""
        bsize, frsize, blocks, bfree, bavail, files, ffree, favail, *rest = below
        quota = self.quota
        if quota.size is not None:
            blocks = min(blocks, quota.size // frsize)
            left = max(0, quota.size - self.used.size) // frsize
            bfree, bavail = min(bfree, left), min(bavail, left)
        if quota.inodes is not None:
            files = min(files, quota.inodes) if files else quota.inodes
            left = max(0, quota.inodes - self.used.inodes)
            ffree = favail = min(ffree, left) if below.f_files else left
        return os.statvfs_result((bsize, frsize, blocks, bfree, bavail, files, ffree, favail, *rest))
