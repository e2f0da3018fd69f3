"""Modes that keep an ordinary user out of their own directory while it is filled: 0555, as of Fedora's /usr/bin.

Root of the host or of a user namespace needs no permission (CAP_DAC_OVERRIDE, capabilities(7)).
"""

from __future__ import annotations

import os

from layerfs.kernel import syscalls

_OWNER = 0o700
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STAY = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV


class HeldModes:
    """The modes of directories, by their paths below a root (b"" for itself), that wait until nothing more is made."""

    def __init__(self, *, needed: bool) -> None:
        """Hold modes back if ``needed``; else every mode is given at once."""
        self.needed = needed
        self._modes: dict[bytes, int] = {}

    def now(self, path: bytes, mode: int) -> int:
        """Return the mode to give a directory now, and remember the other one if there is one."""
        if not self.needed or mode & _OWNER == _OWNER:
            self._modes.pop(path, None)
            return mode
        self._modes[path] = mode
        return mode | _OWNER

    def open_up(self, path: bytes, fd: int, mode: int) -> None:
        """Let the owner into a directory that is there already."""
        given = self.now(path, mode) if path not in self._modes else mode
        if given != mode:
            os.fchmod(fd, given)

    def forget(self, path: bytes) -> None:
        """Forget a directory that is about to be removed, and all below it."""
        if self._modes:
            below = path + b"/"
            self._modes = {key: mode for key, mode in self._modes.items() if key != path and not key.startswith(below)}

    def settle(self, root: int) -> None:
        """Give the modes that were held back, the deepest directory first."""
        for path in sorted(self._modes, key=len, reverse=True):
            fd = os.dup(root) if not path else syscalls.openat2(root, path.lstrip(b"/"), _PLACE, resolve=_STAY)
            try:
                os.chmod(b"/proc/self/fd/%d" % fd, self._modes[path])
            finally:
                os.close(fd)
        self._modes.clear()
