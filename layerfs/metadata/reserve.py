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
import mmap
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from stat import S_IMODE

from layerfs.errors import NoSpace
from layerfs.kernel import children, syscalls

HINT = "remove something (`layerfs prune`, `layerfs rm`), or free space or inodes beside the store"
"""What to do about it."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The errors that mean that a disk, its inodes or a quota is full."""

_BYTES = 1 << 20
"""The log's index takes 32 KiB, each removal some five pages of 4 KiB; blobs and layers give theirs back meanwhile."""
_INODES = 8
_PLENTY = 16
"""How many times the reserve is free where nobody needs to look closer."""
_MOMENT, _STEP = 0.5, 0.005
"""Seconds that deleted files take at the most to be free on xfs, and those between two tries."""
_PROBE = 64 << 10
"""Bytes of each file by which is seen whether there is room: more than the log's index."""


class Reserve:
    """The reserve in a directory."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._space = place / "space"
        self._given_up = False

    def keep(self) -> None:
        """Make the reserve where it is missing, or small, and there is plenty of room; no error is one."""
        with suppress(FileNotFoundError):
            if self._space.stat().st_size >= _BYTES:
                return
        with suppress(OSError):
            self._place.mkdir(mode=0o700, exist_ok=True)
            if _has_plenty(self._place):
                self._take(_BYTES)

    def take_back(self) -> None:
        """Make it again of what is left of it, if this process gave it up, before somebody else takes that."""
        if not self._given_up:
            return
        self._given_up = False
        size = _BYTES
        while size >= _PROBE:
            with suppress(OSError):
                self._take(size)
                return
            size //= 2

    def give_up(self) -> bool:
        """Free what is kept; tell whether there was something."""
        found = False
        with suppress(OSError):
            for name in os.listdir(self._place):
                (self._place / name).unlink(missing_ok=True)
                found = self._given_up = True
        return found

    def give_up_for(self, work: Callable[[], None]) -> None:
        """Free what is kept and do ``work``, which had no room; raise `NoSpace` where it still has none.

        xfs frees the inodes of deleted files some moments later, in a thread, and makes no file until then where it has
        no others (Linux, fs/xfs/xfs_icache.c, "Deferred inode inactivation").
        """
        self.give_up()
        until = time.monotonic() + (_MOMENT if _frees_later(self._place.parent) else 0)
        while True:
            try:
                work()
            except NoSpace:
                if time.monotonic() >= until:
                    raise
                time.sleep(_STEP)
            else:
                return

    def give_up_if_full(self) -> None:
        """Free what is kept where nothing else is free."""
        with suppress(OSError):
            if self._space.exists() and not _has_plenty(self._place) and is_full(self._place):
                self.give_up()

    def _take(self, size: int) -> None:
        for number in range(_INODES):
            (self._place / str(number)).touch(mode=0o600)
        new = self._place / "new"
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                syscalls.fallocate(descriptor, 0, 0, size)
            finally:
                os.close(descriptor)
            new.rename(self._space)
        except OSError:
            new.unlink(missing_ok=True)
            raise


def has_small_blocks(directory: Path) -> bool:
    """Tell whether the blocks of a file system are smaller than pages, as ext4's are below 512 MiB."""
    try:
        return os.statvfs(directory).f_bsize < mmap.PAGESIZE
    except OSError:  # SQLite says what is wrong there
        return False


def allocate(path: Path, size: int) -> None:
    """Let a file have all its blocks; raise `NoSpace`.

    In a child: to close the file here would let go of the locks that SQLite holds on it (fcntl(2), "Record locks").
    """
    children.attempt(partial(_allocate, path, size), f"allocate {path}")


def make_in_place(path: Path, like: Path) -> None:
    """Make an empty file on btrfs of which each page is written where it is, with the owner and the mode of ``like``.

    btrfs writes a page to another place each time, also one that is mapped, and a full disk has no other place. Only an
    empty file takes the flag against it, which holds where the disk is full since Linux 6.16. It gets its name when it
    is closed, for the reason that `allocate` gives; a file that is there stays, and no error is one.
    """
    with suppress(OSError):
        if path.exists() or syscalls.file_system_magic(os.fsencode(path.parent)) != syscalls.BTRFS_MAGIC:
            return
        place = path.parent / "reserve"  # what a crash leaves there is given up with the rest
        place.mkdir(mode=0o700, exist_ok=True)
        made = place / os.urandom(8).hex()
        descriptor = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                _be_like(descriptor, like)
                syscalls.set_file_flags(descriptor, syscalls.file_flags(descriptor) | syscalls.FS_NOCOW_FL)
            finally:
                os.close(descriptor)
            os.link(made, path)
        finally:
            made.unlink()


def _be_like(descriptor: int, path: Path) -> None:
    status = path.stat()
    os.fchmod(descriptor, S_IMODE(status.st_mode))
    if os.geteuid() == 0:  # as SQLite does
        os.fchown(descriptor, status.st_uid, status.st_gid)


def _allocate(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    syscalls.fallocate(descriptor, 0, 0, size)


def _has_plenty(directory: Path) -> bool:
    """Tell whether an ordinary user has many times the reserve left; root, and the file system itself, has more."""
    found = os.statvfs(directory)
    # A file system that makes inodes as they are needed, as btrfs does, counts none.
    few_inodes = found.f_files > 0 and found.f_favail < _PLENTY * _INODES
    return not few_inodes and found.f_bavail * found.f_frsize >= _PLENTY * _BYTES


def _frees_later(directory: Path) -> bool:
    with suppress(OSError):
        return syscalls.file_system_magic(os.fsencode(directory)) == syscalls.XFS_MAGIC
    return False


def is_full(directory: Path) -> bool:
    """Tell whether there is no room for two small files, by trying.

    SQLite does not tell why it could not make them, and what statvfs(3) tells is not what one gets: ext4 keeps blocks
    for itself.
    """
    with ExitStack() as stack:
        try:
            for _ in range(2):
                descriptor = os.open(directory, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, descriptor)
                syscalls.fallocate(descriptor, 0, 0, _PROBE)
        except OSError as error:
            return error.errno in FULL
    return False
