"""The new file of an index while it is being built: records first, appended and patched, then all other sections."""

from __future__ import annotations

import mmap
import os
from array import array

from layerfs_fuse.index.format import HEADER_SIZE, Place, checksum

_BUFFER = 1 << 20
"""Bytes that wait to be written together."""


class Records:
    """A file that begins with room for the header; places in it are in bytes from its start."""

    def __init__(self, fd: int) -> None:
        """Write to ``fd``, an empty file open for reading and writing, which stays the caller's."""
        self._fd = fd
        self._written = HEADER_SIZE
        self._tail = bytearray()

    @property
    def end(self) -> int:
        """Return where the next record will start."""
        return self._written + len(self._tail)

    def append(self, data: bytes | bytearray | memoryview) -> int:
        """Add bytes at the end and return where they start."""
        start = self._written + len(self._tail)
        if len(data) >= _BUFFER:
            self.flush()
            self._write(start, memoryview(data))
            self._written += len(data)
            return start
        self._tail += data
        if len(self._tail) >= _BUFFER:
            self.flush()
        return start

    def patch(self, start: int, data: bytes) -> None:
        """Write over what is there."""
        begin = start - self._written
        if begin >= 0:
            self._tail[begin : begin + len(data)] = data
        else:
            self._write(start, memoryview(data))

    def read(self, start: int, size: int) -> bytes:
        """Return bytes as they are now; fewer at the end."""
        begin = start - self._written
        if begin >= 0:
            return bytes(self._tail[begin : begin + size])
        if start + size > self._written:
            self.flush()
        return os.pread(self._fd, size, start)

    def flush(self) -> None:
        """Write what waits."""
        self._write(self._written, memoryview(self._tail))
        self._written += len(self._tail)
        self._tail = bytearray()

    def _write(self, start: int, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._fd, data, start)
            start += written
            data = data[written:]

    def place(self) -> Place:
        """Return where the records are, with their checksum."""
        self.flush()
        with (
            mmap.mmap(self._fd, self._written, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
            view[HEADER_SIZE:] as records,
        ):
            return Place(HEADER_SIZE, len(records), checksum(records))

    def add_section(self, content: bytearray | array[int] | bytes) -> Place:
        """Write a section at the end."""
        view = memoryview(content).cast("B")
        start = self.end
        self._write(start, view)
        self._written += len(view) + -len(view) % 8
        os.ftruncate(self._fd, self._written)
        return Place(start, len(view), checksum(view))

    def write_header(self, page: bytes) -> None:
        """Write the header, which makes the file an index."""
        self._write(0, memoryview(page))
