"""The ioctls of btrfs that libbtrfsutil lacks: quotas.

A *qgroup* ``0/<subvolume id>`` counts the bytes of one subvolume: *referenced* is all that it shows, *exclusive* what
nobody else shares. Both are true as of the last commit of the file system, so sync it before asking. Numbers and
structures are those of the kernel's ``include/uapi/linux/btrfs.h``; every function raises ``OSError``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

_FS_INFO = 0x8400941F
_FS_INFO_BYTES = 1024
_FS_INFO_ID = 16
_QUOTA_CTL = 0xC0109428
_QUOTA_ENABLE, _QUOTA_DISABLE = 1, 2
_QGROUP_CREATE = 0x4010942A
_QGROUP_LIMIT = 0x8030942B
_LIMIT_REFERENCED = 1
_RESCAN_WAIT = 0x942E
_SYSFS = Path("/sys/fs/btrfs")


@dataclass(frozen=True, slots=True)
class Qgroup:
    """What a qgroup counts, in bytes."""

    referenced: int
    exclusive: int


def _ioctl(path: Path, request: int, argument: bytes = b"") -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        result = fcntl.ioctl(fd, request, argument) if argument else fcntl.ioctl(fd, request)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        os.close(fd)
    return result if isinstance(result, bytes) else b""


def file_system_id(path: Path) -> uuid.UUID:
    """Return the UUID of the btrfs that holds ``path``."""
    answer = _ioctl(path, _FS_INFO, bytes(_FS_INFO_BYTES))
    return uuid.UUID(bytes=answer[_FS_INFO_ID : _FS_INFO_ID + 16])


def qgroup(path: Path, subvolume: int) -> Qgroup | None:
    """Return what the qgroup of a subvolume counts; None where quotas are off or it has none.

    It is read from sysfs (Linux 5.9), which an ordinary user may; the tree search ioctl wants root.
    """
    place = _SYSFS / str(file_system_id(path)) / "qgroups" / f"0_{subvolume}"
    try:
        return Qgroup(*(int((place / name).read_text(encoding="utf-8")) for name in ("referenced", "exclusive")))
    except FileNotFoundError:
        return None


def enable_quotas(path: Path) -> None:
    """Turn quotas on for the whole file system; existing subvolumes are counted in the background."""
    _ioctl(path, _QUOTA_CTL, struct.pack("=QQ", _QUOTA_ENABLE, 0))


def disable_quotas(path: Path) -> None:
    """Turn quotas off for the whole file system, and drop every qgroup."""
    _ioctl(path, _QUOTA_CTL, struct.pack("=QQ", _QUOTA_DISABLE, 0))


def wait_for_rescan(path: Path) -> None:
    """Wait until the background count of qgroups, if there is one, has ended."""
    _ioctl(path, _RESCAN_WAIT)


def limit_qgroup(path: Path, subvolume: int, referenced: int | None) -> None:
    """Let a subvolume show at most ``referenced`` bytes; None is no limit."""
    most = (1 << 64) - 1 if referenced is None else referenced
    _ioctl(path, _QGROUP_LIMIT, struct.pack("=6Q", subvolume, _LIMIT_REFERENCED, most, 0, 0, 0))


def remove_qgroup(path: Path, subvolume: int) -> None:
    """Remove the qgroup of a deleted subvolume, which older kernels keep; one that is gone is no error."""
    try:
        _ioctl(path, _QGROUP_CREATE, struct.pack("=QQ", 0, subvolume))
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENOTCONN, errno.EINVAL}:
            raise
