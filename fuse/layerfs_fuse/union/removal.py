"""Names go: what lower layers have under one is hidden by a whiteout, in the same step."""

from __future__ import annotations

import errno
import os

from layerfs_fuse.attributes import ENTRY_ATTRIBUTES, NLINK, U32
from layerfs_fuse.union.names import Names
from layerfs_fuse.union.node import HIDDEN, Directory, Node
from layerfs_fuse.union.places import fail
from layerfs_fuse.union.upper import proc

_KEEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NLINK = ENTRY_ATTRIBUTES + NLINK


class Removal(Names):
    """The tree, with what removes names."""

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name of what is no directory; the inode stays for those who have it open."""
        node = self._found(parent, name)
        if isinstance(node, Directory) or (isinstance(node, int) and self.index.is_directory(node)):
            fail(errno.EISDIR, name)
        directory = self._changeable(parent)
        if isinstance(node, int):
            self._hide(directory, name)
            self._lose_row(node)
        else:
            self._keep_nameless(node, directory, name)
            place = self._place(directory)
            if self._row(directory, name):
                self._mark_hiding(directory)
                self._writable().replace_by_whiteout(place, name)
                directory.children[name] = HIDDEN
            else:
                os.unlink(name, dir_fd=place)
                self._forget_name(directory, name)
            self._lose_name(node, directory, name)
        self._touch(directory)

    def remove_directory(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        node = self._found(parent, name)
        if isinstance(node, int) and not self.index.is_directory(node):
            fail(errno.ENOTDIR, name)
        if isinstance(node, int):
            if self.index.children(node):
                fail(errno.ENOTEMPTY, name)
            directory = self._changeable(parent)
            self._hide(directory, name)
            self._lose_row(node)
        else:
            if not isinstance(node, Directory):
                fail(errno.ENOTDIR, name)
            self._check_empty(node, name)
            directory = self._changeable(parent)
            self._remove_upper_directory(directory, name, node)
            self._bury(node)
        self._touch(directory)
        self._count_subdirectories(directory, -1)

    def _found(self, parent: int, name: bytes) -> Node | int:
        """Return what has a name, without copying its directory up for it; raise ``OSError`` (ENOENT, EROFS)."""
        self._writable()
        directory = self._directories.get(parent)
        found = self._resolve(directory, name) if directory is not None else self.index.child(parent, name)
        if not found:
            fail(errno.ENOENT, name)
        return found

    # -- on disk -------------------------------------------------------------------------------------------------------

    def _mark_hiding(self, directory: Directory) -> None:
        """Prepare an upper directory for a whiteout."""
        upper = self._writable()
        if not upper.devices and not directory.marked:
            upper.mark_hiding(self._place(directory))
            directory.marked = True

    def _hide(self, directory: Directory, name: bytes) -> None:
        """Hide what only lower layers have."""
        self._mark_hiding(directory)
        self._writable().hide(self._place(directory), name)
        directory.children[name] = HIDDEN

    def _remove_upper_directory(self, directory: Directory, name: bytes, node: Directory) -> None:
        """Remove an upper directory in which nothing shows, with the whiteouts in it."""
        upper = self._writable()
        place = self._place(directory)
        below = self._row(directory, name)
        if not below and not node.children:
            os.rmdir(name, dir_fd=place)
            self._forget_name(directory, name)
            return
        fresh = upper.fresh()
        if below:
            self._mark_hiding(directory)
            upper.leave_whiteout(place, name, upper.work, fresh)
            directory.children[name] = HIDDEN
        else:
            os.rename(name, fresh, src_dir_fd=place, dst_dir_fd=upper.work)
            self._forget_name(directory, name)
        upper.discard(fresh)

    # -- in memory -----------------------------------------------------------------------------------------------------

    def _check_empty(self, directory: Directory, name: bytes) -> None:
        """Raise ``OSError`` (ENOTEMPTY) for a directory in which something shows."""
        if not directory.loaded:
            self._load(directory)
        children = directory.children
        if any(known != HIDDEN for known in children.values()):
            fail(errno.ENOTEMPTY, name)
        if directory.below:
            rows = self.index.children(directory.below)
            if len(rows) > len(children) or any(self.index.name(row) not in children for row in rows):
                fail(errno.ENOTEMPTY, name)

    def _forget_name(self, directory: Directory, name: bytes) -> None:
        """Drop a name under which lower layers have nothing."""
        del directory.children[name]
        if directory.order is not None:
            directory.order.discard(name)

    def _keep_nameless(self, node: Node, directory: Directory, name: bytes) -> None:
        """Hold on to an upper file about to lose its last known name: the kernel may know it, or a map belong to it."""
        if node.fd < 0 and not node.more and (node.redirected or self._known(node)):
            node.fd = os.open(name, _KEEP, dir_fd=self._place(directory))

    def _lose_name(self, node: Node, directory: Directory, name: bytes) -> None:
        """Note that an upper file has a name less."""
        node.drop_name(directory, name)
        node.stale = True
        if node.directory is None:
            self._drop(node)
        elif node.fd >= 0:
            os.close(node.fd)
            node.fd = -1

    def _lose_row(self, row: int) -> None:
        """Note that a pristine row has lost a name to a whiteout."""
        node = self.index.node(row)
        if self.index.is_directory(row):
            entry = bytearray(self.index.entry(row))
            gone = Directory(row, self.index.ino(row), entry, upper=False, below=0)
            gone.loaded = True
            self._nodes[row] = self._directories[row] = gone
            self._bury(gone)
            return
        visible = sum(map(self._shows, self.index.aliases(node))) if self.index.linked(row) else 0
        self._drop(self._patch(node, visible))

    def _bury(self, directory: Directory) -> None:
        """Note that a directory is gone; who is in it still finds it, empty."""
        self._settled(directory)
        self._close(directory)
        directory.dead = True
        directory.upper = directory.stale = False
        directory.below = 0
        directory.children = {}
        directory.order = None
        if directory.directory is not None:
            directory.drop_name(directory.directory, directory.name)
        U32.pack_into(directory.entry, _NLINK, 0)
        self._drop(directory)

    def _settled(self, directory: Directory) -> None:
        """Owe a directory nothing any more."""
        if directory.owed:
            directory.owed = False
            del self._owed[directory]

    # -- opaque --------------------------------------------------------------------------------------------------------

    def _make_opaque(self, directory: Directory) -> None:
        """Hide on disk what is below an upper directory that has everything itself, and drop the whiteouts in it.

        In memory it is no longer merged; its names keep their places in a listing.
        """
        upper = self._writable()
        place = self._place(directory)
        self._hold_times(directory)
        with self._eased(directory):
            upper.mark_opaque(proc(place))
        directory.marked = False
        self._part(directory)

    def _part(self, directory: Directory) -> None:
        """Part a directory from its row: remove its whiteouts, note its inode number on disk."""
        upper = self._writable()
        place = self._place(directory)
        self._hold_times(directory)
        with self._eased(directory):
            for name in [name for name, known in directory.children.items() if known == HIDDEN]:
                os.unlink(name, dir_fd=place)
                del directory.children[name]
            if directory.below:
                upper.mark_ino(proc(place), directory.ino, follow=True)
        if directory.below:
            if directory.order is not None:
                rows = self.index.children(directory.below)
                directory.order.precede({self.index.name(row): row + 1 for row in rows}, directory.children)
            directory.below = 0
