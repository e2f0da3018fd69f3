"""Open files, and attributes that are set."""

from __future__ import annotations

import errno
import os
import stat
import time

from layerfs_fuse.attributes import ENTRY_ATTRIBUTES
from layerfs_fuse.union.handle import Handle
from layerfs_fuse.union.names import readable
from layerfs_fuse.union.node import Directory, Node
from layerfs_fuse.union.places import fail
from layerfs_fuse.union.renaming import Renaming
from layerfs_fuse.union.requests import NOW, Changes

_OWNER_ACCESS = 0o600
_COARSE = 5
"""CLOCK_REALTIME_COARSE of clock_gettime(2), which the time module does not name."""


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
            node.stale = True
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

    # -- attributes ----------------------------------------------------------------------------------------------------

    def set_attributes(self, number: int, changes: Changes, handle: Handle | None = None) -> bytes | bytearray:
        """Change attributes and return the 88 bytes that result; raise ``OSError`` (EPERM, EROFS, ENOSPC, EFBIG)."""
        node = self._changed(number, size=changes.size)
        if isinstance(node, Directory):
            self._settle(node)
        if changes.size is not None:
            self._cut(node, changes.size, handle)
        place, path, follow = self._grip(node)
        if changes.uid is not None or changes.gid is not None:
            uid = -1 if changes.uid is None else changes.uid
            gid = -1 if changes.gid is None else changes.gid
            os.chown(path, uid, gid, dir_fd=place, follow_symlinks=follow)
        mode = changes.mode
        if mode is None and changes.kill_suidgid and _without_set_ids(self.mode(node)) != self.mode(node):
            mode = _without_set_ids(self.mode(node))
        if mode is not None:
            os.chmod(path, stat.S_IMODE(mode), dir_fd=place)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            self._set_times(node, changes, place, path, follow=follow)
        node.stale = False
        self._take(node, self._status(node))
        return node.entry[ENTRY_ATTRIBUTES:]

    def _cut(self, node: Node, size: int, handle: Handle | None) -> None:
        if isinstance(node, Directory):
            fail(errno.EISDIR)
        if node.redirected:
            content = self._open_redirected(node)
            try:
                content.truncate(size)
            finally:
                content.release()
            return
        if handle is not None and handle.flags & os.O_ACCMODE:
            os.ftruncate(handle.fd, size)
            return
        if node.handle is not None and node.handle.flags & os.O_ACCMODE:
            os.ftruncate(node.handle.fd, size)
            return
        fd = self._open_upper(node, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def _set_times(self, node: Node, changes: Changes, place: int | None, path: bytes | int, *, follow: bool) -> None:
        atime, mtime = changes.atime_ns, changes.mtime_ns
        if atime == mtime == NOW:
            os.utime(path, None, dir_fd=place, follow_symlinks=follow)
            return
        if atime is None or mtime is None or NOW in (atime, mtime):
            # utimensat(2) could leave one alone or set it to now; Python's utime cannot.
            status = self._status(node)
            atime = status.st_atime_ns if atime is None else atime
            mtime = status.st_mtime_ns if mtime is None else mtime
        now = self._now() if NOW in (atime, mtime) else 0
        times = (now if atime == NOW else atime, now if mtime == NOW else mtime)
        os.utime(path, ns=times, dir_fd=place, follow_symlinks=follow)

    def _now(self) -> int:
        """Return the present time as file systems take it: that of the last tick."""
        return time.clock_gettime_ns(_COARSE)


def _without_set_ids(mode: int) -> int:
    """Take set-user-id off a mode, and set-group-id where the group may execute (FUSE_HANDLE_KILLPRIV_V2)."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode
