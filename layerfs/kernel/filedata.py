"""The data of a file: where it lies, and copied into another file inside the kernel where that is possible."""

from __future__ import annotations

import errno
import os

_STEP = 1 << 30
_PIECE = 1 << 20
_NO_COPY_RANGE = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


def seek(fd: int, offset: int, whence: int) -> int | None:
    """Return where the next data or hole is (lseek(2): SEEK_DATA, SEEK_HOLE); None behind the last one."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def copy_data(source: int, target: int, size: int) -> None:
    """Copy the first ``size`` bytes of a file into an empty one, without its holes; the target ends there."""
    os.ftruncate(target, size)
    end = 0
    while end < size and (start := seek(source, end, os.SEEK_DATA)) is not None and start < size:
        end = min(seek(source, start, os.SEEK_HOLE) or size, size)
        copy_range(source, target, start, end)


def copy_range(source: int, target: int, start: int, end: int) -> int:
    """Copy the bytes from ``start`` to before ``end`` to the same place; return ``end``, or where the source ended.

    Not inside the kernel from an overlay to a file of its upper directory (EXDEV).
    """
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
                return start
            copied = os.pwrite(target, block, start)
        start += copied
    return end
