"""Requests about the data of files of a union that is held to a quota: the union itself writes, and counts."""

from __future__ import annotations

from layerfs_fuse.operations.files import COPY_AT_ONCE, KILL_SUIDGID, Files
from layerfs_fuse.protocol import (
    COPY_FILE_RANGE_IN,
    FALLOCATE_IN,
    HEADER,
    WRITE_IN,
    WRITE_KILL_SUIDGID,
    WRITE_OUT,
)
from layerfs_fuse.server import Channel, Header, Reply
from layerfs_fuse.session import Session
from layerfs_fuse.union import Union
from layerfs_fuse.union.counted import CountedUnion

_DATA = HEADER.size + WRITE_IN.size


class CountedFiles(Files):
    """The handlers of one mount, with those that write."""

    def __init__(self, union: CountedUnion, channel: Channel, session: Session, *, limit: int, volatile: bool) -> None:
        super().__init__(union, channel, session, limit=limit, volatile=volatile)
        self._counted = union

    def write(self, header: Header) -> Reply:
        """Write from the buffer of the request what there is room for."""
        _, offset, size, flags, _, _, _ = WRITE_IN.unpack_from(self._body, HEADER.size)
        handle = self._writable(header[3]).handle
        if flags & WRITE_KILL_SUIDGID:
            self._union.set_attributes(header[3], KILL_SUIDGID)
        return WRITE_OUT.pack(self._counted.write(handle, self._body[_DATA : _DATA + size], offset), 0)

    def allocate(self, header: Header) -> Reply:
        """Reserve, free or zero a range (fallocate(2))."""
        _, offset, length, mode, _ = FALLOCATE_IN.unpack_from(self._body, HEADER.size)
        self._counted.allocate(self._writable(header[3]).handle, mode, offset, length)
        return 0

    def _copy_range(self, header: Header) -> int:
        _, start, node, _, to, length, _ = COPY_FILE_RANGE_IN.unpack_from(self._body, HEADER.size)
        target = self._writable(node).handle
        source = self._readable(header[3]).handle
        return self._counted.copy_range(source, start, target, to, min(length, COPY_AT_ONCE))


def files_of(union: Union, channel: Channel, session: Session, *, limit: int, volatile: bool) -> Files:
    """Return the handlers for a union, by whether it counts."""
    if isinstance(union, CountedUnion):
        return CountedFiles(union, channel, session, limit=limit, volatile=volatile)
    return Files(union, channel, session, limit=limit, volatile=volatile)
