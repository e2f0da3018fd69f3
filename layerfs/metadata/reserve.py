"""Room kept for a full disk: bytes and inodes that are given up when removing something needs them.

::

    <store>/reserve/space      bytes that nobody else can take
    <store>/reserve/<number>   empty files, each an inode

Deleting a row takes room before it gives any back: SQLite makes a write-ahead log and its index, two files, and appends
the changed pages. On a disk without a byte or an inode, whoever filled it, nothing could be removed, nor the store even
be opened. The reserve is made again once there is plenty of room (`Reserve.keep`).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from layerfs.kernel import syscalls

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The errors that mean that a disk, its inodes or a quota is full."""

_BYTES = 1 << 20
"""The log's index takes 32 KiB, each removal some five pages of 4 KiB; blobs and layers give theirs back meanwhile."""
_INODES = 8
_PLENTY = 16
"""How many times the reserve must be free before it is made."""
_PROBE = 64 << 10
"""Bytes to write to see whether there is room: more than the log's index."""


class Reserve:
    """The reserve in a directory."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._space = place / "space"

    def keep(self) -> None:
        """Make the reserve where it is missing and there is plenty of room; no error is one."""
        if self._space.exists():
            return
        with suppress(OSError):
            self._place.mkdir(mode=0o700, exist_ok=True)
            if self._is_short(_PLENTY):
                return
            for number in range(_INODES):
                (self._place / str(number)).touch(mode=0o600)
            self._take_space()

    def give_up(self) -> bool:
        """Free what is kept; tell whether there was something."""
        found = False
        with suppress(OSError):
            for name in os.listdir(self._place):
                (self._place / name).unlink(missing_ok=True)
                found = True
        return found

    def give_up_if_full(self) -> None:
        """Free what is kept where there is no more room than that beside it."""
        with suppress(OSError):
            if self._is_short(1):
                self.give_up()

    def _take_space(self) -> None:
        new = self._place / "new"
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                syscalls.fallocate(descriptor, 0, 0, _BYTES)
            finally:
                os.close(descriptor)
            new.rename(self._space)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def _is_short(self, times: int) -> bool:
        """Tell whether less is free than so many times the reserve, for whom the file system lets use it."""
        found = os.statvfs(self._place)
        blocks, inodes = (found.f_bfree, found.f_ffree) if os.geteuid() == 0 else (found.f_bavail, found.f_favail)
        # A file system that makes inodes as they are needed, as btrfs does, counts none.
        return blocks * found.f_frsize < times * _BYTES or (found.f_files > 0 and inodes < times * _INODES)


def is_full(directory: Path) -> bool:
    """Tell whether there is no room for a small file, by trying: SQLite does not tell why it could not make one."""
    try:
        descriptor = os.open(directory, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        try:
            syscalls.fallocate(descriptor, 0, 0, _PROBE)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.errno in FULL
    return False
