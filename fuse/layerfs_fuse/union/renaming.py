"""Renames, those of lower and merged directories too: the whole tree is copied up first, then renamed in one step.

So no name in the upper directory points elsewhere (no ``redirect``), and the directory can be mounted by any overlay
and committed as a layer. What remains below the old name is hidden by a whiteout that the same system call makes.
"""

from __future__ import annotations

import errno
import os

from layerfs.kernel import syscalls
from layerfs_fuse.union.node import HIDDEN, Directory, Node
from layerfs_fuse.union.places import fail
from layerfs_fuse.union.removal import Removal
from layerfs_fuse.union.tree import LONGEST_NAME

NOREPLACE, EXCHANGE = 1, 2
"""Flags of renameat2(2)."""


class Renaming(Removal):
    """The tree, with what moves names."""

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        """Rename as renameat2(2) does; raise ``OSError``, EINVAL for RENAME_WHITEOUT, which is the overlay's own."""
        if flags & ~(NOREPLACE | EXCHANGE) or flags == NOREPLACE | EXCHANGE:
            fail(errno.EINVAL, name)
        if len(new_name) > LONGEST_NAME:
            fail(errno.ENAMETOOLONG, new_name)
        moved = self._found(parent, name)
        replaced = self._present(new_parent, new_name)
        self._check_rename(moved, replaced, new_parent, name, flags)
        if flags & EXCHANGE:
            self._exchange(parent, name, new_parent, new_name)
            return
        if self._same(moved, replaced):
            return
        if replaced:
            self._check_replaceable(moved, replaced, new_name)
        self._move(parent, name, new_parent, new_name)

    def _present(self, parent: int, name: bytes) -> Node | int:
        directory = self._directories.get(parent)
        return self._resolve(directory, name) if directory is not None else self.index.child(parent, name)

    def _check_rename(self, moved: Node | int, replaced: Node | int, new_parent: int, name: bytes, flags: int) -> None:
        if flags & NOREPLACE and replaced:
            fail(errno.EEXIST, name)
        if flags & EXCHANGE and not replaced:
            fail(errno.ENOENT, name)
        if self._is_directory(moved) and self._is_inside(new_parent, moved):
            fail(errno.EINVAL, name)

    def _same(self, one: Node | int, other: Node | int) -> bool:
        """Tell whether two names are the same inode, which makes a rename do nothing (rename(2))."""
        if isinstance(one, Node) or isinstance(other, Node):
            return one is other
        return other != 0 and self.index.node(one) == self.index.node(other)

    def _is_directory(self, found: Node | int) -> bool:
        return isinstance(found, Directory) or (isinstance(found, int) and self.index.is_directory(found))

    def _is_inside(self, number: int, top: Node | int) -> bool:
        """Tell whether a directory is another or lies below it."""
        wanted = top if isinstance(top, int) else top.id
        while number != wanted:
            directory = self._directories.get(number)
            if directory is None:
                number = self.index.parent(number)
            elif directory.directory is None:
                return False
            else:
                number = directory.directory.id
        return True

    def _check_replaceable(self, moved: Node | int, replaced: Node | int, name: bytes) -> None:
        """Raise the ``OSError`` of a rename to a name that cannot be replaced."""
        if not self._is_directory(replaced):
            if self._is_directory(moved):
                fail(errno.ENOTDIR, name)
            return
        if not self._is_directory(moved):
            fail(errno.EISDIR, name)
        if isinstance(replaced, Directory):
            self._check_empty(replaced, name)
        elif isinstance(replaced, int) and self.index.children(replaced):
            fail(errno.ENOTEMPTY, name)

    # -- what is to be moved -------------------------------------------------------------------------------------------

    def _movable(self, parent: int, name: bytes) -> tuple[Directory, Node]:
        """Return a name's directory and its node, both in the upper directory, a directory with all that is in it."""
        found = self._found(parent, name)
        if isinstance(found, int):
            found = self._changed(self.index.node(found))
        directory = self._changeable(parent)
        if isinstance(found, Directory) and found.below:
            self._copy_up_tree(found)
        return directory, found

    def _copy_up_tree(self, top: Directory) -> None:
        """Copy up everything in a merged directory, and part it and what is in it from the lower layers."""
        merged = [top]
        for directory in merged:  # which grows meanwhile
            if not directory.loaded:
                self._load(directory)
            for row in self.index.children(directory.below):
                name = self.index.name(row)
                if name not in directory.children:
                    self._changed(self.index.node(row))
                if directory.children[name] == HIDDEN:
                    continue
                found = self._resolve(directory, name)
                if isinstance(found, Directory):
                    merged += [found] if found.below else []
                elif isinstance(found, Node):
                    self._mark_ino(found, directory, name)
        self._make_opaque(top)
        for directory in merged[1:]:
            self._part(directory)

    # -- moving --------------------------------------------------------------------------------------------------------

    def _move(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        directory, node = self._movable(parent, name)
        new_directory = self._changeable(new_parent)
        replaced = self._resolve(new_directory, new_name)
        if isinstance(replaced, Directory):
            self._clear(replaced)
        elif isinstance(replaced, Node):
            self._keep_nameless(replaced, new_directory, new_name)
        if isinstance(node, Directory) and self._row(new_directory, new_name):
            self._make_opaque(node)
        self._mark_ino(node, new_directory, new_name)
        self._move_on_disk(directory, name, new_directory, new_name, node)
        self._leave(directory, name)
        if self._is_directory(node):
            self._count_subdirectories(directory, -1)
        if replaced:
            self._replace(new_directory, new_name, replaced)
        self._arrive(node, directory, name, new_directory, new_name)

    def _clear(self, directory: Directory) -> None:
        """Empty on disk a directory in which nothing shows, so that another may be renamed over it."""
        if directory.upper and (directory.below or directory.children):
            self._make_opaque(directory)

    def _move_on_disk(
        self, directory: Directory, name: bytes, new_directory: Directory, new_name: bytes, node: Node
    ) -> None:
        upper = self._writable()
        place, new_place = self._place(directory), self._place(new_directory)
        covers = self._row(directory, name) != 0
        if covers:
            self._mark_hiding(directory)
        if isinstance(node, Directory) and new_directory.children.get(new_name) == HIDDEN:
            # A directory cannot be renamed over a whiteout; exchanged with it, the whiteout comes where one is needed.
            syscalls.rename_exchange(place, name, new_place, new_name)
            if not covers:
                os.unlink(name, dir_fd=place)
        elif covers:
            upper.leave_whiteout(place, name, new_place, new_name)
        else:
            os.rename(name, new_name, src_dir_fd=place, dst_dir_fd=new_place)

    def _leave(self, directory: Directory, name: bytes) -> None:
        """Note that a name has left a directory."""
        if self._row(directory, name):
            directory.children[name] = HIDDEN
        else:
            self._forget_name(directory, name)

    def _replace(self, directory: Directory, name: bytes, replaced: Node | int) -> None:
        """Note that something else has taken the name of what was there."""
        if self._is_directory(replaced):
            self._count_subdirectories(directory, -1)
        if isinstance(replaced, Directory):
            self._bury(replaced)
        elif isinstance(replaced, Node):
            self._lose_name(replaced, directory, name)
        else:
            directory.children[name] = HIDDEN
            self._lose_row(replaced)

    def _arrive(self, node: Node, directory: Directory, name: bytes, new_directory: Directory, new_name: bytes) -> None:
        """Note that a node has come to a name."""
        node.drop_name(directory, name)
        self._name(node, new_directory, new_name)
        if isinstance(node, Directory):
            self._count_subdirectories(new_directory, 1)
        self._restamp(node)
        self._touch(directory)
        self._touch(new_directory)

    def _restamp(self, node: Node) -> None:
        """Note that the time of the last change of a node is new."""
        if not isinstance(node, Directory) or not node.owed:
            node.stale = True

    # -- exchanging ----------------------------------------------------------------------------------------------------

    def _exchange(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        directory, node = self._movable(parent, name)
        new_directory, other = self._movable(new_parent, new_name)
        if node is other:
            return
        if isinstance(other, Directory) and self._is_inside(parent, other):
            fail(errno.EINVAL, name)
        for one, where, what in ((node, new_directory, new_name), (other, directory, name)):
            if isinstance(one, Directory) and self._row(where, what):
                self._make_opaque(one)
            self._mark_ino(one, where, what)
        syscalls.rename_exchange(self._place(directory), name, self._place(new_directory), new_name)
        node.drop_name(directory, name)
        other.drop_name(new_directory, new_name)
        self._name(node, new_directory, new_name)
        self._name(other, directory, name)
        for one, left, come in ((node, directory, new_directory), (other, new_directory, directory)):
            if isinstance(one, Directory):
                self._count_subdirectories(left, -1)
                self._count_subdirectories(come, 1)
            self._restamp(one)
            self._touch(left)
