"""Copy-up: what a lower file or directory needs before its first change.

A copy is made in the working directory, with everything that belongs to it, and comes to its place in one step: after
a crash there is all of it or nothing. Data is on the disk before that, unless the union is volatile, as the kernel's
overlay has it. All names under which the file shows are linked, so hard links stay what they are.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import TYPE_CHECKING

from layerfs.contract import WritePolicy
from layerfs.layer import attributes
from layerfs_fuse.attributes import ATTRIBUTES, ENTRY_ATTRIBUTES, MODE, U32
from layerfs_fuse.union.data import copy_data
from layerfs_fuse.union.entries import device_of, links_of, owner_of, times_in, times_of
from layerfs_fuse.union.handle import Handle
from layerfs_fuse.union.node import Directory, Node
from layerfs_fuse.union.places import fail
from layerfs_fuse.union.tree import Tree
from layerfs_fuse.union.upper import CREATE, PATH, eased, proc, proc_name

if TYPE_CHECKING:
    from layerfs_fuse.redirect.file import RedirectedFile

_SET_IDS = stat.S_ISUID | stat.S_ISGID
_WORKING = 0o600
_MODE = ENTRY_ATTRIBUTES + MODE


class CopyUp(Tree):
    """The tree, with what makes lower things upper."""

    # -- directories ---------------------------------------------------------------------------------------------------

    def _changeable(self, number: int) -> Directory:
        """Return a directory that lies in the upper directory and is loaded, so that names in it can change.

        Raise ``OSError``: EROFS, ENOTDIR, ENOENT where it was removed.
        """
        directory = self._directories.get(number)
        if directory is None:
            directory = self._copy_up_directories(number)
        if directory.dead:
            fail(errno.ENOENT)
        if not directory.loaded:
            self._load(directory)
        return directory

    def _copy_up_directories(self, number: int) -> Directory:
        """Copy up a pristine directory and those above it."""
        self._writable()
        if number > self.index.count or not self.index.is_directory(number) or number in self._nodes:
            fail(errno.ENOTDIR)
        chain = [number]
        while (above := self.index.parent(chain[-1])) not in self._directories:
            chain.append(above)
        directory = self._directories[above]
        for row in reversed(chain):
            directory = self._copy_up_directory(row, directory)
        return directory

    def _copy_up_directory(self, row: int, parent: Directory) -> Directory:
        upper = self._writable()
        index = self.index
        entry = bytearray(index.entry(row))
        directory = Directory(row, index.ino(row), entry, upper=True, below=row)
        directory.loaded = True
        directory.bare = directory.plain = not index.has_xattrs(row)
        directory.subdirectories = links_of(entry) - 2
        name = index.name(row)
        self._hold_times(parent)
        place = self._place(parent)
        mode = stat.S_IMODE(index.mode(row))
        inherits = self.mode(parent) & stat.S_ISGID or not parent.plain
        with self._eased(parent):
            if directory.bare and self._is_mine(entry) and not mode & _SET_IDS and not inherits:
                os.mkdir(name, mode, dir_fd=place)
            else:
                fresh = upper.fresh()
                os.mkdir(fresh, 0o700, dir_fd=upper.work)
                try:
                    self._give(fresh, row, entry)
                    self._move_directory_in(fresh, mode, place, name)
                except OSError:
                    upper.discard(fresh)
                    raise
        self._admit(directory, parent, name)
        # The disk has the time of the making, and mostly something is made inside right away.
        directory.owed = True
        self._owed[directory] = None
        return directory

    def _move_directory_in(self, fresh: bytes, mode: int, place: int, name: bytes) -> None:
        """Move a directory from the working directory to its place; its owner must be allowed to write in it."""
        upper = self._writable()
        fd = os.open(fresh, PATH, dir_fd=upper.work)
        try:
            with eased(proc(fd), mode):
                os.rename(fresh, name, src_dir_fd=upper.work, dst_dir_fd=place)
        finally:
            os.close(fd)

    def _is_mine(self, entry: bytearray) -> bool:
        """Tell whether what this process makes belongs to the same user and group."""
        return owner_of(entry) == (self._euid, self._egid)

    def _give(self, fresh: bytes, row: int, entry: bytearray) -> None:
        """Give something in the working directory the owner, attributes and mode of a row."""
        upper = self._writable()
        uid, gid = owner_of(entry)
        if (uid, gid) != (self._euid, self._egid):
            os.chown(fresh, uid, gid, dir_fd=upper.work, follow_symlinks=False)
        if self.index.has_xattrs(row):
            self._copy_xattrs(row, proc_name(upper.work, fresh))
        if not stat.S_ISLNK(self.index.mode(row)):
            os.chmod(fresh, stat.S_IMODE(self.index.mode(row)), dir_fd=upper.work)

    def _copy_xattrs(self, row: int, target: int | bytes) -> None:
        upper = self._writable()
        source = self.lower.open(row, os.O_PATH)
        try:
            found = attributes.read(proc(source), follow=True)
        finally:
            os.close(source)
        kept = {name: value for name, value in found.items() if not upper.is_private(name)}
        attributes.write(target, kept, lenient=self._euid != 0)

    # -- everything else -----------------------------------------------------------------------------------------------

    def _changed(self, number: int, *, size: int | None = None, mode: int | None = None) -> Node:
        """Return a node that lies in the upper directory, copied up if need be; raise ``OSError`` (EROFS, ENOSPC).

        Of a regular file only the first ``size`` bytes are copied: it is about to be cut there. With ``mode`` its copy
        has these permissions from the start.
        """
        node = self._nodes.get(number)
        if node is not None and node.upper:
            return node
        self._writable()
        if node is None and self.index.is_directory(number):
            return self._copy_up_directories(number)
        if node is None and number > self.index.count:
            fail(errno.ESTALE)
        return self._copy_up(number, size, mode)

    def _copy_up(self, row: int, size: int | None = None, mode: int | None = None) -> Node:
        """Copy up a lower file that is no directory, with all names under which it shows.

        The copy stays open for a moment, since whoever asked for it will change it next, unless that was its mode.
        """
        upper = self._writable()
        node = self._nodes.get(row)
        entry = bytearray(self.index.entry(row))
        if mode is not None:
            U32.pack_into(entry, _MODE, stat.S_IFMT(self.index.mode(row)) | stat.S_IMODE(mode))
        places = self._places_of(row, node)
        for parent, _ in places:
            self._hold_times(parent)
        fresh = upper.fresh()
        fd = kept = -1
        try:
            fd, redirected = self._make_copy(row, fresh, entry, size)
            if places:
                self._bring_in(fresh, places)
            else:
                kept = os.open(fresh, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=upper.work)
                os.unlink(fresh, dir_fd=upper.work)
        except OSError:
            if fd >= 0:
                os.close(fd)
            upper.discard(fresh)
            raise
        node = self._note_copy(row, node, entry, places, redirected=redirected)
        node.fd = kept
        if fd >= 0:
            if redirected or mode is not None:
                os.close(fd)
            else:
                self._keep_open(Handle(fd, row, os.O_RDWR, node, None))
        if len(places) > 1:
            self._refresh(node)
            self._inodes[node.inode] = node
        if row in self._readers:
            self._follow(node)
        return node

    def _places_of(self, row: int, known: Node | None) -> list[tuple[Directory, bytes]]:
        """Return the directories, copied up, and names under which a lower file shows."""
        index = self.index
        if not index.linked(row):
            if known is not None:  # only what was unlinked has a node
                return []
            return [(self._changeable(index.parent(row)), index.name(row))]
        rows = [alias for alias in index.aliases(row) if self._shows(alias)]
        return [(self._changeable(index.parent(alias)), index.name(alias)) for alias in rows]

    def _bring_in(self, fresh: bytes, places: list[tuple[Directory, bytes]]) -> None:
        """Link a copy to all its names but the last, to which it is renamed; what fails half-way is taken back."""
        work = self._writable().work
        done: list[tuple[Directory, bytes]] = []
        try:
            for parent, name in places[:-1]:
                with self._eased(parent):
                    os.link(fresh, name, src_dir_fd=work, dst_dir_fd=self._place(parent), follow_symlinks=False)
                done.append((parent, name))
            parent, name = places[-1]
            with self._eased(parent):
                os.rename(fresh, name, src_dir_fd=work, dst_dir_fd=self._place(parent))
        except OSError:
            for parent, name in done:
                os.unlink(name, dir_fd=self._place(parent))
            raise

    def _note_copy(
        self, row: int, known: Node | None, entry: bytearray, places: list[tuple[Directory, bytes]], *, redirected: bool
    ) -> Node:
        """Return the node of a copy: the one that there was, or a new one."""
        (mode,) = U32.unpack_from(entry, _MODE)
        node = known
        if node is None:
            node = self._nodes[row] = Node(row, self.index.ino(row), entry, stat.S_IFMT(mode), upper=True)
        U32.pack_into(node.entry, _MODE, mode)
        node.upper = node.stale = True
        node.bare = not self.index.has_xattrs(row)
        node.redirected = redirected
        for parent, name in places:
            node.add_name(parent, name)
            parent.children[name] = row
        return node

    def _make_copy(self, row: int, fresh: bytes, entry: bytearray, size: int | None) -> tuple[int, bool]:
        """Make the copy of a row, as ``entry`` says, in the working directory.

        Return a descriptor of a regular file, else -1; and whether it is redirected.
        """
        index = self.index
        mode = index.mode(row)
        if stat.S_ISREG(mode):
            return self._make_copy_of_file(row, fresh, ATTRIBUTES.unpack_from(entry, ENTRY_ATTRIBUTES), size)
        upper = self._writable()
        if stat.S_ISLNK(mode):
            os.symlink(index.target(row), fresh, dir_fd=upper.work)
        else:
            os.mknod(fresh, stat.S_IFMT(mode) | _WORKING, device_of(entry), dir_fd=upper.work)
        self._give(fresh, row, entry)
        upper.mark_ino(proc_name(upper.work, fresh), index.ino(row))
        os.utime(fresh, ns=times_of(entry), dir_fd=upper.work, follow_symlinks=False)
        return -1, False

    def _redirects_from(self, size: int) -> bool:
        options = self.options
        return options.write is WritePolicy.REDIRECT_ON_WRITE and size >= options.redirect_from

    def _redirect(self, row: int, source: int, target: int) -> bool:
        """Let an empty file stand on the lower one of a row; False where that is not to be, or it is too small."""
        index = self.index
        return self._redirected_files().begin(target, source, index.layer(row), index.path(row))

    def _make_copy_of_file(self, row: int, fresh: bytes, fields: tuple[int, ...], size: int | None) -> tuple[int, bool]:
        upper = self._writable()
        ino, whole, mode, uid, gid = fields[0], fields[1], stat.S_IMODE(fields[9]), fields[11], fields[12]
        wanted = whole if size is None else min(size, whole)
        has_xattrs = self.index.has_xattrs(row)
        redirected = False
        target = os.open(fresh, CREATE | os.O_RDWR, mode & ~_SET_IDS | stat.S_IWUSR, dir_fd=upper.work)
        try:
            if wanted:
                redirected = self._fill(row, target, wanted, whole=wanted == whole)
            if uid != self._euid or gid != self._egid:
                os.fchown(target, uid, gid)
            if has_xattrs:
                self._copy_xattrs(row, target)
            if redirected or self.index.linked(row):  # else its place tells the number
                upper.mark_ino(target, ino)
            if has_xattrs or mode & _SET_IDS or not mode & stat.S_IWUSR:
                os.fchmod(target, mode)  # at last: without permission to write an ordinary user cannot put marks
            os.utime(target, ns=times_in(fields))
            if wanted and not self.options.volatile and not redirected:
                os.fsync(target)
        except OSError:
            os.close(target)
            raise
        return target, redirected

    def _fill(self, row: int, target: int, size: int, *, whole: bool) -> bool:
        """Copy the data of a row; tell whether it is redirected instead."""
        instead = partial(self._redirect, row) if self._redirects_from(size) else None
        source = self.lower.open(row, os.O_RDONLY)
        try:
            return copy_data(source, target, size, share=whole and self._writable().shares, instead=instead)
        finally:
            os.close(source)

    def _open_redirected(self, node: Node) -> RedirectedFile:
        """Open a redirected file, shared with whoever has it open."""
        known = self._redirected_files().known(self._status(node).st_ino)
        if known is not None:
            return known
        place, path, _ = self._reach(node)
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC, dir_fd=place)
        try:
            return self._redirected_files().open(fd)
        finally:
            os.close(fd)

    def _follow(self, node: Node) -> None:
        """Lead those who read the lower file to its copy."""
        readers = self._readers.pop(node.id)
        for handle in readers:
            if node.redirected:
                handle.redirect(node, self._open_redirected(node))
                continue
            place, path, _ = self._reach(node)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=place)
            try:
                os.dup2(fd, handle.fd, inheritable=False)
            finally:
                os.close(fd)
            handle.record, handle.registry = node, None
        if readers and self.on_copied_up is not None:
            self.on_copied_up(node.id)
