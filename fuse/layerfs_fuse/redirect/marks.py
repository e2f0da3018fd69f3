"""The marks of redirected files: extended attributes, as `layerfs_fuse.redirect.format` has them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from layerfs_fuse.redirect.format import (
    ELSEWHERE,
    FORMAT,
    HEADER,
    KEPT,
    METACOPY,
    NOWHERE,
    PREFIXES,
    ROOT_MARK,
    Header,
    Kept,
)

_ABSENT = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES})
_TOO_LARGE = frozenset({errno.ENOSPC, errno.E2BIG, errno.ERANGE, errno.EDQUOT})


class Marks:
    """The marks of one open file; the header is *owed* while the one on disk is a step behind."""

    __slots__ = ("_fd", "_header", "_owed", "_prefix", "_shown")

    def __init__(self, fd: int, header: Header, prefix: bytes) -> None:
        """Borrow the descriptor of the upper file."""
        self._fd = fd
        self._header = header
        self._prefix = prefix
        self._shown = header.shown
        self._owed = False

    def owe(self, shown: int) -> None:
        """Note that less shows now than the header says; it must be said before the file grows."""
        self._shown = shown
        self._owed = True

    def rewrite(self, header: Header) -> None:
        """Write another header; raise ``OSError``, and it is owed."""
        self._header = header
        self._owed = True
        self.settle()

    def settle(self) -> None:
        """Write the header if it is owed; raise ``OSError``, and it is owed still."""
        if self._owed:
            set_mark(self._fd, self._prefix + HEADER, self._header.pack(self._shown))
            self._owed = False


def put(fd: int, prefix: bytes, header: Header) -> bool:
    """Mark a file as redirected; False, and no mark is left, where the file system has no room for the header."""
    try:
        with writable(fd):
            os.setxattr(fd, prefix + HEADER, header.pack(header.shown))
            os.setxattr(fd, prefix + METACOPY, b"")
            os.setxattr(fd, prefix + ELSEWHERE, NOWHERE)
    except OSError as error:
        clear(fd, prefix)
        if error.errno in _TOO_LARGE:
            return False
        raise
    return True


def clear(fd: int, prefix: bytes) -> None:
    """Take all marks off a file; the header goes last, for without it the file is whole."""
    for name in (ELSEWHERE, METACOPY, KEPT, HEADER):
        with writable(fd):
            try:
                os.removexattr(fd, prefix + name)
            except OSError as error:
                if error.errno != errno.ENODATA:
                    raise


def set_mark(fd: int, name: bytes, value: bytes) -> None:
    """Set a mark of an open file."""
    with writable(fd):
        os.setxattr(fd, name, value)


@contextlib.contextmanager
def writable(fd: int) -> Iterator[None]:
    """Let users mark files of their own that the mode forbids them to write (xattr(7), "user extended attributes")."""
    if os.geteuid() == 0 or (mode := stat.S_IMODE(os.fstat(fd).st_mode)) & stat.S_IWUSR:
        yield
        return
    os.fchmod(fd, mode | stat.S_IWUSR)
    try:
        yield
    finally:
        os.fchmod(fd, mode)


def header_of(path: int | bytes, *, follow: bool = False) -> tuple[bytes, Header] | None:
    """Return prefix and header of a file; None where it is not redirected. Raise ``ValueError`` for another format."""
    for prefix in PREFIXES:
        value = get(path, prefix + HEADER, follow=follow)
        if value is not None:
            return prefix, Header.parse(value)
    return None


def get(path: int | bytes, name: bytes, *, follow: bool = False) -> bytes | None:
    """Return a mark; None where there is none, or where an ordinary user may not see it."""
    try:
        return os.getxattr(path, name, follow_symlinks=follow or isinstance(path, int))
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def kept_of(fd: int, prefix: bytes) -> Kept | None:
    """Return what an interrupted flatten keeps of a file; raise ``ValueError``."""
    value = get(fd, prefix + KEPT)
    return None if value is None else Kept.parse(value)


def mark_root(path: bytes, prefix: bytes) -> None:
    """Say of the root of an upper directory that redirected files are in it."""
    os.setxattr(path, prefix + ROOT_MARK, b"%d" % FORMAT)


def root_marks(path: int | bytes) -> list[bytes]:
    """Return the prefixes of the marks that say that redirected files are in an upper directory."""
    return [prefix for prefix in PREFIXES if get(path, prefix + ROOT_MARK, follow=True) is not None]


def unmark_root(fd: int, prefix: bytes) -> None:
    """Say of the root of an upper directory that no redirected files are in it any more."""
    os.removexattr(fd, prefix + ROOT_MARK)
