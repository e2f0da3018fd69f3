"""An open file of the union."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from layerfs.kernel import syscalls

if TYPE_CHECKING:
    from layerfs_fuse.redirect.file import RedirectedFile
    from layerfs_fuse.union.node import Node

_PIECE = 1 << 20


class Handle:
    """A file that is open in a layer or in the upper directory; ``fd`` may be read from by whoever knows how.

    ``record`` is what the union remembers of a file in the upper directory; None stands for a pristine one. When that
    is copied up, ``fd`` is made to be the copy, so that a reader sees what others write. ``content`` is there where no
    single descriptor has the data: ``fd`` is -1 then.
    """

    __slots__ = ("_past", "content", "fd", "flags", "node", "record", "registry")

    def __init__(
        self,
        fd: int,
        node: int,
        flags: int,
        record: Node | None,
        registry: list[Handle] | None,
        content: RedirectedFile | None = None,
    ) -> None:
        self.fd = fd
        self.content = content
        self.node = node
        self.flags = flags
        self.record = record
        self.registry = registry
        self._past = False
        if record is not None and fd >= 0:
            record.handle = self

    def read(self, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``; fewer only at the end."""
        if self.content is not None:
            return self.content.read(size, offset)
        return os.pread(self.fd, size, offset)

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Write at ``offset`` and return the number of bytes; raise ``OSError`` (ENOSPC) where nothing was written."""
        if self.record is not None:
            self.record.stale = self.record.written = True
        if self.content is not None:
            return self.content.write(data, offset)
        done = os.pwrite(self.fd, data, offset)
        while done < len(data):  # a short write has a reason, which only the next one tells
            try:
                more = os.pwrite(self.fd, memoryview(data)[done:], offset + done)
            except OSError:
                break
            if not more:
                break
            done += more
        return done

    def bypass(self) -> None:
        """Say that until `close` the kernel writes into the file itself, so that its attributes are never known."""
        if self.record is not None and not self._past:
            self._past = True
            self.record.past += 1

    def resume(self) -> None:
        """Say that the kernel writes no more into the file itself."""
        if self.record is not None and self._past:
            self._past = False
            self.record.past -= 1
            self.record.stale = self.record.written = True

    def flush(self) -> None:
        """Do what close(2) of one of its descriptors asks: nothing, all data is in the kernel's hands already."""

    def sync(self, *, datasync: bool = False) -> None:
        """Wait until the data is on the disk; ``datasync`` leaves out times (fdatasync(2))."""
        if self.content is not None:
            self.content.sync(datasync=datasync)
        elif datasync:
            os.fdatasync(self.fd)
        else:
            os.fsync(self.fd)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """Change the space of a range, as fallocate(2) says of ``mode``."""
        if self.record is not None:
            self.record.stale = self.record.written = True
        if self.content is not None:
            self.content.allocate(mode, offset, length)
        else:
            syscalls.fallocate(self.fd, mode, offset, length)

    def seek(self, offset: int, whence: int) -> int:
        """Return where the next data or hole is (``os.SEEK_DATA``, ``os.SEEK_HOLE``)."""
        if self.content is not None:
            return self.content.seek(offset, whence)
        return os.lseek(self.fd, offset, whence)

    def copy_range(self, offset: int, target: Handle, target_offset: int, length: int) -> int:
        """Copy bytes to another open file inside the kernel and return how many (copy_file_range(2))."""
        if target.record is not None:
            target.record.stale = target.record.written = True
        if self.content is not None or target.content is not None:
            return self._copy(offset, target, target_offset, length)
        return os.copy_file_range(self.fd, target.fd, length, offset, target_offset)

    def _copy(self, offset: int, target: Handle, target_offset: int, length: int) -> int:
        """Copy bytes by reading and writing them; fewer at the end, or where the target is full."""
        done = 0
        while done < length:
            data = self.read(min(_PIECE, length - done), offset + done)
            written = target.write(data, target_offset + done) if data else 0
            done += written
            if not data or written < len(data):
                break
        return done

    def redirect(self, record: Node, content: RedirectedFile) -> None:
        """Go on with a redirected file in the place of the lower one that was open."""
        os.close(self.fd)
        self.fd, self.record, self.registry, self.content = -1, record, None, content

    def close(self) -> None:
        """Let go of the file."""
        if self.content is not None:
            content, self.content = self.content, None
            content.release()
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        os.close(fd)
        record = self.record
        if record is not None:
            if record.handle is self:
                record.handle = None
            self.resume()
        if self.registry is not None:
            self.registry.remove(self)
