"""New names: files, directories, links and nodes, made by a caller with what they inherit from their directory.

A name that a whiteout hides is made in the working directory and takes the whiteout's place in one step, so that what
is below never shows in between. A directory there is made opaque before.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from layerfs.kernel import syscalls
from layerfs.layer.attributes import DEFAULT_ACL
from layerfs_fuse.attributes import pack_attributes, pack_entry
from layerfs_fuse.union.copyup import CopyUp
from layerfs_fuse.union.entries import owner_of
from layerfs_fuse.union.handle import Handle
from layerfs_fuse.union.node import HIDDEN, Directory, Node
from layerfs_fuse.union.places import fail
from layerfs_fuse.union.requests import Caller
from layerfs_fuse.union.tree import LONGEST_NAME
from layerfs_fuse.union.upper import CREATE, PATH, proc, proc_name

_SET_IDS = stat.S_ISUID | stat.S_ISGID
_PERMISSIONS = 0o7777
_NO_OWNER = frozenset({errno.EPERM, errno.EINVAL})
_NO_ACL = frozenset({errno.ENODATA, errno.EOPNOTSUPP})


class Names(CopyUp):
    """The tree, with what makes names."""

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[bytes | bytearray, Handle]:
        """Make a regular file and open it; of ``flags`` the way of access counts.

        Raise ``OSError`` (EEXIST, ENOSPC, EROFS).
        """
        directory = self._changeable(parent)
        hidden = self._vacant(directory, name)
        mode = self._masked(directory, mode & _PERMISSIONS, caller)
        access = readable(flags) | CREATE
        if hidden:
            fd = self._create_over(directory, name, mode, access, caller)
        else:
            place = self._place(directory)
            fd = os.open(name, access, mode, dir_fd=place)
            try:
                self._own_file(fd, directory, mode, caller)
            except OSError:
                os.close(fd)
                os.unlink(name, dir_fd=place)
                raise
        status = os.fstat(fd)
        node = self._new(status, self._ino(status.st_ino))
        self._add(node, directory, name)
        return self._counted(node), Handle(fd, node.id, flags, node, None)

    def _create_over(self, directory: Directory, name: bytes, mode: int, access: int, caller: Caller) -> int:
        """Create a file in the place of a whiteout."""
        fresh = self._writable().fresh()
        with self._nursery(directory) as nursery:
            fd = os.open(fresh, access, mode, dir_fd=nursery)
            try:
                self._own_file(fd, directory, mode, caller)
                if self._stands_for(directory, name):
                    self._writable().mark_ino(fd, self._ino(os.fstat(fd).st_ino))
                os.rename(fresh, name, src_dir_fd=nursery, dst_dir_fd=self._place(directory))
            except OSError:
                os.close(fd)
                os.unlink(fresh, dir_fd=nursery)
                raise
        return fd

    def temporary(self, parent: int, mode: int, flags: int, caller: Caller) -> tuple[bytes | bytearray, Handle]:
        """Make a regular file without a name, as O_TMPFILE does, and open it; `link` can give it one."""
        directory = self._changeable(parent)
        mode = self._masked(directory, mode & _PERMISSIONS, caller)
        fd = os.open(b".", readable(flags) | os.O_TMPFILE | os.O_CLOEXEC, mode, dir_fd=self._place(directory))
        try:
            self._own_file(fd, directory, mode, caller)
            status = os.fstat(fd)
            kept = os.open(proc(fd), os.O_PATH | os.O_CLOEXEC)
        except OSError:
            os.close(fd)
            raise
        node = self._new(status, self._ino(status.st_ino))
        node.fd = kept
        node.bare = directory.plain
        self._nodes[node.id] = node
        return self._counted(node), Handle(fd, node.id, flags, node, None)

    def make_node(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> bytes | bytearray:
        """Make a regular file, a FIFO, a socket or a device; ``rdev`` is in the kernel's 32 bits.

        Raise ``OSError``: EPERM for a character device 0/0, which is a whiteout below.
        """
        if stat.S_ISCHR(mode) and rdev == 0:
            fail(errno.EPERM, name)

        def make(place: int, fresh: bytes, masked: int) -> None:
            os.mknod(fresh, masked, rdev, dir_fd=place)

        return self._make(parent, name, mode, caller, make)

    def make_symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> bytes | bytearray:
        """Make a symbolic link."""

        def make(place: int, fresh: bytes, masked: int) -> None:  # noqa: ARG001  links have no mode
            os.symlink(target, fresh, dir_fd=place)

        return self._make(parent, name, stat.S_IFLNK | 0o777, caller, make)

    def _make(
        self, parent: int, name: bytes, mode: int, caller: Caller, make: Callable[[int, bytes, int], None]
    ) -> bytes | bytearray:
        directory = self._changeable(parent)
        hidden = self._vacant(directory, name)
        mode = self._masked(directory, mode, caller)
        place = self._place(directory)
        if hidden:
            fresh = self._writable().fresh()
            with self._nursery(directory) as nursery:
                make(nursery, fresh, mode)
                try:
                    self._own(nursery, fresh, directory, mode, caller)
                    if stat.S_ISREG(mode) and self._stands_for(directory, name):
                        made = os.stat(fresh, dir_fd=nursery, follow_symlinks=False)
                        self._writable().mark_ino(proc_name(nursery, fresh), self._ino(made.st_ino))
                    os.rename(fresh, name, src_dir_fd=nursery, dst_dir_fd=place)
                except OSError:
                    os.unlink(fresh, dir_fd=nursery)
                    raise
        else:
            make(place, name, mode)
            try:
                self._own(place, name, directory, mode, caller)
            except OSError:
                os.unlink(name, dir_fd=place)
                raise
        status = os.stat(name, dir_fd=place, follow_symlinks=False)
        node = self._new(status, self._ino(status.st_ino))
        self._add(node, directory, name)
        return self._counted(node)

    def make_directory(self, parent: int, name: bytes, mode: int, caller: Caller) -> bytes | bytearray:
        """Make a directory."""
        directory = self._changeable(parent)
        hidden = self._vacant(directory, name)
        mode = self._masked(directory, mode & _PERMISSIONS, caller)
        place = self._place(directory)
        if hidden:
            self._make_directory_over(directory, name, mode, caller)
        else:
            os.mkdir(name, mode, dir_fd=place)
            try:
                self._own(place, name, directory, mode | stat.S_IFDIR, caller)
            except OSError:
                os.rmdir(name, dir_fd=place)
                raise
        status = os.stat(name, dir_fd=place, follow_symlinks=False)
        ino = self._ino(status.st_ino)
        number = self._number()
        made = Directory(number, ino, bytearray(pack_entry(number, pack_attributes(status, ino))), upper=True, below=0)
        made.loaded = True
        made.plain = directory.plain
        self._count_subdirectories(made, 0)
        self._add(made, directory, name)
        self._count_subdirectories(directory, 1)
        return self._counted(made)

    def _make_directory_over(self, directory: Directory, name: bytes, mode: int, caller: Caller) -> None:
        upper = self._writable()
        fresh = upper.fresh()
        with self._nursery(directory) as nursery:
            os.mkdir(fresh, mode, dir_fd=nursery)
            try:
                self._own(nursery, fresh, directory, mode | stat.S_IFDIR, caller)
                upper.mark_opaque(proc_name(nursery, fresh))
                syscalls.rename_exchange(nursery, fresh, self._place(directory), name)
            except OSError:
                os.rmdir(fresh, dir_fd=nursery)
                raise
            os.unlink(fresh, dir_fd=nursery)

    def link(self, number: int, parent: int, name: bytes) -> bytes | bytearray:
        """Give an inode one more name; raise ``OSError`` (EPERM for a directory, ENOENT if its last name is gone)."""
        node = self._changed(number)
        if isinstance(node, Directory):
            fail(errno.EPERM, name)
        directory = self._changeable(parent)
        hidden = self._vacant(directory, name)
        if not node.inode:
            self._refresh(node)
        self._mark_ino(node, directory, name)
        source_dir, source, follow = self._reach(node)
        place = self._place(directory)
        if hidden:
            upper = self._writable()
            fresh = upper.fresh()
            os.link(source, fresh, src_dir_fd=source_dir, dst_dir_fd=upper.work, follow_symlinks=follow)
            upper.move_in(fresh, directory=place, name=name)
        else:
            os.link(source, name, src_dir_fd=source_dir, dst_dir_fd=place, follow_symlinks=follow)
        self._inodes[node.inode] = node
        node.stale = True
        self._name(node, directory, name)
        self._touch(directory)
        if node.fd >= 0:
            os.close(node.fd)
            node.fd = -1
        return self._counted(node)

    # -- where new things go -------------------------------------------------------------------------------------------

    def _vacant(self, directory: Directory, name: bytes) -> bool:
        """Tell whether a whiteout is in the place of a new name; raise ``OSError`` (EEXIST, ENAMETOOLONG)."""
        if len(name) > LONGEST_NAME:
            fail(errno.ENAMETOOLONG, name)
        known = directory.children.get(name)
        if known is None:
            if self._row(directory, name):
                fail(errno.EEXIST, name)
            return False
        if known != HIDDEN:
            fail(errno.EEXIST, name)
        return True

    @contextmanager
    def _nursery(self, directory: Directory) -> Iterator[int]:
        """Give a directory in the working directory from which new things inherit what they do from ``directory``."""
        upper = self._writable()
        acl = self._default_acl(directory)
        if acl is None and not self.mode(directory) & stat.S_ISGID:
            yield upper.work
            return
        fresh = upper.fresh()
        os.mkdir(fresh, 0o700, dir_fd=upper.work)
        try:
            fd = os.open(fresh, PATH, dir_fd=upper.work)
            try:
                if self.mode(directory) & stat.S_ISGID:
                    os.chown(fresh, -1, owner_of(directory.entry)[1], dir_fd=upper.work)
                    os.chmod(fresh, stat.S_ISGID | 0o700, dir_fd=upper.work)
                if acl is not None:
                    os.setxattr(proc(fd), DEFAULT_ACL, acl)
                yield fd
            finally:
                os.close(fd)
        finally:
            upper.discard(fresh)

    def _add(self, node: Node, directory: Directory, name: bytes) -> None:
        """Enter a new node under a new name."""
        node.bare = directory.plain
        self._admit(node, directory, name)
        if directory.order is not None and not self._row(directory, name):
            directory.order.add(name)
        self._touch(directory)

    def _name(self, node: Node, directory: Directory, name: bytes) -> None:
        """Enter a new name of a node that the table has."""
        node.add_name(directory, name)
        directory.children[name] = node.id
        if directory.order is not None and not self._row(directory, name):
            directory.order.add(name)

    # -- what new things inherit ---------------------------------------------------------------------------------------

    def _default_acl(self, directory: Directory) -> bytes | None:
        """Return the ACL that new things in a directory get, and remember if there is none."""
        if directory.plain:
            return None
        try:
            return os.getxattr(proc(self._place(directory)), DEFAULT_ACL)
        except OSError as error:
            if error.errno not in _NO_ACL:
                raise
        directory.plain = True
        return None

    def _masked(self, directory: Directory, mode: int, caller: Caller) -> int:
        """Take the umask off a mode, unless a default ACL stands in its place (acl(5))."""
        if stat.S_ISLNK(mode) or self._default_acl(directory) is not None:
            return mode
        return mode & ~caller.umask

    def _owner(self, directory: Directory, caller: Caller) -> tuple[int, int] | None:
        """Return the user and group of something new, -1 for what it has already; None where it has both."""
        uid = -1 if caller.uid == self._euid else caller.uid
        gid = -1 if self.mode(directory) & stat.S_ISGID or caller.gid == self._egid else caller.gid
        return None if uid == gid == -1 else (uid, gid)

    def _own_file(self, fd: int, directory: Directory, mode: int, caller: Caller) -> None:
        """Give a new file to its caller, if this process may."""
        owner = self._owner(directory, caller)
        if owner is None:
            return
        try:
            os.fchown(fd, *owner)
        except OSError as error:
            if error.errno not in _NO_OWNER:
                raise
        else:
            if mode & _SET_IDS:  # which chown(2) takes away
                os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode) | mode & _SET_IDS)

    def _own(self, place: int, name: bytes, directory: Directory, mode: int, caller: Caller) -> None:
        """Give something new to its caller, if this process may."""
        owner = self._owner(directory, caller)
        lost = (
            mode & _SET_IDS if owner is not None and not stat.S_ISDIR(mode) else mode & stat.S_IFDIR and mode & _SET_IDS
        )
        if owner is not None:
            try:
                os.chown(name, *owner, dir_fd=place, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NO_OWNER:
                    raise
        if lost and not stat.S_ISLNK(mode):  # chown(2) takes them away, and mkdir(2) does not make them
            status = os.stat(name, dir_fd=place, follow_symlinks=False)
            os.chmod(name, stat.S_IMODE(status.st_mode) | lost, dir_fd=place)


def readable(flags: int) -> int:
    """Return the flags to open a file for a client: to write also means to read, for pages that are written in part."""
    access = flags & os.O_ACCMODE
    return os.O_RDWR if access == os.O_WRONLY else access
