"""The one home of the system calls and ioctls that the standard library lacks.

Every function raises ``OSError`` with the file name where there is one, and opens with ``O_CLOEXEC``. Paths are bytes,
as the kernel has them. Numbers and structures are those of the kernel's ``include/uapi``; system calls since Linux 5.1
have the same number on every architecture.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from functools import cache
from typing import Any

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# How openat2(2) resolves a path.
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# Flags of mount(2) and umount2(2).
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

# Attributes that fsmount(2) and mount_setattr(2) give a mount.
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_ATIME = 0x70
"""The mask of the three ways to keep access times; relatime is 0."""
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

NOW = 1 << 64
"""In place of a time for `set_times`, and none that there can be."""

# Namespaces for unshare(2) and setns(2).
CLONE_FS = 0x200
CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

# Flags of files: ioctl_iflags(2). The numbers name a long, what is passed is an int.
FS_IOC_GETFLAGS = 0x80006601 | struct.calcsize("l") << 16
FS_IOC_SETFLAGS = 0x40006602 | struct.calcsize("l") << 16
FS_IOC_FSGETXATTR = 0x801C581F
FS_IMMUTABLE_FL = 0x10
FS_APPEND_FL = 0x20
FS_NOCOW_FL = 0x800000

OVERLAYFS_MAGIC = 0x794C7630
BTRFS_MAGIC = 0x9123683E
TMPFS_MAGIC = 0x01021994
EXT_MAGIC = 0xEF53
XFS_MAGIC = 0x58465342

_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_QUOTACTL_FD = 443
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442
_NR_STATMOUNT = 457
_NR_LISTXATTRAT = 465
_NR_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217, "armv7l": 218}
_NR_RENAMEAT2 = {"x86_64": 316, "aarch64": 276, "riscv64": 276, "ppc64le": 357, "s390x": 347, "armv7l": 382}

_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_SET_FD = 5
_FSCONFIG_CMD_CREATE = 6

_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_RENAME_WHITEOUT = 4

_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_FICLONE = 0x40049409
_FLAGS = struct.Struct("=I")
_FSXATTR_BYTES = 28
_UTIME_NOW = 0x3FFFFFFF
_UTIME_OMIT = 0x3FFFFFFE
_TIMES = struct.Struct("@llll")
"""Two of ``struct timespec``."""
_PR_SET_PDEATHSIG = 1
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_BTIME = 0x800
_STATX_BYTES = 256
_STATX_BTIME_OFFSET = 80
_STATX_MNT_ID_OFFSET = 144
_STATMOUNT_MNT_OPTS = 0x80
_STATMOUNT_FIXED = 512
_STATMOUNT_LARGEST = 1 << 20
_XATTR_LIST_MAX = 1 << 16


@cache
def _libc() -> ctypes.CDLL:
    """Load the C library of this process once."""
    return ctypes.CDLL(None, use_errno=True)


@cache
def _function(name: str, *types: Any) -> Any:  # noqa: ANN401  ctypes has no narrower name for either
    """Return a C function that takes ``types``; each caller gets a prototype of its own."""
    function = _libc()[name]
    function.argtypes = types
    # syscall(2) returns a long, the wrappers an int; read as the wrong one, -1 is positive.
    function.restype = ctypes.c_long if name == "syscall" else ctypes.c_int
    return function


def _check(result: int, path: bytes | str | int | None = None) -> int:
    """Return the result of a call, or raise the ``OSError`` that it reports, about ``path``."""
    if result < 0:
        number = ctypes.get_errno()
        name = None if path is None or isinstance(path, int) else path
        raise OSError(number, os.strerror(number), name)
    return result


def _numbered(table: dict[str, int], name: str) -> int:
    """Look up a system call whose number depends on the architecture."""
    machine = os.uname().machine
    if machine not in table:
        raise OSError(errno.ENOSYS, f"{name} has no known number on {machine}")
    return table[machine]


_LONG = ctypes.c_long
_BYTES = ctypes.c_char_p
_RESOLVE_TRIES = 64
"""How often a path is resolved again because something was renamed meanwhile (openat2(2), EAGAIN)."""


# -- files -------------------------------------------------------------------------------------------------------------


def openat2(dir_fd: int, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open ``path`` from ``dir_fd`` within the limits of ``resolve`` and return a descriptor (openat2(2))."""
    call = _function("syscall", _LONG, _LONG, _BYTES, _BYTES, _LONG)
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_RESOLVE_TRIES):
        result: int = call(_NR_OPENAT2, dir_fd, path, how, len(how))
        if result >= 0:
            return result
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    return _check(-1, path)


def _renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    number = _numbered(_NR_RENAMEAT2, "renameat2")
    call = _function("syscall", _LONG, _LONG, _BYTES, _LONG, _BYTES, _LONG)
    if call(number, old_dir, old, new_dir, new, flags) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), old, None, new)


def rename_noreplace(old_dir: int, old: bytes, new_dir: int, new: bytes) -> None:
    """Rename, and raise ``FileExistsError`` rather than replace anything (renameat2(2))."""
    _renameat2(old_dir, old, new_dir, new, _RENAME_NOREPLACE)


def rename_exchange(old_dir: int, old: bytes, new_dir: int, new: bytes) -> None:
    """Swap two names in one step (renameat2(2))."""
    _renameat2(old_dir, old, new_dir, new, _RENAME_EXCHANGE)


def rename_whiteout(old_dir: int, old: bytes, new_dir: int, new: bytes) -> None:
    """Rename and leave a whiteout, a character device 0/0, in one step (renameat2(2))."""
    _renameat2(old_dir, old, new_dir, new, _RENAME_WHITEOUT)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change the space that a range of a file takes, as ``mode`` says (fallocate(2))."""
    call = _function("fallocate64", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    _check(call(fd, mode, offset, length))


def set_times(
    target: int | bytes, atime: int | None, mtime: int | None, *, dir_fd: int | None = None, follow: bool = False
) -> None:
    """Set the times of an open file, or of what has a name, in nanoseconds since 1970 (utimensat(2)).

    `NOW` is the present time as the file system takes it, None leaves a time alone, neither of which `os.utime` can.
    """
    times = _TIMES.pack(*_timespec(atime), *_timespec(mtime))
    if isinstance(target, int):
        _check(_function("futimens", ctypes.c_int, _BYTES)(target, times))
        return
    call = _function("utimensat", ctypes.c_int, _BYTES, _BYTES, ctypes.c_int)
    flags = 0 if follow else AT_SYMLINK_NOFOLLOW
    _check(call(AT_FDCWD if dir_fd is None else dir_fd, target, times, flags), target)


def _timespec(moment: int | None) -> tuple[int, int]:
    if moment is None:
        return 0, _UTIME_OMIT
    return (0, _UTIME_NOW) if moment == NOW else divmod(moment, 1_000_000_000)


def quotactl_fd(fd: int, command: int, kind: int, id: int, data: bytearray) -> None:  # noqa: A002  quotactl(2)'s word
    """Do a command of quotactl(2) on the file system of an open file (Linux 5.14); ``data`` is read or filled in."""
    call = _function("syscall", _LONG, _LONG, _LONG, _LONG, ctypes.c_void_p)
    buffer = (ctypes.c_char * len(data)).from_buffer(data)
    _check(call(_NR_QUOTACTL_FD, fd, command << 8 | kind, id, ctypes.addressof(buffer)))


def syncfs(fd: int) -> None:
    """Write everything of the file system of ``fd`` to disk (syncfs(2))."""
    _check(_function("syncfs", ctypes.c_int)(fd))


def resident_pages(fd: int, size: int) -> int:
    """Return how many pages of the first ``size`` bytes of a file are in the page cache (mincore(2))."""
    pages = -(-size // mmap.PAGESIZE)
    found = ctypes.create_string_buffer(pages)
    with mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        first = ctypes.c_char.from_buffer(mapped)  # keeps it mapped, and is the one way to learn its address
        call = _function("mincore", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
        try:
            _check(call(ctypes.addressof(first), size, found))
        finally:
            del first
    return sum(state & 1 for state in found.raw[:pages])


def file_system_magic(path: bytes) -> int:
    """Return the type number of the file system that holds ``path`` (``f_type`` of statfs(2))."""
    buffer = ctypes.create_string_buffer(512)
    _check(_function("statfs", _BYTES, ctypes.c_void_p)(path, buffer), path)
    return int.from_bytes(buffer.raw[: ctypes.sizeof(_LONG)], "little") & 0xFFFFFFFF


def listxattrat(dir_fd: int, name: bytes) -> bytes:
    """Return the names of the attributes of a file, which is not followed, a zero byte after each (Linux 6.13).

    It takes half the time of listxattr(2) with a path below ``/proc/self/fd``.
    """
    call = _function("syscall", _LONG, _LONG, _BYTES, _LONG, ctypes.c_void_p, _LONG)
    if not _check(call(_NR_LISTXATTRAT, dir_fd, name, AT_SYMLINK_NOFOLLOW, None, 0), name):
        return b""
    buffer = ctypes.create_string_buffer(_XATTR_LIST_MAX)
    size = _check(call(_NR_LISTXATTRAT, dir_fd, name, AT_SYMLINK_NOFOLLOW, buffer, _XATTR_LIST_MAX), name)
    return buffer.raw[:size]


def ficlone(dst_fd: int, src_fd: int) -> None:
    """Make the file ``dst_fd`` share all data of ``src_fd`` (ioctl_ficlone(2))."""
    fcntl.ioctl(dst_fd, _FICLONE, src_fd)


# -- the mount API of Linux 5.2 and later ------------------------------------------------------------------------------


def file_flags(fd: int) -> int:
    """Return the flags of an open file, as lsattr(1) shows them (FS_IOC_GETFLAGS)."""
    flags = bytearray(_FLAGS.size)
    fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags)
    return int(_FLAGS.unpack(flags)[0])


def set_file_flags(fd: int, flags: int) -> None:
    """Set all flags of an open file, as chattr(1) does (FS_IOC_SETFLAGS)."""
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, _FLAGS.pack(flags))


def extended_flags(fd: int) -> bytes:
    """Return ``struct fsxattr`` of an open file, the same flags and more (FS_IOC_FSGETXATTR)."""
    attributes = bytearray(_FSXATTR_BYTES)
    fcntl.ioctl(fd, FS_IOC_FSGETXATTR, attributes)
    return bytes(attributes)


def fsopen(kind: bytes) -> int:
    """Open a context to configure a file system of type ``kind``; its descriptor also holds the kernel's messages."""
    return _check(_function("syscall", _LONG, _BYTES, _LONG)(_NR_FSOPEN, kind, 1), kind)


def _fsconfig(fd: int, command: int, key: bytes | None, value: bytes | None, aux: int) -> None:
    call = _function("syscall", _LONG, _LONG, _LONG, _BYTES, _BYTES, _LONG)
    _check(call(_NR_FSCONFIG, fd, command, key, value, aux), value)


def fsconfig_string(fd: int, key: bytes, value: bytes) -> None:
    """Set ``key`` to a string of at most 255 bytes."""
    _fsconfig(fd, _FSCONFIG_SET_STRING, key, value, 0)


def fsconfig_flag(fd: int, key: bytes) -> None:
    """Set an option that has no value."""
    _fsconfig(fd, _FSCONFIG_SET_FLAG, key, None, 0)


def fsconfig_fd(fd: int, key: bytes, value: int) -> None:
    """Set ``key`` to what the descriptor ``value`` is open on."""
    _fsconfig(fd, _FSCONFIG_SET_FD, key, None, value)


def fsconfig_create(fd: int) -> None:
    """Make the file system as configured."""
    _fsconfig(fd, _FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(fd: int, attributes: int) -> int:
    """Return a descriptor of a mount, attached nowhere yet, of the configured file system."""
    return _check(_function("syscall", _LONG, _LONG, _LONG, _LONG)(_NR_FSMOUNT, fd, 1, attributes))


def open_tree(path: bytes, *, recursive: bool = False) -> int:
    """Return a descriptor of a private copy, attached nowhere yet, of the mount at ``path`` (a bind mount)."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    call = _function("syscall", _LONG, _LONG, _BYTES, _LONG)
    return _check(call(_NR_OPEN_TREE, AT_FDCWD, path, flags), path)


def move_mount(fd: int, target: bytes) -> None:
    """Attach the mount ``fd`` at ``target``."""
    call = _function("syscall", _LONG, _LONG, _BYTES, _LONG, _BYTES, _LONG)
    _check(call(_NR_MOVE_MOUNT, fd, b"", AT_FDCWD, target, _MOVE_MOUNT_F_EMPTY_PATH), target)


def mount_setattr(
    fd: int, *, attr_set: int, attr_clear: int = 0, recursive: bool = False, user_namespace: int = 0
) -> None:
    """Change the attributes of the mount ``fd`` (mount_setattr(2), Linux 5.12).

    ``user_namespace`` is a descriptor of the one that ``MOUNT_ATTR_IDMAP`` maps owners by.
    """
    how = struct.pack("=QQQQ", attr_set, attr_clear, 0, user_namespace)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    call = _function("syscall", _LONG, _LONG, _BYTES, _LONG, _BYTES, _LONG)
    _check(call(_NR_MOUNT_SETATTR, fd, b"", flags, how, len(how)))


def mount_id(fd: int) -> int | None:
    """Return the number, never used twice, of the mount that ``fd`` is on; None before Linux 6.8 (statx(2))."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    call = _function("statx", ctypes.c_int, _BYTES, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    _check(call(fd, b"", AT_EMPTY_PATH, _STATX_MNT_ID_UNIQUE, buffer))
    (mask,) = struct.unpack_from("=I", buffer)
    if not mask & _STATX_MNT_ID_UNIQUE:
        return None
    return int(struct.unpack_from("=Q", buffer, _STATX_MNT_ID_OFFSET)[0])


def birth_time(path: bytes, *, dir_fd: int | None = None, follow: bool = False) -> int | None:
    """Return when a file was made, in nanoseconds since 1970; None where its file system does not know (statx(2)).

    An empty path is ``dir_fd`` itself, of whatever kind that is.
    """
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    call = _function("statx", ctypes.c_int, _BYTES, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    flags = AT_EMPTY_PATH if follow else AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW
    _check(call(AT_FDCWD if dir_fd is None else dir_fd, path, flags, _STATX_BTIME, buffer), path)
    (mask,) = struct.unpack_from("=I", buffer)
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, _STATX_BTIME_OFFSET)
    return int(seconds) * 1_000_000_000 + int(nanoseconds) if mask & _STATX_BTIME else None


def mount_options(identity: int) -> bytes:
    """Return the options of the file system of a mount, as in mountinfo (statmount(2), Linux 6.11)."""
    request = struct.pack("=IIQQ", 24, 0, identity, _STATMOUNT_MNT_OPTS)
    call = _function("syscall", _LONG, _BYTES, ctypes.c_void_p, _LONG, _LONG)
    size = 1 << 14
    while True:
        buffer = ctypes.create_string_buffer(size)
        result = call(_NR_STATMOUNT, request, buffer, size, 0)
        if result >= 0 or ctypes.get_errno() != errno.EOVERFLOW or size >= _STATMOUNT_LARGEST:
            break
        size <<= 1
    _check(result)
    _, start, mask = struct.unpack_from("=IIQ", buffer)
    if not mask & _STATMOUNT_MNT_OPTS:
        raise OSError(errno.EOPNOTSUPP, "statmount does not tell options")
    raw = buffer.raw
    begin = _STATMOUNT_FIXED + start
    return raw[begin : raw.index(b"\0", begin)]


# -- the older mount calls, namespaces, processes ----------------------------------------------------------------------


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    """Mount in the old way (mount(2)); the kernel cuts ``data`` at 4,095 bytes without a word, so callers check it."""
    call = _function("mount", _BYTES, _BYTES, _BYTES, ctypes.c_ulong, _BYTES)
    _check(call(source, target, kind, flags, data), target)


def umount(target: bytes, flags: int = 0) -> None:
    """Take away the topmost mount at ``target`` (umount2(2))."""
    _check(_function("umount2", _BYTES, ctypes.c_int)(target, flags), target)


def pivot_root(new: bytes, old: bytes) -> None:
    """Make ``new`` the root of this mount namespace and put the former one at ``old`` (pivot_root(2))."""
    number = _numbered(_NR_PIVOT_ROOT, "pivot_root")
    _check(_function("syscall", _LONG, _BYTES, _BYTES)(number, new, old), new)


def unshare(flags: int) -> None:
    """Leave the shared namespaces of ``flags`` for new ones (unshare(2))."""
    _check(_function("unshare", ctypes.c_int)(flags))


def setns(fd: int, kind: int) -> None:
    """Enter the namespace that ``fd`` is open on (setns(2))."""
    _check(_function("setns", ctypes.c_int, ctypes.c_int)(fd, kind))


def _prctl(option: int, value: int) -> int:
    call = _function("prctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
    return _check(call(option, value, 0, 0, 0))


def die_with_parent(signal_number: int) -> None:
    """Ask for ``signal_number`` when the thread that forked this process ends (PR_SET_PDEATHSIG)."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def set_dumpable(value: int) -> int:
    """Say whether the files of this process below /proc are its user's (1) or root's (0); return what it was."""
    before = _prctl(_PR_GET_DUMPABLE, 0)
    _prctl(_PR_SET_DUMPABLE, value)
    return before
