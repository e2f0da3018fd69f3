"""Requests about attributes, extended attributes and the file system as a whole."""

from __future__ import annotations

import errno
import os

from layerfs.kernel.syscalls import FS_IOC_FSGETXATTR, FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
from layerfs_fuse.attributes import ATTRIBUTES, FOREVER, MTIME, MTIME_NSEC, U32, U64
from layerfs_fuse.protocol import (
    ATTR_OUT,
    GETXATTR_IN,
    GETXATTR_OUT,
    HEADER,
    IOCTL_IN,
    IOCTL_OUT,
    SETATTR_IN,
    SETXATTR_ACL_KILL_SGID,
    SETXATTR_IN,
    SETXATTR_IN_EXT,
    STATFS_OUT,
    STATX_BASIC,
    STATX_BTIME,
    STATX_OUT,
    Init,
    Opcode,
    SetAttr,
)
from layerfs_fuse.server import Handler, Header, Reply
from layerfs_fuse.session import Session
from layerfs_fuse.union import NOW, Changes, Union

_AFTER_HEADER = HEADER.size
_UNPACK_SETATTR = SETATTR_IN.unpack_from
_VALID = ATTR_OUT.pack(FOREVER, 0, 0)
_ONCE = ATTR_OUT.pack(0, 0, 0)
"""Before attributes of which the kernel is to ask again if somebody wants to know."""
_DONE = IOCTL_OUT.pack(0, 0, 0, 0)
_CHECKS_OWNERS = 34
"""The version of the protocol (Linux 5.14) from which on the kernel lets none but owners set flags (5.13)."""
_SECOND = 1_000_000_000
_NAME_MAX = 255

# As plain numbers: an IntFlag costs half a microsecond at each &.
_MODE, _UID, _GID, _SIZE = int(SetAttr.MODE), int(SetAttr.UID), int(SetAttr.GID), int(SetAttr.SIZE)
_ATIME, _MTIME = int(SetAttr.ATIME), int(SetAttr.MTIME)
_ATIME_NOW, _MTIME_NOW = int(SetAttr.ATIME_NOW), int(SetAttr.MTIME_NOW)
_KILL = int(SetAttr.KILL_SUIDGID)
_CTIME = int(SetAttr.CTIME)
_FLUSHED = int(SetAttr.MTIME | SetAttr.CTIME | SetAttr.FH | SetAttr.LOCKOWNER)
_UNPACK_U32, _UNPACK_U64 = U32.unpack_from, U64.unpack_from


class Status:
    """The handlers of one mount; ``body`` is the buffer of its channel."""

    def __init__(self, union: Union, body: memoryview, session: Session) -> None:
        self._union = union
        self._body = body
        self._checks_owners = session.minor >= _CHECKS_OWNERS
        self._setxattr = SETXATTR_IN_EXT if Init.SETXATTR_EXT in session.flags else SETXATTR_IN

    def handlers(self) -> dict[int, Handler]:
        """Return what answers each opcode."""
        return {
            Opcode.GETATTR: self.get_attributes,
            Opcode.SETATTR: self.set_attributes,
            Opcode.STATX: self.get_birth_too,
            Opcode.GETXATTR: self.get_xattr,
            Opcode.LISTXATTR: self.list_xattrs,
            Opcode.SETXATTR: self.set_xattr,
            Opcode.REMOVEXATTR: self.remove_xattr,
            Opcode.STATFS: self.file_system,
            Opcode.IOCTL: self.ioctl,
            Opcode.DESTROY: self.destroy,
        }

    def get_attributes(self, header: Header) -> Reply:
        """Tell the attributes of a node."""
        return _VALID, self._union.attributes(header[3])

    def get_birth_too(self, header: Header) -> Reply:
        """Tell the attributes and the time of birth, for statx(2) of somebody who wants that and trusts no cache."""
        fields = ATTRIBUTES.unpack(self._union.attributes(header[3]))
        ino, size, blocks, atime, mtime, ctime, atime_nsec, mtime_nsec, ctime_nsec = fields[:9]
        mode, nlink, uid, gid, rdev, block, _ = fields[9:]
        born = self._union.birth_time(header[3])
        mask = STATX_BASIC if born is None else STATX_BASIC | STATX_BTIME
        times = (atime, atime_nsec, *divmod(born or 0, _SECOND), ctime, ctime_nsec, mtime, mtime_nsec)
        shown = (block, 0, nlink, uid, gid, mode, ino, size, blocks, 0)
        return STATX_OUT.pack(FOREVER, 0, 0, mask, *shown, *times, os.major(rdev), os.minor(rdev))

    def set_attributes(self, header: Header) -> Reply:
        """Change attributes; a change time (with the writeback cache) is that of the file system below instead."""
        fields = _UNPACK_SETATTR(self._body, _AFTER_HEADER)
        valid, _, _, size, _, atime, mtime, _, atime_nsec, mtime_nsec, _, mode, _, uid, gid, _ = fields
        node = header[3]
        if valid & _CTIME and not valid & ~_FLUSHED and not self._union.changeable(node):
            # The writeback cache flushes times also of what was unlinked, linked or renamed, with the old time of its
            # data: nothing to copy a file up for.
            attributes = self._union.attributes(node)
            if (mtime, mtime_nsec) == (_UNPACK_U64(attributes, MTIME)[0], _UNPACK_U32(attributes, MTIME_NSEC)[0]):
                return _VALID, attributes
        changes = Changes(  # by place, for names would take as long again
            mode & 0o7777 if valid & _MODE else None,
            uid if valid & _UID else None,
            gid if valid & _GID else None,
            size if valid & _SIZE else None,
            (NOW if valid & _ATIME_NOW else _time(atime, atime_nsec)) if valid & _ATIME else None,
            (NOW if valid & _MTIME_NOW else _time(mtime, mtime_nsec)) if valid & _MTIME else None,
            valid & _KILL != 0,
        )
        attributes, exact = self._union.change(node, changes)
        return _VALID if exact else _ONCE, attributes

    # -- extended attributes -------------------------------------------------------------------------------------------

    def get_xattr(self, header: Header) -> Reply:
        """Tell the value of an extended attribute, or its size where no room for it is given.

        The kernel asks for ``security.capability`` at the first write and at each chown(2) of a file.
        """
        if self._union.bare(header[3]):
            return -errno.ENODATA
        size, _ = GETXATTR_IN.unpack_from(self._body, _AFTER_HEADER)
        name = self._body[_AFTER_HEADER + GETXATTR_IN.size : header[0] - 1].tobytes()
        return _sized(self._union.get_xattr(header[3], name), size)

    def list_xattrs(self, header: Header) -> Reply:
        """Tell the names of the extended attributes, each with a NUL after it."""
        size, _ = GETXATTR_IN.unpack_from(self._body, _AFTER_HEADER)
        if self._union.bare(header[3]):
            return _sized(b"", size)
        return _sized(b"".join(name + b"\0" for name in self._union.list_xattrs(header[3])), size)

    def set_xattr(self, header: Header) -> Reply:
        """Set an extended attribute."""
        size, flags, *more = self._setxattr.unpack_from(self._body, _AFTER_HEADER)
        rest = self._body[_AFTER_HEADER + self._setxattr.size : header[0]].tobytes()
        name, _, value = rest.partition(b"\0")
        kill = bool(more) and bool(more[0] & SETXATTR_ACL_KILL_SGID)
        self._union.set_xattr(header[3], name, value[:size], flags, kill_sgid=kill)
        return 0

    def remove_xattr(self, header: Header) -> Reply:
        """Remove an extended attribute."""
        self._union.remove_xattr(header[3], self._body[_AFTER_HEADER : header[0] - 1].tobytes())
        return 0

    # -- the file system -----------------------------------------------------------------------------------------------

    def file_system(self, _header: Header) -> Reply:
        """Tell how full the file system of the upper directory is (of the uppermost layer, if there is none)."""
        told = self._union.statfs()
        sizes = (told.f_blocks, told.f_bfree, told.f_bavail, told.f_files, told.f_ffree)
        return STATFS_OUT.pack(*sizes, told.f_bsize, min(told.f_namemax, _NAME_MAX), told.f_frsize)

    def ioctl(self, header: Header) -> Reply:
        """Tell or set the flags of a file (lsattr(1), chattr(1)), and refuse all else as unknown.

        Before it sets flags the kernel asks for the extended ones.
        """
        _, _, command, _, given, room = IOCTL_IN.unpack_from(self._body, _AFTER_HEADER)
        if command == FS_IOC_GETFLAGS and room >= U32.size:
            return _DONE, U32.pack(self._union.get_flags(header[3]))
        if command == FS_IOC_FSGETXATTR and self._checks_owners:
            return _DONE, self._union.get_extended_flags(header[3])[:room]
        if command == FS_IOC_SETFLAGS and given >= U32.size and self._checks_owners:
            self._union.set_flags(header[3], _UNPACK_U32(self._body, _AFTER_HEADER + IOCTL_IN.size)[0])
            return _DONE
        return -errno.ENOTTY

    def destroy(self, _header: Header) -> Reply:
        """Agree to the end."""
        return 0


def _time(seconds: int, nanoseconds: int) -> int:
    # Seconds are signed where the protocol says they are not: a file may be older than 1970.
    return (seconds - (1 << 64) if seconds >> 63 else seconds) * _SECOND + nanoseconds


def _sized(value: bytes, size: int) -> Reply:
    if not size:
        return GETXATTR_OUT.pack(len(value), 0)
    return value if len(value) <= size else -errno.ERANGE
