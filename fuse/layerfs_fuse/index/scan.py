"""Read one directory of one layer: what it brings, and what it hides of the layers below."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import NamedTuple

from layerfs.errors import FailedPrecondition, Unsupported
from layerfs.layer.attributes import get, proc_path
from layerfs_fuse.index.markers import OPAQUE_XWHITEOUTS, OPAQUE_YES, Marks


class Found(NamedTuple):
    """One name that a layer brings. ``target`` is a symbolic link's; ``opaque`` the value of a directory's mark."""

    status: os.stat_result
    xattrs: bool
    opaque: bytes | None = None
    target: bytes = b""


@dataclass(slots=True)
class Listing:
    """What a layer has in one directory: the names that it brings, and those that it hides."""

    found: dict[bytes, Found] = field(default_factory=dict[bytes, Found])
    hidden: set[bytes] = field(default_factory=set[bytes])


class Scanner:
    """Read the directories of one layer, whose marks have the names ``marks``."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._has_xattrs = True
        self._linked: dict[tuple[int, int], Found | None] = {}

    def root(self, fd: int) -> Found:
        """Return what the root itself is like."""
        return self._found(fd, b".", os.fstat(fd), xwhiteouts=False) or Found(os.fstat(fd), xattrs=False)

    def listing(self, fd: int, opaque: bytes | None) -> Listing:
        """Read the directory ``fd``, which has the mark ``opaque``; raise ``OSError`` or `FailedPrecondition`."""
        result = Listing()
        xwhiteouts = opaque == OPAQUE_XWHITEOUTS
        for raw in os.listdir(fd):
            name = os.fsencode(raw)
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                is_whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
                found = None if is_whiteout else self._found(fd, name, status, xwhiteouts=xwhiteouts)
            except FileNotFoundError as error:
                raise changed(name) from error
            if found is None:
                result.hidden.add(name)
            else:
                result.found[name] = found
        return result

    def _found(self, fd: int, name: bytes, status: os.stat_result, *, xwhiteouts: bool) -> Found | None:
        """Return what is to be known of a file; None for a whiteout.

        All names of an inode get the same answer: reading a symbolic link changes its access time. Only whether it is
        a whiteout depends on the directory.
        """
        if status.st_nlink < 2 or xwhiteouts or stat.S_ISDIR(status.st_mode):  # noqa: PLR2004  one name only
            return self._examined(fd, name, status, xwhiteouts=xwhiteouts)
        key = (status.st_dev, status.st_ino)
        found = self._linked.get(key)
        if found is None:
            found = self._linked[key] = self._examined(fd, name, status, xwhiteouts=xwhiteouts)
        return found

    def _examined(self, fd: int, name: bytes, status: os.stat_result, *, xwhiteouts: bool) -> Found | None:
        target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(status.st_mode) else b""
        names = self._attributes(fd, name)
        if not names:
            return Found(status, xattrs=False, target=target)
        marks = self._marks
        xattrs = any(marks.shown(attribute) is not None for attribute in names)
        opaque = None
        if stat.S_ISDIR(status.st_mode):
            opaque = get(proc_path(fd, name), marks.opaque) if marks.opaque in names else None
        elif marks.whiteout in names and xwhiteouts and stat.S_ISREG(status.st_mode) and not status.st_size:
            return None
        for order in (marks.redirect, marks.metacopy):
            if order in names and marks.prefix.startswith(b"trusted."):
                raise Unsupported(
                    f"the layer's {name.decode(errors='backslashreplace')!r} takes its content from another place: "
                    f"it carries the attribute {order.decode()}",
                    hint="write the layer again through an overlay with redirect_dir=off,metacopy=off",
                )
        return Found(status, xattrs, opaque, target)

    def _attributes(self, fd: int, name: bytes) -> list[bytes]:
        if not self._has_xattrs:
            return []
        try:
            return [os.fsencode(found) for found in os.listxattr(proc_path(fd, name), follow_symlinks=False)]
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._has_xattrs = False
                return []
            raise


def is_opaque(found: Found) -> bool:
    """Tell whether a directory hides everything that lower layers have in it."""
    return found.opaque == OPAQUE_YES


def changed(name: bytes) -> FailedPrecondition:
    """Return the error for a layer in which somebody works."""
    return FailedPrecondition(
        f"the layer changes while it is being indexed: {name.decode(errors='backslashreplace')!r} is another file now",
        hint="only committed layers have an index; wait until nobody writes to it",
    )
