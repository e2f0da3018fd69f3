"""What btrfs counts of a subvolume when quotas are on: its *qgroup* ``0/<subvolume id>`` (btrfs-qgroup(8)).

The counts are read from ``/sys/fs/btrfs/<fsid>/qgroups``, which needs no privilege; they are those of the last
transaction, so sync before. The ioctls are those of the kernel's ``include/uapi/linux/btrfs.h``.
"""

from __future__ import annotations

import fcntl
import os
import struct
import uuid
from pathlib import Path

from layerfs.kernel.descriptors import opened

_SYSFS = Path("/sys/fs/btrfs")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FS_INFO = 0x8400941F
"""``BTRFS_IOC_FS_INFO``: 1,024 bytes, of which bytes 16 to 31 are the file system's id."""
_QUOTA_CTL = 0xC0109428
"""``BTRFS_IOC_QUOTA_CTL``: two 64-bit numbers, the command and a status."""
_ENABLE = 1
_QGROUP_LIMIT = 0x8030942B
"""``BTRFS_IOC_QGROUP_LIMIT``: six 64-bit numbers: id, which limits, referenced and exclusive bytes, two of no use."""
_MAX_EXCLUSIVE = 1 << 1
_NONE = (1 << 64) - 1
_QGROUP_CREATE = 0x4010942A
"""``BTRFS_IOC_QGROUP_CREATE``, which deletes too: two 64-bit numbers, "create" and the qgroup's id."""


def exclusive(path: Path, subvolume_id: int) -> int | None:
    """Return the bytes that only this subvolume of the file system of ``path`` has.

    None where quotas are off or being counted anew, and before Linux 6.1, which does not tell.
    """
    qgroups = _SYSFS / str(_file_system_id(path)) / "qgroups"
    try:
        if (qgroups / "inconsistent").read_text(encoding="ascii").strip() != "0":
            return None
        return int((qgroups / f"0_{subvolume_id}" / "exclusive").read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


def enable(path: Path) -> None:
    """Turn quotas on for the whole file system of ``path``; on already is no error. Raise ``OSError`` (EPERM)."""
    if (_SYSFS / str(_file_system_id(path)) / "qgroups").exists():
        return
    with opened(os.open(path, _DIRECTORY)) as directory:
        fcntl.ioctl(directory, _QUOTA_CTL, struct.pack("=QQ", _ENABLE, 0))


def limit(path: Path, subvolume_id: int, size: int | None) -> None:
    """Limit the bytes that only this subvolume may have; None lifts the limit. Raise ``OSError``.

    ENOTCONN: quotas are off; ENOENT: there is no such qgroup; EPERM: not root.
    """
    values = (subvolume_id, _MAX_EXCLUSIVE, 0, _NONE if size is None else size, 0, 0)
    with opened(os.open(path, _DIRECTORY)) as directory:
        fcntl.ioctl(directory, _QGROUP_LIMIT, struct.pack("=6Q", *values))


def remove(path: Path, subvolume_id: int) -> None:
    """Delete the qgroup of a subvolume that is deleted; raise ``OSError``.

    ENOTCONN: quotas are off; ENOENT: there is none; EBUSY: the subvolume is still being cleaned up, after which Linux
    6.11 and later delete the qgroup themselves; EPERM: not root.
    """
    with opened(os.open(path, _DIRECTORY)) as directory:
        fcntl.ioctl(directory, _QGROUP_CREATE, struct.pack("=QQ", 0, subvolume_id))


def _file_system_id(path: Path) -> uuid.UUID:
    with opened(os.open(path, _DIRECTORY)) as directory:
        return uuid.UUID(bytes=fcntl.ioctl(directory, _FS_INFO, bytes(1024))[16:32])
