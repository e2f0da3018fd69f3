"""Load what lies in the upper directory: each directory once, and each file when somebody asks for it."""

from __future__ import annotations

import os
import stat

from layerfs.layer.attributes import DEFAULT_ACL
from layerfs_fuse.attributes import ENTRY_ATTRIBUTES, NLINK, U32, pack_attributes, pack_entry
from layerfs_fuse.index.markers import OPAQUE_XWHITEOUTS, OPAQUE_YES
from layerfs_fuse.union.node import Directory, Node
from layerfs_fuse.union.places import Places
from layerfs_fuse.union.upper import proc, proc_name

_NLINK = ENTRY_ATTRIBUTES + NLINK
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Loading(Places):
    """The tables, with what fills them from the disk."""

    def _load(self, directory: Directory) -> None:
        """Read the names of an upper directory, and count the directories that show in it."""
        place = self._place(directory)
        with self._eased(directory):
            fd = os.open(b".", _LIST, dir_fd=place)
            try:
                with os.scandir(fd) as found:
                    kinds = {os.fsencode(one.name): _kind(one) for one in found}
            finally:
                os.close(fd)
            self._find_whiteouts(directory, place, kinds)
        directory.loaded = True
        directory.children = {name: -kind for name, kind in kinds.items()}
        self._load_subdirectories(directory)

    def _find_whiteouts(self, directory: Directory, place: int, kinds: dict[bytes, int]) -> None:
        """Set the kind of whiteouts to 0, and find out the kinds that the listing left open.

        An empty file with the mark is a whiteout to every lookup of the kernel, whatever the mark of its directory.
        """
        upper = self._writable()
        opaque = upper.read_mark(proc(place), upper.marks.opaque, follow=True)
        directory.marked = opaque == OPAQUE_XWHITEOUTS
        for name, kind in kinds.items():
            if kind not in (0, stat.S_IFREG):
                continue
            status = os.stat(name, dir_fd=place, follow_symlinks=False)
            if kind:
                whiteout = not status.st_size and upper.is_hiding(place, name)
            else:
                whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
            kinds[name] = 0 if whiteout else stat.S_IFMT(status.st_mode)

    def _load_subdirectories(self, directory: Directory) -> None:
        count = 0
        below = directory.below
        if below:
            count = int(U32.unpack_from(self.index.attributes(below), NLINK)[0]) - 2
        for name, kind in directory.children.items():
            row = self.index.child(below, name) if below else 0
            count += (kind == -stat.S_IFDIR) - (row != 0 and self.index.is_directory(row))
        directory.subdirectories = count
        if not directory.stale:
            U32.pack_into(directory.entry, _NLINK, 2 + count)

    def _find(self, directory: Directory, name: bytes) -> Node:
        """Look at something in an upper directory that was not looked at yet."""
        upper = self._writable()
        place = self._place(directory)
        status = os.stat(name, dir_fd=place, follow_symlinks=False)
        if status.st_nlink > 1 and (known := self._inodes.get(status.st_ino)) is not None:
            known.add_name(directory, name)
            directory.children[name] = known.id
            return known
        path = proc_name(place, name)
        marks = upper.names(path)
        if stat.S_ISDIR(status.st_mode):
            node: Node = self._found_directory(directory, name, status, path, marks)
        else:
            ino = self._found_ino(directory, name, status, path, marks)
            node = self._new(status, ino)
            if upper.redirected in marks:
                node.redirected = True
                self._take(node, status)
            if status.st_nlink > 1:
                self._inodes[status.st_ino] = node
        node.bare = all(upper.is_private(mark) for mark in marks)
        self._admit(node, directory, name)
        return node

    def _found_directory(
        self, directory: Directory, name: bytes, status: os.stat_result, path: bytes, marks: list[bytes]
    ) -> Directory:
        upper = self._writable()
        below = self._row(directory, name)
        if below and not self.index.is_directory(below):
            below = 0
        if below and upper.marks.opaque in marks and upper.read_mark(path, upper.marks.opaque) == OPAQUE_YES:
            below = 0
        if below:
            ino = self.index.ino(below)
        else:
            ino = (upper.read_ino(path) if upper.ino in marks else 0) or self._ino(status.st_ino)
        number = below if below and below not in self._nodes else self._number()
        entry = bytearray(pack_entry(number, pack_attributes(status, ino)))
        found = Directory(number, ino, entry, upper=True, below=below)
        found.plain = DEFAULT_ACL not in marks
        found.directory, found.name = directory, name  # loading needs its place
        self._load(found)
        found.directory = None
        return found

    def _found_ino(
        self, directory: Directory, name: bytes, status: os.stat_result, path: bytes, marks: list[bytes]
    ) -> int:
        """Return the inode number to show of an upper file that is no directory."""
        upper = self._writable()
        if upper.ino in marks and (ino := upper.read_ino(path)):
            return ino
        if stat.S_ISREG(status.st_mode):
            row = self._stands_for(directory, name) if status.st_nlink == 1 else 0
            return self.index.ino(row) if row else self._ino(status.st_ino)
        row = self._row(directory, name)
        # What could not be given a mark is taken for the copy of what it looks like.
        if (
            row
            and stat.S_ISLNK(status.st_mode)
            and stat.S_ISLNK(self.index.mode(row))
            and (os.readlink(path) == self.index.target(row))
        ):
            return self.index.ino(row)
        return self._ino(status.st_ino)


def _kind(entry: os.DirEntry[str]) -> int:
    """Return the file type of an entry of a listing; 0 where it does not tell."""
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0
