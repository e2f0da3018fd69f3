"""Requests for which there is no room, done again when the kernel has forgotten files that were deleted before.

What was deleted takes its space until the kernel says that nobody has it open, by a FORGET. That is sent at the
deletion, but the kernel hands out other requests first: whoever deletes a file and makes one would find no room. So a
request that was refused waits for the next FORGET while there is a file without a name, but not for long: it may be
open.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from functools import partial
from threading import Event, Lock

from layerfs_fuse.protocol import Opcode
from layerfs_fuse.server import Buffer, Channel, Handler, Header, Reply
from layerfs_fuse.union.counted import CountedUnion

_PATIENCE = 0.05
"""Seconds that a request waits; a FORGET that is on its way comes in less than one millisecond."""
_FORGETS = (Opcode.FORGET, Opcode.BATCH_FORGET)


class _Waiting:
    """One request that waits, with its bytes; a worker answers it."""

    def __init__(self, handler: Handler, header: Header, body: bytes) -> None:
        self._handler = handler
        self._header = header
        self._body = body
        self._lock = Lock()
        self._over = Event()
        self._reply: Reply | OSError = _full()

    @property
    def over(self) -> bool:
        """Tell whether it has its answer, or waits no longer."""
        return self._over.is_set()

    def try_again(self, room: memoryview) -> bool:
        """Do it again, in the buffer ``room`` of all requests; return False where there is no room for it still."""
        with self._lock:
            if self._over.is_set():
                return True
            room[: len(self._body)] = self._body
            try:
                self._reply = self._handler(self._header)
            except OSError as error:
                if error.errno == errno.EDQUOT:
                    return False
                self._reply = error
            self._over.set()
            return True

    def answer(self) -> Buffer | int:
        """Wait for it, and return the reply or raise ``OSError``: EDQUOT where there was no room in time."""
        self._over.wait(_PATIENCE)
        with self._lock:
            self._over.set()
            self._body = b""  # up to 1 MiB, which the traceback of the error below would keep until a collection
        reply = self._reply
        if isinstance(reply, OSError):
            raise reply
        return b"".join(reply) if isinstance(reply, tuple) else reply or 0


class Patience:
    """The handlers of a union that counts, which wait where that may help."""

    def __init__(self, union: CountedUnion, channel: Channel) -> None:
        self._union = union
        self._channel = channel
        self._waiting: list[_Waiting] = []

    def handlers(self, table: Mapping[int, Handler]) -> dict[int, Handler]:
        """Return what answers each opcode."""
        return {
            opcode: partial(self._forget if opcode in _FORGETS else self._do, handler)
            for opcode, handler in table.items()
        }

    def _do(self, handler: Handler, header: Header) -> Reply:
        try:
            return handler(header)
        except OSError as error:
            if error.errno != errno.EDQUOT or not self._union.has_nameless():
                raise
        waiting = _Waiting(handler, header, self._channel.body[: header[0]].tobytes())
        # Nothing may ever be forgotten: what is deleted and open stays, and who finds no room may try without end.
        self._waiting = [*(one for one in self._waiting if not one.over), waiting]
        self._channel.defer(header, waiting.answer)
        return None

    def _forget(self, handler: Handler, header: Header) -> Reply:
        reply = handler(header)
        self._waiting = [one for one in self._waiting if not one.try_again(self._channel.body)]
        return reply


def _full() -> OSError:
    return OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
