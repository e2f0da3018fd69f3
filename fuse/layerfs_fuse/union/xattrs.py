"""Extended attributes: those of the overlay are hidden, those of an overlay inside the union are escaped."""

from __future__ import annotations

import errno
import os
import stat
import struct

from layerfs.layer.attributes import ACCESS_ACL, DEFAULT_ACL
from layerfs_fuse.index.markers import USER, Marks
from layerfs_fuse.union.listing import Listing
from layerfs_fuse.union.node import Directory, Node
from layerfs_fuse.union.places import fail
from layerfs_fuse.union.upper import proc

_MINIMAL_ACL = struct.Struct("=I HHI HHI HHI")
_SET_IDS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


def _permissions(acl: bytes) -> int | None:
    """Return the permissions that an ACL says, if they are all that it says, as in those that `cp -a` writes."""
    if len(acl) != _MINIMAL_ACL.size:
        return None
    version, *entries = _MINIMAL_ACL.unpack(acl)
    owner, group, other = entries[1::3]
    # linux/posix_acl_xattr.h and linux/posix_acl.h: ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_OTHER.
    return int(owner << 6 | group << 3 | other) if version == 2 and entries[0::3] == [1, 4, 32] else None  # noqa: PLR2004


class Xattrs(Listing):
    """The tree, with extended attributes."""

    @property
    def _marks(self) -> Marks:
        """Return the names that the overlay keeps for itself."""
        return USER if self.upper is None else self.upper.marks

    def bare(self, number: int) -> bool:
        """Tell whether a file has no extended attributes for certain, without asking the disk."""
        node = self._nodes.get(number)
        if node is None or not node.upper:
            return not self.index.has_xattrs(number if node is None else node.row)
        return node.bare

    def get_xattr(self, number: int, name: bytes) -> bytes:
        """Return an attribute; raise ``OSError`` (ENODATA, EOPNOTSUPP)."""
        if self.bare(number):
            fail(errno.ENODATA, name)
        node = self._nodes.get(number)
        stored = self._marks.stored(name)
        if node is not None and node.upper:
            path, follow = self._path(node)
            return os.getxattr(path, stored, follow_symlinks=follow)
        fd = self.lower.open(number if node is None else node.row, os.O_PATH)
        try:
            return os.getxattr(proc(fd), stored)
        finally:
            os.close(fd)

    def list_xattrs(self, number: int) -> list[bytes]:
        """Return the names of all attributes that show."""
        node = self._nodes.get(number)
        if node is not None and node.upper:
            if node.bare:
                return []
            path, follow = self._path(node)
            return self._shown(os.listxattr(path, follow_symlinks=follow))
        row = number if node is None else node.row
        if not self.index.has_xattrs(row):
            return []
        fd = self.lower.open(row, os.O_PATH)
        try:
            return self._shown(os.listxattr(proc(fd)))
        finally:
            os.close(fd)

    def _shown(self, stored: list[str]) -> list[bytes]:
        shown = (self._marks.shown(os.fsencode(name)) for name in stored)
        return [name for name in shown if name is not None]

    def set_xattr(self, number: int, name: bytes, value: bytes, flags: int = 0, *, kill_sgid: bool = False) -> None:
        """Set an attribute; ``flags`` are XATTR_CREATE and XATTR_REPLACE.

        ``kill_sgid`` takes set-group-id away with a new ACL, as FUSE_SETXATTR_ACL_KILL_SGID asks.
        """
        if flags & os.XATTR_REPLACE:
            self.get_xattr(number, name)  # without it nothing needs to be copied up
        node = self._changed(number)
        self._before(node, name)
        if name == ACCESS_ACL and node.bare and (permissions := _permissions(value)) is not None:
            kept = self.mode(node) & (_SET_IDS & ~stat.S_ISGID if kill_sgid else _SET_IDS)
            place, grip, _ = self._grip(node)
            os.chmod(grip, kept | permissions, dir_fd=place)
            node.stale = True
            return
        path, follow = self._path(node)
        os.setxattr(path, self._marks.stored(name), value, flags, follow_symlinks=follow)
        node.bare = False
        self._after(node, name)
        if kill_sgid and self.mode(node) & stat.S_ISGID:
            os.chmod(path, stat.S_IMODE(self.mode(node)) & ~stat.S_ISGID)
            self._after(node, name)

    def remove_xattr(self, number: int, name: bytes) -> None:
        """Remove an attribute; raise ``OSError`` (ENODATA)."""
        self._writable()
        self.get_xattr(number, name)
        node = self._changed(number)
        self._before(node, name)
        path, follow = self._path(node)
        os.removexattr(path, self._marks.stored(name), follow_symlinks=follow)
        self._after(node, name)

    def _before(self, node: Node, name: bytes) -> None:
        if isinstance(node, Directory):
            self._settle(node)
            if name == DEFAULT_ACL:
                node.plain = False

    def _after(self, node: Node, name: bytes) -> None:
        """Show what a new attribute changes: the time of the change and, for an ACL, the mode."""
        if name == ACCESS_ACL:
            self._take(node, self._status(node))
        node.stale = True
