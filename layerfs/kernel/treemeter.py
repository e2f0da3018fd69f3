"""Measure what a directory tree takes on disk, wholly or beyond another one."""

from __future__ import annotations

import errno
import os
import stat

from layerfs.contract import Usage
from layerfs.kernel.descent import Descent

_BLOCK = 512
"""Bytes of a unit of ``st_blocks`` (stat(3type))."""
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""A name vanished, or became something else, between reading the directory and looking at it."""


class Meter:
    """One measurement of ``upper``; ``lower`` is the tree whose equal entries do not count."""

    def __init__(self, upper: Descent, lower: Descent | None) -> None:
        self._upper = upper
        self._lower = lower
        self._seen: set[tuple[int, int]] = set()
        self._size = 0
        self._inodes = 0

    def total(self) -> Usage:
        """Walk the whole tree and return the sum."""
        root = os.fstat(self._upper.fd)
        if self._lower is None or not _same(root, os.fstat(self._lower.fd)):
            self._count(root)
        pending = [self._measure()]
        while pending:
            if pending[-1]:
                if self._down(pending[-1].pop()):
                    pending.append(self._measure())
                continue
            pending.pop()
            if pending:
                self._up()
        return Usage(self._size, self._inodes)

    def _beside(self) -> int:
        """Return the descriptor of the lower's directory of the same path, or -1 where it has none."""
        return self._lower.fd if self._lower is not None and self._lower.depth == self._upper.depth else -1

    def _measure(self) -> list[bytes]:
        """Count what the present directory holds; return the names of its directories."""
        directories: list[bytes] = []
        beside = self._beside()
        with os.scandir(self._upper.fd) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    directories.append(os.fsencode(entry.name))
                if beside < 0 or not _is_in(beside, entry.name, status):
                    self._count(status)
        return directories

    def _down(self, name: bytes) -> bool:
        beside = self._beside()
        try:
            self._upper.down(name)
        except OSError as error:
            if error.errno in _GONE or error.errno == errno.EXDEV:
                return False
            raise
        if beside >= 0 and self._lower is not None:
            try:
                self._lower.down(name)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
        return True

    def _up(self) -> None:
        if self._beside() >= 0 and self._lower is not None:
            self._lower.up()
        self._upper.up()

    def _count(self, status: os.stat_result) -> None:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if identity in self._seen:
                return
            self._seen.add(identity)
        self._size += status.st_blocks * _BLOCK
        self._inodes += 1


def _is_in(directory: int, name: str, status: os.stat_result) -> bool:
    try:
        return _same(status, os.stat(name, dir_fd=directory, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    if (one.st_mode, one.st_uid, one.st_gid, one.st_mtime_ns) != (
        other.st_mode,
        other.st_uid,
        other.st_gid,
        other.st_mtime_ns,
    ):
        return False
    return stat.S_ISDIR(one.st_mode) or (one.st_size, one.st_rdev) == (other.st_size, other.st_rdev)
