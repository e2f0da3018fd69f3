"""A pipe between files and the device: the kernel hands on the pages of a file, and nothing of them is copied here.

splice(2) takes them from the file's cache to the pipe, and from there to who asked; a copy by way of this process's
memory would take a quarter longer.
"""

from __future__ import annotations

import fcntl
import os

from layerfs_fuse.protocol import REPLY
from layerfs_fuse.session import MAX_WRITE, PAGE

SPLICED = 16 << 10
"""Bytes from which on it costs less than to read and write: it takes a call more."""


class Pipe:
    """One pipe that leads to the device, and is empty between calls."""

    def __init__(self, device: int) -> None:
        """Borrow the descriptor of the device. The pipe is as large as this user may have it."""
        self._device = device
        self._out, self._into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            size = fcntl.fcntl(self._into, fcntl.F_SETPIPE_SZ, MAX_WRITE)
        except OSError:
            size = fcntl.fcntl(self._into, fcntl.F_GETPIPE_SZ)
        # It holds so many pages, however little is in each: the header is in one, and data may begin amid another.
        self._most = size - 2 * PAGE

    def close(self) -> None:
        """Close both ends; doing it twice is no error."""
        for fd in (self._out, self._into):
            if fd >= 0:
                os.close(fd)
        self._out = self._into = -1

    def send(self, unique: int, fd: int, offset: int, size: int) -> bool:
        """Answer the request ``unique`` with ``size`` bytes of a file; False where it is to be answered otherwise.

        So it is where there are too few or too many bytes, where the file ends before, and where the kernel refuses.
        """
        if not SPLICED <= size <= self._most:
            return False
        splice, into = os.splice, self._into
        whole = REPLY.size + size
        try:
            os.write(into, REPLY.pack(whole, 0, unique))
            while size:
                moved = splice(fd, into, size, offset_src=offset, flags=os.SPLICE_F_NONBLOCK)
                if not moved:
                    break
                size -= moved
                offset += moved
            if not size:
                splice(self._out, self._device, whole)
                return True
        except OSError:
            pass  # who asks otherwise hears why, and says it
        self._empty()
        return False

    def _empty(self) -> None:
        """Throw away what is in the pipe."""
        try:
            while os.read(self._out, MAX_WRITE):
                pass
        except BlockingIOError:
            pass
