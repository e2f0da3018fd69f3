"""Read one directory of one layer: what it brings, and what it hides of the layers below."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from layerfs.errors import FailedPrecondition, Unsupported
from layerfs.kernel import syscalls
from layerfs.layer.attributes import get, proc_path
from layerfs_fuse.index.markers import OPAQUE_YES, Marks

_REGULAR, _DIRECTORY, _SYMLINK, _CHARACTER = (
    kind >> 12 for kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR)
)
_NO_CALL = frozenset({errno.ENOSYS, errno.EPERM})
"""How a kernel before 6.13, or a seccomp filter, says that it has no listxattrat."""


class Found(NamedTuple):
    """One name that a layer brings. ``ino`` is the inode number to show, ``target`` a symbolic link's.

    ``special`` tells that it is a directory, a symbolic link or an inode of several names; ``opaque`` is the value of a
    directory's mark.
    """

    status: os.stat_result
    ino: int
    special: bool
    xattrs: bool
    opaque: bytes | None = None
    target: bytes = b""

    @property
    def is_directory(self) -> bool:
        """Tell whether it is a directory."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_opaque(self) -> bool:
        """Tell whether it is a directory that hides everything that lower layers have in it."""
        return self.opaque == OPAQUE_YES


@dataclass(slots=True)
class Listing:
    """What a layer has in one directory: the names that it brings, and those that it hides."""

    found: dict[bytes, Found] = field(default_factory=dict[bytes, Found])
    hidden: set[bytes] = field(default_factory=set[bytes])


class Scanner:
    """Read the directories of one layer, whose marks have the names ``marks``; ``ino`` gives the numbers to show."""

    def __init__(self, marks: Marks, ino: Callable[[os.stat_result], int]) -> None:
        self._marks = marks
        self._ino = ino
        self._names: Callable[[int, bytes], bytes] = syscalls.listxattrat
        self._linked: dict[tuple[int, int], Found | None] = {}

    def root(self, fd: int) -> Found:
        """Return what the root itself is like."""
        status = os.fstat(fd)
        return self._examined(fd, b".", status, self._ino(status)) or Found(
            status, self._ino(status), special=True, xattrs=False
        )

    def listing(self, fd: int) -> Listing:
        """Read the directory ``fd``; raise ``OSError`` or `FailedPrecondition`.

        A whiteout hides its name wherever it is: in an opaque directory, and in one without the mark that announces
        regular files as whiteouts, the kernel lists the name, and says that there is nothing.
        """
        result = Listing()
        for name in self._brings(fd, result):
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                found = self._plain(fd, name, status) or self._found(fd, name, status)
            except FileNotFoundError as error:
                raise changed(name) from error
            if found is None:
                result.hidden.add(name)
            else:
                result.found[name] = found
        return result

    def _brings(self, fd: int, result: Listing) -> list[bytes]:  # noqa: ARG002  AUFS hides names by names
        """Return the names to look at, and note in ``result`` those of which the name says that they are whiteouts."""
        return names_in(fd)

    def _plain(self, fd: int, name: bytes, status: os.stat_result) -> Found | None:
        """Return what is to be known of a regular file of one name and without attributes, as nearly all files are.

        Of any other file, None: `_found` has time for it.
        """
        if status.st_mode >> 12 != _REGULAR or status.st_nlink != 1:
            return None
        try:
            if self._names(fd, name):
                return None
        except OSError:
            return None
        return Found(status, self._ino(status), False, False, None, b"")

    def _found(self, fd: int, name: bytes, status: os.stat_result) -> Found | None:
        """Return what is to be known of a file; None for a whiteout.

        All names of an inode get the same answer: reading a symbolic link changes its access time.
        """
        kind = status.st_mode >> 12
        if kind == _CHARACTER and status.st_rdev == 0:
            return None
        ino = self._ino(status)
        if status.st_nlink == 1 or kind == _DIRECTORY:
            return self._examined(fd, name, status, ino)
        key = (status.st_dev, status.st_ino)
        if key not in self._linked:
            self._linked[key] = self._examined(fd, name, status, ino)
        return self._linked[key]

    def _examined(self, fd: int, name: bytes, status: os.stat_result, ino: int) -> Found | None:
        """Ask for what the status does not tell."""
        kind = status.st_mode >> 12
        target = os.readlink(name, dir_fd=fd) if kind == _SYMLINK else b""
        special = kind in (_SYMLINK, _DIRECTORY) or status.st_nlink > 1
        raw = self._xattrs(fd, name)
        if not raw:
            return Found(status, ino, special, xattrs=False, target=target)
        marks = self._marks
        names = raw.split(b"\0")[:-1]
        opaque = None
        if kind == _DIRECTORY:
            opaque = get(proc_path(fd, name), marks.opaque) if marks.opaque in names else None
        elif kind == _REGULAR and not status.st_size and marks.whiteout in names:
            return None
        self._check_orders(name, names)
        return Found(status, ino, special, any(marks.shown(one) is not None for one in names), opaque, target)

    def _check_orders(self, name: bytes, names: list[bytes]) -> None:
        """Refuse what only the overlay that wrote the layer can follow; with ``userxattr`` the kernel follows none."""
        for order in (self._marks.redirect, self._marks.metacopy):
            if order in names and order.startswith(b"trusted."):
                raise Unsupported(
                    f"the layer's {name.decode(errors='backslashreplace')!r} takes its content from another place: "
                    f"it carries the attribute {order.decode()}",
                    hint="write the layer again through an overlay with redirect_dir=off,metacopy=off",
                )

    def _xattrs(self, fd: int, name: bytes) -> bytes:
        """Return the names of all attributes, a zero byte after each."""
        try:
            return self._names(fd, name)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return b""
            if error.errno not in _NO_CALL or self._names is _listxattr:
                raise
        self._names = _listxattr
        return self._xattrs(fd, name)


def names_in(fd: int) -> list[bytes]:
    """List a directory; names are encoded all together, which takes a third of the time."""
    names = os.listdir(fd)
    return os.fsencode("\0".join(names)).split(b"\0") if names else []


def _listxattr(fd: int, name: bytes) -> bytes:
    """Do what listxattrat(2) does by a path, which takes twice as long."""
    return b"".join(os.fsencode(one) + b"\0" for one in os.listxattr(proc_path(fd, name), follow_symlinks=False))


def changed(name: bytes) -> FailedPrecondition:
    """Return the error for a layer in which somebody works."""
    return FailedPrecondition(
        f"the layer changes while it is being indexed: {name.decode(errors='backslashreplace')!r} is another file now",
        hint="only committed layers have an index; wait until nobody writes to it",
    )
