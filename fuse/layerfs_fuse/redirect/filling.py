"""Fill a part of one file from the same part of another, holes included."""

from __future__ import annotations

import errno
import os

from layerfs.kernel import filedata, syscalls
from layerfs.kernel.filedata import copy_range

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
"""Modes of fallocate(2) (linux/falloc.h)."""
NOWHERE = 1 << 63
"""Further than any file reaches."""

_PIECE = 1 << 20


def seek(fd: int, offset: int, whence: int) -> int:
    """Return where the next data or hole is; `NOWHERE` where there is none."""
    found = filedata.seek(fd, offset, whence)
    return NOWHERE if found is None else found


def fill(source: int, target: int, start: int, end: int) -> None:
    """Make the bytes from ``start`` to before ``end`` of a file those of another; where that has holes, this gets them.

    Raise ``OSError``: EIO where the source ends before, ENOSPC.
    """
    while start < end:
        data = min(seek(source, start, os.SEEK_DATA), end)
        if start < data:
            _clear(target, start, data)
        start = min(seek(source, data, os.SEEK_HOLE), end) if data < end else end
        if copy_range(source, target, data, start) < start:
            raise OSError(errno.EIO, "a lower file became shorter")


def _clear(fd: int, start: int, end: int) -> None:
    """Make a hole, or zeros where the file system has no way to make one."""
    if seek(fd, start, os.SEEK_DATA) >= end:
        return
    try:
        syscalls.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, start, end - start)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        for at in range(start, end, _PIECE):
            write_all(fd, bytes(min(_PIECE, end - at)), at)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of it; raise ``OSError`` (ENOSPC)."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], offset + done)
