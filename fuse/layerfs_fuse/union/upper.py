"""The writable side of a union on disk: an overlay's upper and working directory, with marks and whiteouts.

Marks are extended attributes below ``trusted.overlay.`` or, for whoever may not write those, ``user.overlay.``. A
whiteout is a character device 0/0 or, where mknod(2) refuses that, an empty file with the mark ``whiteout`` in a
directory with the mark ``opaque=x`` (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from layerfs.contract import Whiteouts
from layerfs.errors import Busy, FailedPrecondition, Unsupported, os_error
from layerfs.kernel import syscalls
from layerfs.kernel.descriptors import opened
from layerfs.layer.attributes import DEFAULT_ACL, overlay_prefix
from layerfs.tree import remove_tree
from layerfs_fuse.index.markers import OPAQUE_XWHITEOUTS, OPAQUE_YES, marks_of
from layerfs_fuse.redirect.format import HEADER

_log = logging.getLogger(__name__)

PATH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
CREATE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PATIENCE = 10.0
"""Seconds to wait for a union that was unmounted a moment ago."""
_POLL = 0.01
_REFUSED = frozenset({errno.EPERM, errno.EACCES, errno.EOPNOTSUPP})
_NO_REFLINK = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS})
_NAMELESS = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
_WORKING = 0o600
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""A full disk is no reason not to mount: something must be deleted there."""


def proc(fd: int) -> bytes:
    """Return a path to an open file, for calls that know no descriptors; it is to be followed."""
    return b"/proc/self/fd/%d" % fd


def proc_name(fd: int, name: bytes) -> bytes:
    """Return a path to a name in an open directory, for calls that know no ``dir_fd``; it is not to be followed."""
    return b"/proc/self/fd/%d/%s" % (fd, name)


@contextmanager
def eased(path: bytes, mode: int) -> Iterator[None]:
    """Let the owner of what is no symbolic link do with it for a while what its mode denies him.

    An ordinary user's union does things in directories that its clients need no permission for, such as copying up.
    Root, and whatever the mode allows anyway, costs nothing.
    """
    if mode & stat.S_IRWXU == stat.S_IRWXU or os.geteuid() == 0:
        yield
        return
    os.chmod(path, mode | stat.S_IRWXU)
    try:
        yield
    finally:
        os.chmod(path, mode)


class Upper:
    """An upper directory and its working directory, both open, and how marks are made in them."""

    def __init__(self, fd: int, work: int, lock: int, marks: Whiteouts, *, devices: bool, shares: bool) -> None:
        """Take over two O_PATH descriptors and that of the lock.

        ``devices`` tells that devices 0/0 may be made, ``shares`` that files may share blocks.
        """
        self._lock = lock
        self.fd = fd
        self.work = work
        self.devices = devices
        self.shares = shares
        self.device = os.fstat(fd).st_dev
        self.marks = marks_of(marks)
        self.ino = self.marks.prefix + b"layerfs.ino"
        self.redirected = self.marks.prefix + HEADER
        self._numbers = count(1)

    @classmethod
    def open(cls, upper: Path, work: Path, *, marks: Whiteouts | None = None) -> Upper:
        """Open both directories, clear what a crash left in ``work``, and find out by trying which marks can be made.

        They are ours until `close` (of the last process that has them): raise `Busy` where another union has them,
        `FailedPrecondition` where a volatile overlay was mounted last, `Unsupported` where no marks can be made, and
        what `os_error` makes of the rest.
        """
        with ExitStack() as opened:
            try:
                lock = locked(work)
                opened.callback(os.close, lock)
                at = os.open(_prepared(work), PATH)
                opened.callback(os.close, at)
                fd = os.open(upper, PATH)
                opened.callback(os.close, fd)
                made = cls(fd, at, lock, _marks(at, marks), devices=_makes_devices(at), shares=_shares(at))
            except OSError as error:
                raise os_error(f"use the upper directory {upper} with {work}", error) from error
            opened.pop_all()
        return made

    def close(self) -> None:
        """Close both, and let others have them."""
        os.close(self.fd)
        os.close(self.work)
        os.close(self._lock)

    def fresh(self) -> bytes:
        """Return a name in the working directory that nothing has."""
        return b"#%x" % next(self._numbers)

    def is_private(self, name: bytes) -> bool:
        """Tell whether an extended attribute on disk belongs to the overlay."""
        return self.marks.shown(name) is None

    # -- marks ---------------------------------------------------------------------------------------------------------

    def mark_opaque(self, directory: bytes) -> None:
        """Hide what lower layers have in the directory at a path."""
        os.setxattr(directory, self.marks.opaque, OPAQUE_YES, follow_symlinks=True)

    def mark_ino(self, path: int | bytes, ino: int, *, follow: bool = False) -> None:
        """Note the inode number that a file is shown with; where that cannot be, it changes with the next mount."""
        number, follow = b"%d" % ino, follow or isinstance(path, int)
        try:
            os.setxattr(path, self.ino, number, follow_symlinks=follow)
        except OSError as error:
            # Ordinary users cannot put attributes on symbolic links and devices (xattr(7)).
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSPC, errno.EACCES):
                raise
            if error.errno == errno.EACCES:  # their own file without permission to write
                path = proc(path) if isinstance(path, int) else path
                with eased(path, stat.S_IMODE(os.stat(path, follow_symlinks=follow).st_mode)):
                    os.setxattr(path, self.ino, number, follow_symlinks=follow)

    def read_ino(self, path: bytes) -> int:
        """Return the inode number noted at a path, or 0."""
        try:
            return int(self.read_mark(path, self.ino))
        except ValueError:
            return 0

    def read_mark(self, path: bytes, name: bytes, *, follow: bool = False) -> bytes:
        """Return a mark of a path; nothing where it has none. Our own files are read whatever their mode."""
        try:
            return os.getxattr(path, name, follow_symlinks=follow)
        except PermissionError:
            with eased(path, stat.S_IMODE(os.stat(path, follow_symlinks=follow).st_mode)):
                return os.getxattr(path, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return b""
            raise

    def names(self, path: bytes, *, follow: bool = False) -> list[bytes]:
        """List the extended attributes of a path.

        Raise ``OSError`` (EIO) where one says that the data lie elsewhere, unless we have put it there.
        """
        try:
            names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=follow)]
        except OSError as error:
            if error.errno in _REFUSED:
                return []
            raise
        for name in (self.marks.redirect, self.marks.metacopy):
            if name in names and self.redirected not in names:
                _log.error("%r has %r of an overlay with redirect_dir or metacopy", path, name)
                raise OSError(errno.EIO, "a redirect of another overlay", path)
        return names

    # -- whiteouts -----------------------------------------------------------------------------------------------------

    def hide(self, directory: int, name: bytes) -> None:
        """Make a whiteout where nothing has the name; without devices the directory must be marked (`mark_hiding`)."""
        if self.devices:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=directory)
            return
        made = os.open(name, CREATE | os.O_WRONLY, 0o644, dir_fd=directory)
        try:
            os.setxattr(made, self.marks.whiteout, b"y")
        finally:
            os.close(made)

    def is_hiding(self, directory: int, name: bytes) -> bool:
        """Tell whether a file, in a directory that may hold such, is a whiteout."""
        return self.marks.whiteout in self.names(proc_name(directory, name))

    def mark_hiding(self, directory: int) -> None:
        """Say of a directory that it may hold whiteouts that are files."""
        os.setxattr(proc(directory), self.marks.opaque, OPAQUE_XWHITEOUTS, follow_symlinks=True)

    def replace_by_whiteout(self, directory: int, name: bytes) -> None:
        """Put a whiteout in the place of a file that is no directory, in one step."""
        fresh = self.fresh()
        self.hide(self.work, fresh)
        self.move_in(fresh, directory, name)

    def move_in(self, fresh: bytes, directory: int, name: bytes) -> None:
        """Move what was made in the working directory to its place; it is removed where that fails."""
        try:
            os.rename(fresh, name, src_dir_fd=self.work, dst_dir_fd=directory)
        except OSError:
            self.discard(fresh)
            raise

    def leave_whiteout(self, old_dir: int, old: bytes, new_dir: int, new: bytes) -> None:
        """Rename and leave a whiteout, in one step where devices may be made.

        Else the file has both names for a moment. ``new`` must be free or replaceable (rename(2)).
        """
        if self.devices:
            try:
                syscalls.rename_whiteout(old_dir, old, new_dir, new)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EPERM):
                    raise
                # This file system does not know RENAME_WHITEOUT, or the target is of another kind, which rename tells.
            else:
                return
        fresh = self.fresh()
        self.hide(self.work, fresh)
        try:
            os.rename(old, new, src_dir_fd=old_dir, dst_dir_fd=new_dir)
        except OSError:
            self.discard(fresh)
            raise
        self.move_in(fresh, old_dir, old)

    def discard(self, fresh: bytes) -> None:
        """Remove something from the working directory, with whiteouts in it; `open` removes what this cannot."""
        with contextlib.suppress(OSError):
            try:
                os.unlink(fresh, dir_fd=self.work)
            except (IsADirectoryError, PermissionError):
                fd = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.work)
                try:
                    for name in os.listdir(fd):
                        os.unlink(name, dir_fd=fd)
                finally:
                    os.close(fd)
                os.rmdir(fresh, dir_fd=self.work)


def is_used(work: Path) -> bool:
    """Tell whether a union uses a working directory; nobody uses one that is gone."""
    try:
        fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def settled(work: Path) -> None:
    """Wait until no union uses a working directory any more: one that was unmounted still puts its last things right.

    Raise `Busy` where that takes longer than some seconds. A directory that is gone is nobody's.
    """
    try:
        os.close(locked(work))
    except FileNotFoundError:
        return
    except OSError as error:
        raise os_error(f"wait for the union that uses {work}", error) from error


def locked(work: Path) -> int:
    """Return a descriptor that holds the lock of a working directory (flock(2)), also over a fork.

    Raise `Busy` where a union uses it for longer than some seconds, and ``OSError``.
    """
    fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(_POLL)
                continue
            os.close(fd)
            raise Busy(
                f"another union uses {work}", hint="unmount it first, or wait until its process has ended"
            ) from None
        return fd


def _prepared(work: Path) -> Path:
    """Return an empty directory in the working directory: the one that the kernel's overlay uses, too."""
    inner = work / "work"
    if (inner / "incompat").exists():
        raise FailedPrecondition(
            f"{work} was last used by a volatile overlay, whose writes may be lost",
            hint=f"remove {inner / 'incompat'} if that is accepted",
        )
    with contextlib.suppress(FileNotFoundError):
        remove_tree(inner)
    inner.mkdir(0o700)
    # What is made in it must not inherit from the directory that somebody chose for it.
    os.chown(inner, -1, os.getegid())
    inner.chmod(0o700)
    with contextlib.suppress(OSError):
        os.removexattr(inner, DEFAULT_ACL)
    return inner


def _marks(work: int, wanted: Whiteouts | None) -> Whiteouts:
    """Try the marks in a directory."""
    for marks in (wanted,) if wanted else (Whiteouts.OVERLAY, Whiteouts.OVERLAY_USER):
        name = overlay_prefix(marks) + b"layerfs.probe"
        try:
            os.setxattr(proc(work), name, b"y")
            os.removexattr(proc(work), name)
        except OSError as error:
            if error.errno in _FULL:
                return marks
            if error.errno not in _REFUSED:
                raise
        else:
            return marks
    raise Unsupported(
        "the file system of the upper directory takes no extended attributes for overlay's marks",
        hint="put it on ext4, xfs, btrfs, or a tmpfs of Linux 6.6 or later",
    )


def _shares(work: int) -> bool:
    """Try whether files can share blocks (FICLONE): to ask each time, where none can, is a part of a first write."""
    with contextlib.suppress(OSError), opened(os.open(proc(work), _NAMELESS, _WORKING)) as fd:
        try:
            syscalls.ficlone(fd, fd)
        except OSError as error:
            return error.errno not in _NO_REFLINK
    return True


def _makes_devices(work: int) -> bool:
    """Try whether a character device 0/0 can be made, which needs no privilege since Linux 5.8."""
    try:
        os.mknod(b"#probe", stat.S_IFCHR, 0, dir_fd=work)
    except OSError as error:
        if error.errno not in _REFUSED | _FULL:
            raise
        return error.errno in _FULL
    os.unlink(b"#probe", dir_fd=work)
    return True
