"""Open files, and attributes that are set."""

from __future__ import annotations

import errno
import os
import stat

from layerfs.kernel import syscalls
from layerfs.kernel.descriptors import opened
from layerfs_fuse.attributes import ENTRY_ATTRIBUTES, GID, MODE, U32, UID
from layerfs_fuse.union.handle import Handle
from layerfs_fuse.union.names import readable
from layerfs_fuse.union.node import Directory, Node
from layerfs_fuse.union.places import fail
from layerfs_fuse.union.renaming import Renaming
from layerfs_fuse.union.requests import Changes
from layerfs_fuse.union.upper import proc

_OWNER_ACCESS = 0o600
_FORBIDDING = syscalls.FS_IMMUTABLE_FL | syscalls.FS_APPEND_FL
_SET_IDS = stat.S_ISUID | stat.S_ISGID
_MODE, _UID, _GID = ENTRY_ATTRIBUTES + MODE, ENTRY_ATTRIBUTES + UID, ENTRY_ATTRIBUTES + GID


class Files(Renaming):
    """The tree, with what opens and changes files."""

    def open(self, number: int, flags: int) -> Handle:
        """Open a regular file; one that may be written to is copied up first. Raise ``OSError`` (EROFS, ENOSPC, EIO).

        Of ``flags`` the way of access and O_TRUNC count.
        """
        access = readable(flags)
        node = self._nodes.get(number)
        if access != os.O_RDONLY or flags & os.O_TRUNC:
            node = self._changed(number, size=0 if flags & os.O_TRUNC else None)
            if isinstance(node, Directory):
                fail(errno.EISDIR)
        if node is None or not node.upper:
            row = number if node is None else node.row
            if row > self.index.count:
                fail(errno.ESTALE)
            registry = self._readers.setdefault(number, [])
            handle = Handle(self.lower.open(row, access), number, flags, None, registry)
            registry.append(handle)
            return handle
        if flags & os.O_TRUNC:
            node.stale = node.written = True
        if node.redirected:
            content = self._open_redirected(node)
            if flags & os.O_TRUNC:
                content.truncate(0)
            return Handle(-1, number, flags, node, None, content)
        fd = self._open_upper(node, access | flags & os.O_TRUNC)
        return Handle(fd, number, flags, node, None)

    def _open_upper(self, node: Node, flags: int) -> int:
        place, path, _ = self._reach(node)
        try:
            return os.open(path, flags | os.O_CLOEXEC, dir_fd=place)
        except PermissionError:
            if node.directory is None or not stat.S_ISREG(self.mode(node)):
                raise
        # An ordinary user's own file without permission to read: who may open it was decided before it came to us.
        mode = stat.S_IMODE(self.mode(node))
        os.chmod(path, mode | _OWNER_ACCESS, dir_fd=place)
        try:
            return os.open(path, flags | os.O_CLOEXEC, dir_fd=place)
        finally:
            os.chmod(path, mode, dir_fd=place)

    def renumber(self, number: int) -> int:
        """Give a copied-up file a new node id and return it; the old one stays the lower file until forgotten."""
        node = self._nodes.get(number)
        if node is None or not node.upper or isinstance(node, Directory) or number > self.index.count:
            fail(errno.ESTALE)
        del self._nodes[number]
        node.id = self._number()
        node.entry[0:8] = node.id.to_bytes(8, "little")
        self._nodes[node.id] = node
        for directory, name in node.names():
            directory.children[name] = node.id
        return node.id

    def read_link(self, number: int) -> bytes:
        """Return where a symbolic link points to."""
        node = self._nodes.get(number)
        if node is None or not node.upper:
            try:
                return self.index.target(number if node is None else node.row)
            except ValueError:
                fail(errno.EINVAL)
        place, path, follow = self._reach(node)
        return os.readlink(b"" if follow else path, dir_fd=node.fd if follow else place)

    # -- flags ---------------------------------------------------------------------------------------------------------

    def get_flags(self, number: int) -> int:
        """Return the flags of a file or directory (ioctl_iflags(2)); raise ``OSError`` ENOTTY where there are none."""
        with opened(self._open_itself(number)) as fd:
            return syscalls.file_flags(fd)

    def get_extended_flags(self, number: int) -> bytes:
        """Return the same and more, as ``struct fsxattr``."""
        with opened(self._open_itself(number)) as fd:
            return syscalls.extended_flags(fd)

    def set_flags(self, number: int, flags: int) -> None:
        """Set the flags of a file or directory, which end with the upper directory: no layer has any.

        Raise ``OSError``: EOPNOTSUPP for those that would keep the union, too, from changing or removing it.
        """
        if (flags ^ self.get_flags(number)) & _FORBIDDING:
            fail(errno.EOPNOTSUPP)
        node = self._changed(number)
        if isinstance(node, Directory):
            self._settle(node)
        with opened(self._open_itself(number)) as fd:
            syscalls.set_file_flags(fd, flags)
        node.stale = True

    def _open_itself(self, number: int) -> int:
        """Open a regular file or a directory where it lies, to be read."""
        node = self._nodes.get(number)
        row = number if node is None else node.row
        kind = self.kind(row) if node is None else node.kind
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            fail(errno.ENOTTY)
        if node is None or not node.upper:
            return self.lower.open(row, os.O_RDONLY)
        if isinstance(node, Directory):
            return os.open(proc(self._place(node)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._open_upper(node, os.O_RDONLY)

    # -- attributes ----------------------------------------------------------------------------------------------------

    def set_attributes(self, number: int, changes: Changes) -> bytes | bytearray:
        """Change attributes and return the 88 bytes that result; raise ``OSError`` (EPERM, EROFS, ENOSPC, EFBIG)."""
        attributes, exact = self.change(number, changes)
        return attributes if exact else self.attributes(number)

    def changeable(self, number: int) -> bool:
        """Tell whether a node lies in the upper directory, so that to change it costs no copy."""
        node = self._nodes.get(number)
        return node is not None and node.upper

    def change(self, number: int, changes: Changes) -> tuple[bytes | bytearray, bool]:
        """Change attributes; return the 88 bytes, and whether times and blocks among them are what the disk has.

        To look costs as much as to change, so it is left out where all else is known. Raise what `set_attributes`
        raises.
        """
        node, mode = self._to_change(number, changes)
        before = self.mode(node)
        known = not (node.written or node.past or changes.size is not None or node.kind == stat.S_IFDIR)
        if (before | (mode or 0)) & _SET_IDS:  # which chown(2) takes away, and chmod(2) does not give to everybody
            known = False
        place, path, follow = self._grip(node)
        if changes.uid is not None or changes.gid is not None:
            owner = -1 if changes.uid is None else changes.uid, -1 if changes.gid is None else changes.gid
            os.chown(path, *owner, dir_fd=place, follow_symlinks=follow)
        if mode is None and changes.kill_suidgid and _without_set_ids(before) != before:
            mode = _without_set_ids(before)
        if mode is not None:
            os.chmod(path, stat.S_IMODE(mode), dir_fd=place)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            syscalls.set_times(path, changes.atime_ns, changes.mtime_ns, dir_fd=place, follow=follow)
        if known:
            _note(node.entry, mode, changes)
            node.stale = True
        else:
            node.stale = False
            self._take(node, self._status(node))
        return node.entry[ENTRY_ATTRIBUTES:], not known

    def _to_change(self, number: int, changes: Changes) -> tuple[Node, int | None]:
        """Return a node in the upper directory, cut to size, and the mode that it is still to be given."""
        node = self._nodes.get(number)
        mode = changes.mode
        if node is None or not node.upper:
            early = mode if changes.uid is None and changes.gid is None else None
            node = self._changed(number, size=changes.size, mode=early)
            if early is not None and node.kind == stat.S_IFREG:
                mode = None
        if isinstance(node, Directory):
            self._settle(node)
        if changes.size is not None:
            self._cut(node, changes.size)
        return node, mode

    def _cut(self, node: Node, size: int) -> None:
        if isinstance(node, Directory):
            fail(errno.EISDIR)
        if node.redirected:
            content = self._open_redirected(node)
            try:
                content.truncate(size)
            finally:
                content.release()
            return
        if node.handle is not None and node.handle.flags & os.O_ACCMODE:
            os.ftruncate(node.handle.fd, size)
            return
        fd = self._open_upper(node, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)


def _note(entry: bytearray, mode: int | None, changes: Changes) -> None:
    """Write a mode and an owner into an entry."""
    if mode is not None:
        (before,) = U32.unpack_from(entry, _MODE)
        U32.pack_into(entry, _MODE, stat.S_IFMT(before) | stat.S_IMODE(mode))
    if changes.uid is not None:
        U32.pack_into(entry, _UID, changes.uid)
    if changes.gid is not None:
        U32.pack_into(entry, _GID, changes.gid)


def _without_set_ids(mode: int) -> int:
    """Take set-user-id off a mode, and set-group-id where the group may execute (FUSE_HANDLE_KILLPRIV_V2)."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode
