"""Copy the data of a file into another: shared by a reflink where the file system can, else inside the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from layerfs.kernel import syscalls

_NO_REFLINK = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.EBADF}
)
_NO_COPY_RANGE = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
_STEP = 1 << 30
_PIECE = 1 << 20
_SMALL = 64 << 10
"""Files up to here are read and written in one go, which costs less than to ask for holes and reflinks."""


def copy_data(
    source: int, target: int, size: int, *, whole: bool, instead: Callable[[int, int], bool] | None = None
) -> bool:
    """Copy the first ``size`` bytes of a file into an empty one, without its holes; the target ends there.

    ``whole`` tells that this is all of it. Where no blocks can be shared, ``instead`` is called with source and target
    and may take over by returning True, which is returned then. Raise ``OSError`` (ENOSPC, EIO).
    """
    if size <= _SMALL and instead is None:
        block = os.pread(source, size, 0)
        if len(block) == size and (not size or os.write(target, block) == size):
            return False
        os.ftruncate(target, 0)
    elif whole and _shared(source, target):
        return False
    elif instead is not None and instead(source, target):
        return True
    os.ftruncate(target, size)
    end = 0
    while end < size and (start := _seek(source, end, os.SEEK_DATA)) is not None and start < size:
        end = min(_seek(source, start, os.SEEK_HOLE) or size, size)
        _copy_range(source, target, start, end)
    return False


def _shared(source: int, target: int) -> bool:
    try:
        syscalls.ficlone(target, source)
    except OSError as error:
        if error.errno in _NO_REFLINK:
            return False
        raise
    return True


def _seek(fd: int, offset: int, whence: int) -> int | None:
    """Return where the next data or hole starts; None behind the last one."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    inside = True
    while start < end:
        copied = 0
        if inside:
            try:
                copied = os.copy_file_range(source, target, min(_STEP, end - start), start, start)
            except OSError as error:
                if error.errno not in _NO_COPY_RANGE:
                    raise
                inside = False
        if not copied:  # also where copy_file_range(2) stops early without an error, as it may
            block = os.pread(source, min(_PIECE, end - start), start)
            if not block:
                return
            copied = os.pwrite(target, block, start)
        start += copied
