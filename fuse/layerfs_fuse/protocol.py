"""The FUSE kernel protocol as numbers and structures: what goes over ``/dev/fuse``, and nothing that does it.

A *request* is `HEADER` and a body, a *reply* `REPLY` and a body, a *notification* a reply with ``unique`` 0 whose error
field holds the `Notify` code. Names and numbers are those of Linux's ``include/uapi/linux/fuse.h``, versions 7.31
(Linux 5.4) to 7.45; everything is in the byte order of the machine. ``*_IN`` are bodies of requests without the names
that follow some of them, ``*_OUT`` bodies of replies.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

MAJOR = 7
MINOR = 45
"""The newest version that this module knows; the kernel and we then speak the lower one of both."""
OLDEST_MINOR = 31
"""The oldest that the server accepts: Linux 5.4."""

ROOT = 1
"""Node id of the root directory."""

UNKNOWN_INO = 0xFFFFFFFF
"""Inode number of a directory entry that nobody looked up."""


class Opcode(IntEnum):
    """What a request asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class Notify(IntEnum):
    """What a notification tells the kernel."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    DELETE = 6


class Init(IntFlag):
    """What the kernel offers in INIT, and what of it the server takes."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    FILE_OPS = 1 << 2
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    SECURITY_CTX = 1 << 32
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


class SetAttr(IntFlag):
    """Which fields of `SETATTR_IN` count (FATTR_*)."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    LOCKOWNER = 1 << 9
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


# Of the reply to OPEN, CREATE and TMPFILE (FOPEN_*). Plain numbers, here and below: they are combined per request.
OPEN_DIRECT_IO = 1 << 0
OPEN_KEEP_CACHE = 1 << 1
OPEN_CACHE_DIR = 1 << 3
OPEN_NOFLUSH = 1 << 5
OPEN_PARALLEL_DIRECT_WRITES = 1 << 6
OPEN_PASSTHROUGH = 1 << 7

# Of requests.
GETATTR_FH = 1 << 0
OPEN_KILL_SUIDGID = 1 << 0
WRITE_CACHE = 1 << 0
WRITE_KILL_SUIDGID = 1 << 2
FSYNC_FDATASYNC = 1 << 0
SETXATTR_ACL_KILL_SGID = 1 << 0

MIN_READ_BUFFER = 8192
"""Bytes that a read(2) of the device has to offer at least."""

# -- framing -----------------------------------------------------------------------------------------------------------

HEADER = Struct("=IIQQIIIHH")
"""len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
REPLY = Struct("=IiQ")
"""len with this header, error (0 or a negative errno), unique."""

# -- session -----------------------------------------------------------------------------------------------------------

INIT_IN = Struct("=IIII")
"""major, minor, max_readahead, flags; then flags2 (`INIT_IN_FLAGS2`) if INIT_EXT is among the flags."""
INIT_IN_FLAGS2 = Struct("=I")
INIT_OUT = Struct("=IIIIHHIIHHIIH22x")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
map_alignment, flags2, max_stack_depth, request_timeout."""

# -- names and attributes ----------------------------------------------------------------------------------------------

FORGET_IN = Struct("=Q")
"""nlookup."""
BATCH_FORGET_IN = Struct("=II")
"""count, dummy; then that many `FORGET_ONE`."""
FORGET_ONE = Struct("=QQ")
"""nodeid, nlookup."""
GETATTR_IN = Struct("=IIQ")
"""getattr_flags, dummy, fh."""
ATTR_OUT = Struct("=QII")
"""attr_valid in seconds, attr_valid_nsec, dummy; then the attributes."""
SETATTR_IN = Struct("=IIQQQQQQIIIIIIII")
"""valid, padding, fh, size, lock_owner, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, unused, uid, gid,
unused."""
STATX_IN = Struct("=IIQII")
"""getattr_flags, reserved, fh, sx_flags, sx_mask."""
STATX_OUT = Struct("=QII16x IIQ IIIH2x QQQQ qI4x qI4x qI4x qI4x II8x 112x")
"""attr_valid, attr_valid_nsec, flags; mask, blksize, attributes; nlink, uid, gid, mode; ino, size, blocks,
attributes_mask; seconds and nanoseconds of atime, btime, ctime and mtime; rdev_major, rdev_minor (dev: zero)."""
STATX_UID = 52
"""Where in it the owner stands, and right after it the group."""
STATX_BASIC, STATX_BTIME = 0x7FF, 0x800
MKNOD_IN = Struct("=IIII")
"""mode, rdev, umask, padding; then the name."""
MKDIR_IN = Struct("=II")
"""mode, umask; then the name."""
RENAME_IN = Struct("=Q")
"""newdir; then both names."""
RENAME2_IN = Struct("=QII")
"""newdir, flags, padding; then both names."""
LINK_IN = Struct("=Q")
"""oldnodeid; then the new name."""
SETXATTR_IN = Struct("=II")
"""size, flags; with SETXATTR_EXT `SETXATTR_IN_EXT` instead; then name and value."""
SETXATTR_IN_EXT = Struct("=IIII")
"""size, flags, setxattr_flags, padding."""
GETXATTR_IN = Struct("=II")
"""size, padding; for GETXATTR then the name."""
GETXATTR_OUT = Struct("=II")
"""size, padding: the answer to a size of 0."""

# -- files -------------------------------------------------------------------------------------------------------------

OPEN_IN = Struct("=II")
"""flags of open(2), open_flags."""
CREATE_IN = Struct("=IIII")
"""flags of open(2), mode, umask, open_flags; then the name. TMPFILE too."""
OPEN_OUT = Struct("=QIi")
"""fh, open_flags, backing_id."""
RELEASE_IN = Struct("=QIIQ")
"""fh, flags of open(2), release_flags, lock_owner."""
READ_IN = Struct("=8xQI20x")
"""offset, size; left out: fh, read_flags, lock_owner, flags of open(2), padding. READDIR and READDIRPLUS too."""
WRITE_IN = Struct("=QQIIQII")
"""fh, offset, size, write_flags, lock_owner, flags of open(2), padding; then the data."""
WRITE_OUT = Struct("=II")
"""size, padding; COPY_FILE_RANGE too."""
FSYNC_IN = Struct("=QII")
"""fh, fsync_flags, padding."""
FALLOCATE_IN = Struct("=QQQII")
"""fh, offset, length, mode, padding."""
LSEEK_IN = Struct("=QQII")
"""fh, offset, whence, padding."""
LSEEK_OUT = Struct("=Q")
"""offset."""
COPY_FILE_RANGE_IN = Struct("=QQQQQQQ")
"""fh_in, off_in, nodeid_out, fh_out, off_out, len, flags."""
COPY_FILE_RANGE_OUT = Struct("=Q")
"""bytes_copied: the answer to COPY_FILE_RANGE_64."""
IOCTL_IN = Struct("=QIIQII")
"""fh, flags, cmd, arg, in_size, out_size; then the argument."""
IOCTL_OUT = Struct("=iIII")
"""result, flags, in_iovs, out_iovs; then what is given back."""
STATFS_OUT = Struct("=QQQQQIII28x")
"""blocks, bfree, bavail, files, ffree, bsize, namelen, frsize."""

# -- notifications and ioctls of the device ----------------------------------------------------------------------------

NOTIFY_INVAL_INODE_OUT = Struct("=Qqq")
"""ino, off (negative: attributes only), len."""
NOTIFY_INVAL_ENTRY_OUT = Struct("=QII")
"""parent, namelen, flags; then the name and a NUL."""
NOTIFY_DELETE_OUT = Struct("=QQII")
"""parent, child, namelen, padding; then the name and a NUL."""

BACKING_MAP = Struct("=iIQ")
"""fd, flags, padding: the argument of `DEV_IOC_BACKING_OPEN`."""
DEV_IOC_BACKING_OPEN = 0x4010E501
DEV_IOC_BACKING_CLOSE = 0x4004E502
