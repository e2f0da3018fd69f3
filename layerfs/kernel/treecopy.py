"""Copy the contents and attributes of one directory tree into another, exactly.

The order matters: owner first, for chown(2) clears set-user-id and file capabilities; then extended attributes, mode
and times; a directory's own after everything in it, so that neither its default ACL nor a set-group-id bit is inherited
and no later entry touches its times.
"""

from __future__ import annotations

import errno
import os
import stat

from layerfs.kernel import syscalls
from layerfs.kernel.descent import Descent

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20
_PRIVATE_FILE = 0o600
_PRIVATE_DIRECTORY = 0o700
_LONGEST_PATH = 4000
"""Bytes of a relative path that link(2) surely takes (PATH_MAX is 4,096)."""
_BLOCK = 512
_NO_REFLINK = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.ENOSYS})
"""This pair of file systems cannot share data; any other refusal (EINVAL, ETXTBSY) is about one file."""
_NO_COPY_RANGE = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EPERM})
_POLICY_LABEL = "security.selinux"
"""Given by the policy of the host to every file; no part of the content where the destination takes none."""
_XFS_ACLS = frozenset({"trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT"})
"""How xfs shows to root, besides ``system.posix_acl_*``, the ACLs that it keeps in these."""


class TreeCopy:
    """One copy under way, from the root that ``source`` stands at into the empty one of ``destination``."""

    def __init__(self, source: Descent, destination: Descent, *, squash_owner: bool) -> None:
        self._source = source
        self._destination = destination
        self._squash_owner = squash_owner
        self._reflink = True
        self._copy_range = True
        self._links: dict[tuple[int, int], tuple[int, bytes]] = {}
        self._path: list[bytes] = []
        self._held: list[int] = []
        self._owner = (os.geteuid(), os.getegid())

    def run(self) -> None:
        """Copy everything, the attributes of the root last."""
        self._held.append(os.dup(self._destination.fd))
        try:
            self._neutralise(self._destination.fd)
            self._walk()
        finally:
            for fd in self._held:
                os.close(fd)

    def _neutralise(self, root: int) -> None:
        """Take off the new root what it got from the directory above: ACLs, the group and the set-group-id bit.

        Otherwise everything made in it would inherit that in turn.
        """
        for name in _names(root):
            os.removexattr(root, name)
        os.fchown(root, *self._owner)
        os.fchmod(root, _PRIVATE_DIRECTORY)

    def _walk(self) -> None:
        pending = [self._fill()]
        while pending:
            if pending[-1]:
                self._enter(pending[-1].pop())
                pending.append(self._fill())
                continue
            self._attributes(self._source.fd, self._destination.fd, os.fstat(self._source.fd), fresh=False)
            pending.pop()
            if pending:
                self._source.up()
                self._destination.up()
                self._path.pop()

    def _enter(self, name: bytes) -> None:
        os.mkdir(name, _PRIVATE_DIRECTORY, dir_fd=self._destination.fd)
        self._source.down(name)
        self._destination.down(name)
        self._path.append(name)

    def _fill(self) -> list[bytes]:
        """Copy what the present directory holds, except directories: their names are returned."""
        directories: list[bytes] = []
        with os.scandir(self._source.fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    directories.append(name)
                elif entry.is_file(follow_symlinks=False):
                    self._regular(name)
                else:
                    self._special(name, entry.stat(follow_symlinks=False))
        return directories

    # -- regular files -------------------------------------------------------------------------------------------------

    def _regular(self, name: bytes) -> None:
        source = os.open(name, _READ, dir_fd=self._source.fd)
        try:
            status = os.fstat(source)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.ESTALE, "a file was replaced while it was being copied", name)
            if not self._linked(name, status):
                self._copy_file(name, source, status)
        finally:
            os.close(source)

    def _copy_file(self, name: bytes, source: int, status: os.stat_result) -> None:
        made = os.open(name, _MAKE, _PRIVATE_FILE, dir_fd=self._destination.fd)
        try:
            if status.st_size:
                self._data(source, made, status)
            self._attributes(source, made, status, fresh=True)
        finally:
            os.close(made)

    def _data(self, source: int, made: int, status: os.stat_result) -> None:
        if self._reflink and self._shared(source, made):
            return
        if status.st_blocks * _BLOCK >= status.st_size:
            self._range(source, made, 0, status.st_size)
            return
        start = 0
        while start < status.st_size:
            try:
                start = os.lseek(source, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # only a hole is left
            end = os.lseek(source, start, os.SEEK_HOLE)
            self._range(source, made, start, end - start)
            start = end
        os.ftruncate(made, status.st_size)

    def _shared(self, source: int, made: int) -> bool:
        try:
            syscalls.ficlone(made, source)
        except OSError as error:
            if error.errno in _NO_REFLINK:
                self._reflink = False
            elif error.errno not in {errno.EINVAL, errno.ETXTBSY}:
                raise
            return False
        return True

    def _range(self, source: int, made: int, start: int, count: int) -> None:
        """Copy ``count`` bytes at ``start``, or up to the end of a file that became shorter."""
        while count > 0:
            done = self._copied(source, made, start, count) if self._copy_range else 0
            if not done:
                # Also where copy_file_range(2) stops early without an error, as it may.
                block = os.pread(source, min(count, _CHUNK), start)
                done = os.pwrite(made, block, start)
                if not block:
                    return
            start += done
            count -= done

    def _copied(self, source: int, made: int, start: int, count: int) -> int:
        try:
            return os.copy_file_range(source, made, count, start, start)
        except OSError as error:
            if error.errno not in _NO_COPY_RANGE:
                raise
            self._copy_range = False
            return 0

    # -- hard links ----------------------------------------------------------------------------------------------------

    def _linked(self, name: bytes, status: os.stat_result) -> bool:
        """Link ``name`` to the copy of its inode where there is one; else remember it as the place of the copy."""
        if status.st_nlink == 1:
            return False
        identity = (status.st_dev, status.st_ino)
        if identity in self._links:
            directory, path = self._links[identity]
            try:
                os.link(path, name, src_dir_fd=directory, dst_dir_fd=self._destination.fd, follow_symlinks=False)
            except OSError as error:
                if error.errno != errno.EMLINK:  # this file system takes fewer links than the source's
                    raise
            else:
                return True
        self._links[identity] = self._place(name)
        return False

    def _place(self, name: bytes) -> tuple[int, bytes]:
        """Return a descriptor that stays open and the path from it to ``name`` of the present directory."""
        path = b"/".join((*self._path, name))
        if len(path) <= _LONGEST_PATH:
            return self._held[0], path
        self._held.append(os.dup(self._destination.fd))
        return self._held[-1], name

    # -- everything else -----------------------------------------------------------------------------------------------

    def _special(self, name: bytes, status: os.stat_result) -> None:
        if self._linked(name, status):
            return
        there = self._destination.fd
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=self._source.fd), name, dir_fd=there)
        else:
            kind = stat.S_IFMT(status.st_mode)
            os.mknod(name, kind | _PRIVATE_FILE, status.st_rdev, dir_fd=there)
        self._chown(name, status, dir_fd=there)
        self._copy_xattrs(_by_descriptor(self._source.fd, name), _by_descriptor(there, name))
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=there)
        os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=there, follow_symlinks=False)

    # -- attributes ----------------------------------------------------------------------------------------------------

    def _attributes(self, source: int, made: int, status: os.stat_result, *, fresh: bool) -> None:
        """Give ``made`` what ``status`` says; ``fresh`` tells that it was made a moment ago by this process."""
        if not fresh or (status.st_uid, status.st_gid) != self._owner:
            self._chown(made, status)
        self._copy_xattrs(source, made)
        os.fchmod(made, stat.S_IMODE(status.st_mode))
        os.utime(made, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _chown(self, what: int | bytes, status: os.stat_result, *, dir_fd: int | None = None) -> None:
        try:
            if isinstance(what, int):
                os.fchown(what, status.st_uid, status.st_gid)
            else:
                os.chown(what, status.st_uid, status.st_gid, dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            if not (self._squash_owner and error.errno == errno.EINVAL):
                raise

    def _copy_xattrs(self, source: int | bytes, made: int | bytes) -> None:
        for name in _names(source):
            if name in _XFS_ACLS:
                continue
            follow = isinstance(source, int)
            value = os.getxattr(source, name, follow_symlinks=follow)
            try:
                os.setxattr(made, name, value, follow_symlinks=follow)
            except OSError as error:
                if name != _POLICY_LABEL or error.errno not in {errno.EOPNOTSUPP, errno.EPERM, errno.EACCES}:
                    raise


def _names(what: int | bytes) -> list[str]:
    """List extended attributes; a file system without them has none."""
    try:
        return os.listxattr(what, follow_symlinks=isinstance(what, int))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def _by_descriptor(dir_fd: int, name: bytes) -> bytes:
    """Return a path for the calls on extended attributes, which know no ``dir_fd``."""
    return b"/proc/self/fd/%d/%s" % (dir_fd, name)
