"""Owners that a mount shows otherwise than they are on disk: a table of handlers becomes one that translates.

The kernel checks permissions by what is shown; so all replies are translated there, and callers and new owners back.
"""

from __future__ import annotations

from collections.abc import Callable

from layerfs_fuse.attributes import ENTRY_ATTRIBUTES, GID, RECORD_NAME, RECORD_NAMELEN, U32, UID
from layerfs_fuse.ids import IdShift
from layerfs_fuse.protocol import HEADER, SETATTR_IN, STATX_UID, Opcode, SetAttr
from layerfs_fuse.server import Buffer, Handler, Header, Reply

_ENTRIES = (Opcode.LOOKUP, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK, Opcode.CREATE, Opcode.TMPFILE)
_VALID = HEADER.size
_NEW_UID = HEADER.size + SETATTR_IN.size - 12
_NEW_GID = HEADER.size + SETATTR_IN.size - 8


def shifted(table: dict[int, Handler], body: memoryview, users: IdShift, groups: IdShift) -> dict[int, Handler]:
    """Return handlers that show owners shifted; ``body`` is the buffer of their channel."""
    if users.identity and groups.identity:
        return table
    shift = _Shift(body, users, groups)
    wrapped: dict[int, Handler] = {opcode: shift.of_entry(table[opcode]) for opcode in _ENTRIES if opcode in table}
    wrapped[Opcode.GETATTR] = shift.of_attributes(table[Opcode.GETATTR])
    wrapped[Opcode.SETATTR] = shift.of_change(table[Opcode.SETATTR])
    wrapped[Opcode.STATX] = shift.of_statx(table[Opcode.STATX])
    wrapped[Opcode.READDIRPLUS] = shift.of_records(table[Opcode.READDIRPLUS])
    return {**table, **wrapped}


class _Shift:
    def __init__(self, body: memoryview, users: IdShift, groups: IdShift) -> None:
        self._body = body
        self._shown = ((UID, users.to_shown()), (GID, groups.to_shown()))
        self._user_on_disk, self._group_on_disk = users.to_disk(), groups.to_disk()

    def of_entry(self, handler: Handler) -> Handler:
        """Wrap a handler whose reply begins with an entry, and whose caller may own it."""

        def handle(header: Header) -> Reply:
            owner = (self._user_on_disk(header[4]), self._group_on_disk(header[5]))
            reply = handler((*header[:4], *owner, *header[6:]))
            if isinstance(reply, int) or reply is None:
                return reply
            if isinstance(reply, tuple):
                return self._patched(reply[0], ENTRY_ATTRIBUTES), reply[1]
            return self._patched(reply, ENTRY_ATTRIBUTES)

        return handle

    def of_attributes(self, handler: Handler) -> Handler:
        """Wrap a handler whose reply ends with attributes."""

        def handle(header: Header) -> Reply:
            reply = handler(header)
            return (reply[0], self._patched(reply[1], 0)) if isinstance(reply, tuple) else reply

        return handle

    def of_statx(self, handler: Handler) -> Handler:
        """Wrap the handler that tells attributes as statx(2) has them."""

        def handle(header: Header) -> Reply:
            reply = handler(header)
            return self._patched(reply, STATX_UID - UID) if isinstance(reply, bytes) else reply

        return handle

    def of_change(self, handler: Handler) -> Handler:
        """Wrap the handler that changes attributes: the new owner is put right in the request."""
        inner = self.of_attributes(handler)

        def handle(header: Header) -> Reply:
            self._put_right(int(SetAttr.UID), _NEW_UID, self._user_on_disk)
            self._put_right(int(SetAttr.GID), _NEW_GID, self._group_on_disk)
            return inner(header)

        return handle

    def _put_right(self, flag: int, place: int, on_disk: Callable[[int], int]) -> None:
        (valid,) = U32.unpack_from(self._body, _VALID)
        if not valid & flag:
            return
        owner = on_disk(U32.unpack_from(self._body, place)[0])
        if owner < 0:  # it stays whose it is
            U32.pack_into(self._body, _VALID, valid & ~flag)
        else:
            U32.pack_into(self._body, place, owner)

    def of_records(self, handler: Handler) -> Handler:
        """Wrap the handler that lists names with their entries."""

        def handle(header: Header) -> Reply:
            reply = handler(header)
            if isinstance(reply, int | tuple) or reply is None:
                return reply
            records = bytearray(reply)
            start = 0
            while start < len(records):
                self._patch(records, start + ENTRY_ATTRIBUTES)
                (length,) = U32.unpack_from(records, start + RECORD_NAMELEN)
                start += RECORD_NAME + (length + 7 & ~7)
            return records

        return handle

    def _patched(self, reply: Buffer, attributes: int) -> bytearray:
        """Return a copy with other owners: what the union told is its own."""
        copy = bytearray(reply)
        self._patch(copy, attributes)
        return copy

    def _patch(self, copy: bytearray, attributes: int) -> None:
        for field, shown in self._shown:
            U32.pack_into(copy, attributes + field, shown(U32.unpack_from(copy, attributes + field)[0]))
