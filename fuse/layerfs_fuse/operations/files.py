"""Requests about the data of regular files.

A *record* holds what is open of a node, one for all who use it; the kernel's own handles (``fh``) are all 0. Without
OPEN (see `layerfs_fuse.session`) records come with the first READ or WRITE of a node and go when the kernel forgets
it, or when there are too many. With passthrough they also count who has the node open, and go when nobody has.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import TYPE_CHECKING

from layerfs_fuse.attributes import MODE, U32, U64
from layerfs_fuse.operations.backing import Backing
from layerfs_fuse.operations.pipe import SPLICED, Pipe
from layerfs_fuse.protocol import (
    COPY_FILE_RANGE_IN,
    COPY_FILE_RANGE_OUT,
    FALLOCATE_IN,
    FSYNC_FDATASYNC,
    FSYNC_IN,
    HEADER,
    LSEEK_IN,
    LSEEK_OUT,
    OPEN_IN,
    OPEN_KEEP_CACHE,
    OPEN_KILL_SUIDGID,
    OPEN_NOFLUSH,
    OPEN_OUT,
    OPEN_PASSTHROUGH,
    READ_IN,
    WRITE_IN,
    WRITE_KILL_SUIDGID,
    WRITE_OUT,
    Opcode,
)
from layerfs_fuse.server import Buffer, Channel, Handler, Header, Reply
from layerfs_fuse.session import Session
from layerfs_fuse.union import Changes, Handle, Union

if TYPE_CHECKING:
    from layerfs_fuse.redirect.file import RedirectedFile

_AFTER_HEADER = HEADER.size
_DATA = HEADER.size + WRITE_IN.size
_UNPACK_READ = READ_IN.unpack_from
_UNPACK_WRITE = WRITE_IN.unpack_from
# Nothing waits for a close, so the kernel need not tell of it.
_PLAIN_OPEN = OPEN_OUT.pack(0, OPEN_KEEP_CACHE | OPEN_NOFLUSH, 0)
_PASSTHROUGH = OPEN_PASSTHROUGH | OPEN_NOFLUSH
KILL_SUIDGID = Changes(kill_suidgid=True)
COPY_AT_ONCE = 64 << 20
"""Bytes that one COPY_FILE_RANGE copies at most, so that nobody else waits long; the caller asks again for the rest."""


class Record:
    """What is open of a node, and for how many (0: kept for the next who comes).

    ``size`` is that of a lower file, which stays what it is, else -1. ``backing`` is its backing id or 0.
    ``outdated``: the backing id is that of a lower file which was copied up since.
    """

    __slots__ = ("backing", "handle", "outdated", "size", "users", "writable")

    def __init__(self, handle: Handle, *, writable: bool) -> None:
        self.handle = handle
        self.size = os.fstat(handle.fd).st_size if handle.record is None else -1
        self.writable = writable
        self.users = 0
        self.backing = 0
        self.outdated = False


class Files:
    """The handlers of one mount. ``limit`` is how many files are kept open that nobody is known to use."""

    def __init__(self, union: Union, channel: Channel, session: Session, *, limit: int, volatile: bool = False) -> None:
        self._union = union
        self._channel = channel
        self._body = channel.body
        self._passthrough = session.passthrough
        self._seekable = not session.writeback
        self._limit = limit
        self._volatile = volatile
        self._backing = Backing(channel.device, granted=session.passthrough)
        self._records: dict[int, Record] = {}
        self._former: set[int] = set()
        self._room = channel.room
        self._pipe = Pipe(channel.device)
        union.on_copied_up = self._copied_up

    def handlers(self) -> dict[int, Handler]:
        """Return what answers each opcode."""
        table: dict[int, Handler] = {
            Opcode.READ: self.read,
            Opcode.WRITE: self.write,
            Opcode.RELEASE: self.release,
            Opcode.FSYNC: self.sync,
            Opcode.FSYNCDIR: self.sync_directory,
            Opcode.SYNCFS: self.sync_all,
            Opcode.FALLOCATE: self.allocate,
            Opcode.COPY_FILE_RANGE: self.copy_range,
            Opcode.COPY_FILE_RANGE_64: self.copy_range_64,
        }
        if self._passthrough:
            table[Opcode.OPEN] = self.open
        if self._seekable:
            # What the kernel's writeback cache holds would look like a hole below; without LSEEK there are none.
            table[Opcode.LSEEK] = self.seek
        return table

    def close(self) -> None:
        """Close everything."""
        for record in self._records.values():
            record.handle.close()
        self._records.clear()
        self._pipe.close()

    # -- records -------------------------------------------------------------------------------------------------------

    def _keep(self, node: int, record: Record) -> Record:
        """Remember a record; close the oldest quarter of those that nobody uses where there are too many."""
        if len(self._records) >= self._limit:
            unused = [old for old, kept in self._records.items() if not kept.users]
            for old in unused[: len(unused) // 4 + 1]:
                self._close(self._records.pop(old))
        self._records[node] = record
        return record

    def _close(self, record: Record) -> None:
        self._backing.drop(record.backing)
        record.handle.close()

    def forget(self, node: int) -> None:
        """Close what is open of a node that the kernel forgets, unless it has it open still."""
        record = self._records.get(node)
        if record is not None:
            if record.users:
                return
            self._close(self._records.pop(node))
        self._former.discard(node)

    def _readable(self, node: int) -> Record:
        record = self._records.get(node)
        if record is None:
            record = self._keep(node, Record(self._union.open(node, os.O_RDONLY), writable=False))
        return record

    def _writable(self, node: int) -> Record:
        """Return the record of a node, copied up if need be and open for writing."""
        record = self._records.get(node)
        if record is not None and record.writable:
            return record
        handle = self._union.open(node, os.O_RDWR)
        if record is None:
            return self._keep(node, Record(handle, writable=True))
        record.handle.close()
        record.handle, record.writable, record.size = handle, True, -1
        return record

    def _copied_up(self, node: int) -> None:
        """Hear from the union that a lower file that is open was copied up; its handles follow, a backing id cannot."""
        record = self._records.get(node)
        if record is not None:
            record.size = -1
            record.outdated = record.backing != 0

    # -- opening -------------------------------------------------------------------------------------------------------

    def adopt(self, entry: Buffer, handle: Handle, *, users: int = 1) -> bytes:
        """Take over a file that was just made and opened; return the reply to the opening."""
        (node,) = U64.unpack_from(entry)
        record = self._keep(node, Record(handle, writable=True))
        if not self._passthrough:
            return _PLAIN_OPEN
        record.users = users
        return self._register(record)

    def _register(self, record: Record) -> bytes:
        """Have the kernel use the file of a record by itself if it may; return the reply to an OPEN of it."""
        if not record.backing:
            record.backing = self._backing.register(record.handle.fd)
            if not record.backing:
                return _PLAIN_OPEN
        if record.writable:
            record.handle.bypass()
        return OPEN_OUT.pack(0, _PASSTHROUGH, record.backing)

    def open(self, header: Header) -> Reply:
        """Open a file for passthrough.

        Who has a lower file open when it is copied up keeps reading the lower one, as with the kernel's overlay. The
        node cannot have two backing files, so the upper one gets a new node id, and ESTALE sends the kernel to find
        it.
        """
        flags, open_flags = OPEN_IN.unpack_from(self._body, _AFTER_HEADER)
        node = header[3]
        if node in self._former:
            return -errno.ESTALE
        truncate = flags & os.O_TRUNC
        writing = bool(flags & os.O_ACCMODE) or bool(truncate)
        record = self._records.get(node)
        if record is None or record.outdated or (writing and not record.writable):
            record = self._renew(node, record, (os.O_RDWR if writing else os.O_RDONLY) | truncate)
            if record is None:
                return -errno.ESTALE
        elif truncate:
            self._union.set_attributes(node, Changes(size=0))
        if writing and (header[4] or open_flags & OPEN_KILL_SUIDGID):
            self._kill_suidgid(node)
        reply = self._register(record)
        record.users += 1
        return reply

    def _renew(self, node: int, record: Record | None, flags: int) -> Record | None:
        """Open a node anew; None where it has a new node id from now on."""
        writable = bool(flags & os.O_ACCMODE)
        handle = self._union.open(node, flags)
        if record is None:
            return self._keep(node, Record(handle, writable=writable))
        if record.outdated:
            if record.users:
                new = self._union.renumber(node)
                self._former.add(node)
                self._keep(new, Record(handle, writable=writable))
                return None
            self._backing.drop(record.backing)
            record.backing, record.outdated = 0, False
        record.handle.close()
        record.handle, record.writable = handle, writable
        return record

    def _kill_suidgid(self, node: int) -> None:
        """Take set-user-id away when somebody else than root opens for writing: passthrough does not tell of writes."""
        (mode,) = U32.unpack_from(self._union.attributes(node), MODE)
        if mode & stat.S_ISUID or mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID | stat.S_IXGRP:
            self._union.set_attributes(node, KILL_SUIDGID)

    def release(self, header: Header) -> Reply:
        """Note that somebody closed a node."""
        record = self._records.get(header[3])
        if record is not None and record.users:
            record.users -= 1
            if not record.users and record.backing:
                record.handle.resume()
        return 0

    # -- data ----------------------------------------------------------------------------------------------------------

    def read(self, header: Header) -> Reply:
        """Read a little into the memory of the reply, and more than that through a pipe, without touching it."""
        offset, size = _UNPACK_READ(self._body, _AFTER_HEADER)
        record = self._records.get(header[3]) or self._readable(header[3])
        handle = record.handle
        fd = handle.fd if handle.content is None else handle.content.holder(size, offset)
        if fd < 0:
            return handle.read(size, offset)
        if size >= SPLICED:
            there = record.size if record.size >= 0 else os.fstat(fd).st_size
            if self._pipe.send(header[2], fd, offset, min(size, there - offset)):
                return None
        return os.preadv(fd, (self._room[:size],), offset)

    def write(self, header: Header) -> Reply:
        """Write from the buffer of the request."""
        _, offset, size, flags, _, _, _ = _UNPACK_WRITE(self._body, _AFTER_HEADER)
        record = self._records.get(header[3])
        if record is None or not record.writable:
            record = self._writable(header[3])
        if flags & WRITE_KILL_SUIDGID:
            self._union.set_attributes(header[3], KILL_SUIDGID)
        return WRITE_OUT.pack(record.handle.write(self._body[_DATA : _DATA + size], offset), 0)

    def allocate(self, header: Header) -> Reply:
        """Reserve, free or zero a range (fallocate(2))."""
        _, offset, length, mode, _ = FALLOCATE_IN.unpack_from(self._body, _AFTER_HEADER)
        self._writable(header[3]).handle.allocate(mode, offset, length)
        return 0

    def seek(self, header: Header) -> Reply:
        """Find data or a hole (lseek(2))."""
        _, offset, whence, _ = LSEEK_IN.unpack_from(self._body, _AFTER_HEADER)
        return LSEEK_OUT.pack(self._readable(header[3]).handle.seek(offset, whence))

    def copy_range(self, header: Header) -> Reply:
        """Copy from one file to another without the client (copy_file_range(2))."""
        return WRITE_OUT.pack(self._copy_range(header), 0)

    def copy_range_64(self, header: Header) -> Reply:
        """Do the same; the answer may be larger."""
        return COPY_FILE_RANGE_OUT.pack(self._copy_range(header))

    def _copy_range(self, header: Header) -> int:
        _, start, node, _, to, length, _ = COPY_FILE_RANGE_IN.unpack_from(self._body, _AFTER_HEADER)
        target = self._writable(node).handle
        return self._readable(header[3]).handle.copy_range(start, target, to, min(length, COPY_AT_ONCE))

    # -- durability ----------------------------------------------------------------------------------------------------

    def sync(self, header: Header) -> Reply:
        """Write a file to disk: a worker waits for that, on a descriptor that nobody closes meanwhile."""
        if self._volatile:
            return 0
        _, flags, _ = FSYNC_IN.unpack_from(self._body, _AFTER_HEADER)
        handle, datasync = self._readable(header[3]).handle, bool(flags & FSYNC_FDATASYNC)
        if handle.content is not None:
            self._channel.defer(header, partial(_sync_content, handle.content, datasync=datasync))
        else:
            self._channel.defer(header, partial(_sync, os.dup(handle.fd), datasync=datasync))
        return None

    def sync_directory(self, header: Header) -> Reply:
        """Write the names of a directory to disk."""
        fd = self._union.settled_directory(header[3])
        if fd < 0:
            return 0
        self._channel.defer(header, partial(_sync, fd, datasync=False))
        return None

    def sync_all(self, header: Header) -> Reply:
        """Write everything to disk: what has to do with the union first, for a worker must not touch it."""
        self._union.settle()
        self._channel.defer(header, self._write_back)
        return None

    def _write_back(self) -> int:
        self._union.write_back()
        return 0


def _sync_content(content: RedirectedFile, *, datasync: bool) -> int:
    content.sync(datasync=datasync)
    return 0


def _sync(fd: int, *, datasync: bool) -> int:
    try:
        (os.fdatasync if datasync else os.fsync)(fd)
    finally:
        os.close(fd)
    return 0
