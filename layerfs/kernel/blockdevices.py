"""Block devices as such: their size, discard, flush, and the few fields of a file system's first block that count it.

Sources: ioctl numbers of ``linux/fs.h``; the kernel's Documentation/filesystems/ext4/super.rst; xfs's
``fs/xfs/libxfs/xfs_format.h``.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from pathlib import Path

from layerfs.errors import Corrupt

_DISCARD = 0x1277
_GET_SIZE = 0x80081272
_BLOCK = 4096
_EXT4 = 1024
"""Where ext4's superblock begins."""
_EXT4_MAGIC = 0xEF53


def size(path: Path) -> int:
    """Return the bytes of a device."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(struct.unpack("=Q", fcntl.ioctl(fd, _GET_SIZE, bytes(8)))[0])
    finally:
        os.close(fd)


def discard(path: Path) -> None:
    """Tell a device that nothing on it is needed any more (BLKDISCARD)."""
    fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    try:
        (length,) = struct.unpack("=Q", fcntl.ioctl(fd, _GET_SIZE, bytes(8)))
        fcntl.ioctl(fd, _DISCARD, struct.pack("=QQ", 0, length))
    finally:
        os.close(fd)


def flush(path: Path) -> None:
    """Put everything that was written to a device on its disk."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_blank(path: Path, length: int) -> bool:
    """Tell whether the first ``length`` bytes of a device, a multiple of 4,096, are zero on its disk."""
    return not any(_read(path, length))


def clear(path: Path, length: int) -> None:
    """Write zeros over the first ``length`` bytes of a device, a multiple of 4,096, past its page cache too."""
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, length) as aligned:
            os.pwritev(fd, [aligned], 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def used_inodes(path: Path) -> int:
    """Return the inodes that the ext4 or xfs on a device has in use, right as of its last unmount; raise `Corrupt`."""
    block = _read(path, _BLOCK)
    (magic,) = struct.unpack_from("<H", block, _EXT4 + 0x38)
    if magic == _EXT4_MAGIC:
        (inodes,) = struct.unpack_from("<I", block, _EXT4)
        (free,) = struct.unpack_from("<I", block, _EXT4 + 0x10)
        return int(inodes - free)
    if block[:4] == b"XFSB":
        allocated, free = struct.unpack_from(">QQ", block, 128)
        return int(allocated - free)
    raise Corrupt(f"{path} holds neither ext4 nor xfs")


def _read(path: Path, length: int) -> bytes:
    """Read past the device's page cache, which knows nothing of what file systems and pools write to the device."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, length) as aligned:
            os.preadv(fd, [aligned], 0)
            return aligned[:]
    finally:
        os.close(fd)
