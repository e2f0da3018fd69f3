"""Walk down and up a directory tree by descriptors, however deep it is and whoever renames things in it meanwhile.

No path is ever joined: each directory is opened from the one above, never through a symbolic link and never across a
mount. Only some descriptors stay open; a directory further up is opened again through ``..`` and must still be the one
that was left.
"""

from __future__ import annotations

import errno
import os

from layerfs.kernel import syscalls
from layerfs.kernel.descriptors import Closing

_OPEN = 128
"""Descriptors that one walk holds at most."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STAY = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV


def open_directory(dir_fd: int, name: bytes) -> int:
    """Open a directory below ``dir_fd``; raise ``OSError`` (EXDEV) for the place of a mount, ELOOP for a link."""
    return syscalls.openat2(dir_fd, name, _DIRECTORY, resolve=_STAY)


class Descent(Closing):
    """A place in a tree: ``fd`` is open on the present directory, ``depth`` levels below the root."""

    def __init__(self, root_fd: int) -> None:
        """Start at the root; the walk owns ``root_fd`` from now on."""
        self._levels: list[tuple[int, tuple[int, int]]] = [(root_fd, _identity(root_fd))]
        self._closed = 0

    @property
    def fd(self) -> int:
        """Return the descriptor of the present directory, which the walk owns."""
        return self._levels[-1][0]

    @property
    def depth(self) -> int:
        """Return how many levels below the root it is."""
        return len(self._levels) - 1

    def down(self, name: bytes) -> None:
        """Enter a directory of the present one."""
        fd = open_directory(self.fd, name)
        self._levels.append((fd, _identity(fd)))
        if len(self._levels) - self._closed > _OPEN:
            old, identity = self._levels[self._closed]
            self._levels[self._closed] = (-1, identity)
            self._closed += 1
            os.close(old)

    def up(self) -> None:
        """Go back to the directory above; raise ``OSError`` (ESTALE) where something was moved meanwhile."""
        fd, _ = self._levels.pop()
        try:
            if self._levels and self._levels[-1][0] < 0:
                self._reopen(fd)
        finally:
            os.close(fd)

    def _reopen(self, fd: int) -> None:
        above = os.open("..", _DIRECTORY, dir_fd=fd)
        if _identity(above) != self._levels[-1][1]:
            os.close(above)
            raise OSError(errno.ESTALE, "a directory was moved while it was being walked")
        self._levels[-1] = (above, self._levels[-1][1])
        self._closed -= 1

    def close(self) -> None:
        """Close every descriptor; doing it twice is no error."""
        for fd, _ in self._levels:
            if fd >= 0:
                os.close(fd)
        self._levels.clear()


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
