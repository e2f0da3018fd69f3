"""Projects: what ext4 and xfs count and limit by a number on each file, whoever owns it (quotactl(2), xfs_quota(8)).

A *project* is a number above 0. A directory that hands it down (``FS_XFLAG_PROJINHERIT``) gives it to everything that
is made in it, and lets nothing of another project be linked or renamed into it. The structures are those of the
kernel's ``include/uapi/linux/fs.h`` and ``dqblk_xfs.h``; ext4 takes the calls of xfs, too.
"""

from __future__ import annotations

import errno
import fcntl
import struct

from layerfs.contract import Quota, Usage
from layerfs.kernel import syscalls

_FSXATTR = struct.Struct("=5I8x")
_SET_FSXATTR = 0x401C5820
"""``FS_IOC_FSSETXATTR``."""
_INHERIT = 0x200
"""``FS_XFLAG_PROJINHERIT``."""

_PROJECTS = 2
_SET_LIMITS, _GET, _GET_NEXT, _STATE = 0x5804, 0x5803, 0x5809, 0x5808
_ENFORCED = 1 << 5
"""``FS_QUOTA_PDQ_ENFD``."""
_STATE_BYTES = 256
_VERSION = 1
_QUOTA = struct.Struct("=bbHI 4Q 2Q 48x")
"""``struct fs_disk_quota``: version, kind, which fields, project; limits of blocks and inodes; counts of both."""
_KIND = 2
_LIMITS = 0b1111
"""Which fields are set: the limits of inodes and blocks, soft and hard."""
_BLOCK = 512


def are_enforced(fd: int) -> bool:
    """Tell whether the file system of an open file limits projects; False for who may not know."""
    state = bytearray(_STATE_BYTES)
    state[0] = _VERSION
    try:
        syscalls.quotactl_fd(fd, _STATE, _PROJECTS, 0, state)
    except OSError:
        return False
    return bool(int.from_bytes(state[2:4], "little") & _ENFORCED)


def project_of(fd: int) -> int:
    """Return the project of an open file; 0 for none."""
    return int(_FSXATTR.unpack(syscalls.extended_flags(fd))[3])


def mark(fd: int, project: int) -> None:
    """Give an open directory a project that it hands down; raise ``OSError``."""
    flags, extent_size, extents, _, copy_extent_size = _FSXATTR.unpack(syscalls.extended_flags(fd))
    values = (flags | _INHERIT, extent_size, extents, project, copy_extent_size)
    fcntl.ioctl(fd, _SET_FSXATTR, _FSXATTR.pack(*values))


def limit(fd: int, project: int, quota: Quota) -> None:
    """Set the limits of a project on the file system of ``fd``; raise ``OSError`` (EPERM)."""
    blocks, inodes = -(-(quota.size or 0) // _BLOCK), quota.inodes or 0
    limits = (blocks, blocks, inodes, inodes)
    syscalls.quotactl_fd(
        fd, _SET_LIMITS, _PROJECTS, project, bytearray(_QUOTA.pack(_VERSION, _KIND, _LIMITS, project, *limits, 0, 0))
    )


def read(fd: int, project: int) -> tuple[Quota, Usage]:
    """Return the limits of a project, and what it takes."""
    found = _read(fd, _GET, project)
    return (Quota(), Usage()) if found is None else found[1:]


def next_known(fd: int, project: int) -> int | None:
    """Return the first project from a number on that has limits or files; None where there is none."""
    found = _read(fd, _GET_NEXT, project)
    return None if found is None else found[0]


def _read(fd: int, command: int, project: int) -> tuple[int, Quota, Usage] | None:
    data = bytearray(_QUOTA.size)
    try:
        syscalls.quotactl_fd(fd, command, _PROJECTS, project, data)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ESRCH}:
            raise
        return None
    _, _, _, number, hard, _, inodes, _, taken, count = _QUOTA.unpack(data)
    return number, Quota(hard * _BLOCK or None, inodes or None), Usage(taken * _BLOCK, count)
