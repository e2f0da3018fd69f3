"""Copy the data of a file into another: shared by a reflink where the file system can, else inside the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from layerfs.kernel import filedata, syscalls

_NO_REFLINK = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.EBADF}
)
_SMALL = 64 << 10
"""Files up to here are read and written in one go, which costs less than to ask for holes and reflinks."""


def copy_data(
    source: int, target: int, size: int, *, share: bool, instead: Callable[[int, int], bool] | None = None
) -> bool:
    """Copy the first ``size`` bytes of a file into an empty one, without its holes; the target ends there.

    ``share`` tells that this is all of it, and that blocks may be shared. Where they cannot, ``instead`` is called with
    source and target and may take over by returning True, which is returned then. Raise ``OSError`` (ENOSPC, EIO).
    """
    if size <= _SMALL and instead is None:
        block = os.pread(source, size, 0)
        if len(block) == size and (not size or os.write(target, block) == size):
            return False
        os.ftruncate(target, 0)
    elif share and _shared(source, target):
        return False
    elif instead is not None and instead(source, target):
        return True
    filedata.copy_data(source, target, size)
    return False


def _shared(source: int, target: int) -> bool:
    try:
        syscalls.ficlone(target, source)
    except OSError as error:
        if error.errno in _NO_REFLINK:
            return False
        raise
    return True
