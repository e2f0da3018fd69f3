"""The loop between /dev/fuse and the operations: one thread that reads a request, has it done and writes the reply.

One loop does everything, because the union has one owner and several readers of the device gain nothing (measured, see
docs/explanation/decisions.md); only what waits for a disk and touches no more than a descriptor (fsync) is *deferred*
to workers. Every request gets a reply whatever happens, so that no process waits for ever: an ``OSError`` is answered
with its errno, any other exception is logged and answered with EIO.
"""

from __future__ import annotations

import errno
import io
import logging
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from layerfs_fuse.protocol import HEADER, REPLY, WRITE_IN, Opcode
from layerfs_fuse.session import MAX_WRITE, PAGE, Offer, Session, Wishes, negotiate

_LOG = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview
Header = tuple[int, int, int, int, int, int, int, int, int]
"""`HEADER` unpacked: length, opcode, unique, node, uid, gid, pid, and two that do not matter."""
Reply = int | Buffer | tuple[Buffer, Buffer] | None
"""0 or a negative errno, the body in one piece or two short ones, or None for no reply (yet).

A positive number tells how many bytes of the body lie in `Channel.room` already.
"""
Handler = Callable[[Header], Reply]
"""Do one request; its body is in the buffer of the channel until the handler returns."""

_WORKERS = 4
_SMALL = 4096
"""Bytes of a reply up to which a copy behind its header costs less than a second piece for the kernel."""
_OPCODES = 64
_NO_REPLY = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.NOTIFY_REPLY})
_GONE = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.EBADF})
"""What a read of the device says after an unmount, an abort by /sys/fs/fuse/connections, and `Channel.close`."""
_AGAIN = frozenset({errno.EINTR, errno.EAGAIN, errno.ENOENT})
"""ENOENT: the request was taken back between being announced and being read (fuse(4))."""


def _unknown(_header: Header) -> Reply:
    return -errno.ENOSYS


class Channel:
    """One device with its buffer: how requests come in and replies and notifications go out.

    ``device`` is its descriptor, ``body`` the buffer that holds the request of the moment, header included, and
    ``room`` one of `MAX_WRITE` bytes for the body of its reply; a handler must keep neither.
    """

    def __init__(self, device: int) -> None:
        self.device = device
        self.body = _memory(HEADER.size + WRITE_IN.size)
        self._reply = _memory(REPLY.size)
        self.room = self._reply[REPLY.size :]
        self._workers: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """Wait for what was deferred and close the device; a mount that is still there becomes stale."""
        if self._workers is not None:
            self._workers.shutdown()
            self._workers = None
        if self.device >= 0:
            os.close(self.device)
            self.device = -1

    def negotiate(self, wishes: Wishes) -> Session | None:
        """Answer INIT; return None where the mount was taken away before that."""
        while True:
            header = self._receive()
            if header is None:
                return None
            if header[1] != Opcode.INIT:
                self._answer(header[2], -errno.EIO)
                continue
            try:
                session = negotiate(Offer.parse(self.body[HEADER.size : header[0]]), wishes)
            except OSError as error:
                self._answer(header[2], -(error.errno or errno.EIO))
                raise
            self._answer(header[2], session.reply())
            return session

    def _receive(self) -> Header | None:
        """Wait for a request; None when there will be none any more."""
        while True:
            try:
                if not os.readv(self.device, [self.body]):
                    return None
            except OSError as error:
                if error.errno in _GONE:
                    return None
                if error.errno not in _AGAIN:
                    raise
                continue
            return HEADER.unpack_from(self.body)

    def serve(self, handlers: dict[int, Handler]) -> None:  # noqa: C901, PLR0912  one function, for speed: see below
        """Answer requests until the mount is gone.

        This is the hot path, so it is one function: each call that it would be divided into costs a request some
        50 ns of 2 µs.
        """
        table = [handlers.get(opcode, _unknown) for opcode in range(_OPCODES)]
        device, buffer, whole = self.device, self.body, self._reply
        read = io.FileIO(device, closefd=False).readinto
        write, writev, unpack, pack, put = os.write, os.writev, HEADER.unpack_from, REPLY.pack, REPLY.pack_into
        size = REPLY.size
        while True:
            try:
                read(buffer)
            except OSError as error:
                if error.errno in _GONE:
                    return
                if error.errno in _AGAIN:
                    continue
                raise
            header = unpack(buffer)
            try:
                reply = table[header[1]](header)
            except OSError as error:
                reply = -(error.errno or errno.EIO)
            except Exception:  # noqa: BLE001  see below
                # The process that asked must not wait for ever because of a mistake of ours.
                reply = self._failed(header)
            if reply is None:
                continue
            try:
                if isinstance(reply, int):
                    if reply > 0:
                        put(whole, 0, size + reply, 0, header[2])
                        write(device, whole[: size + reply])
                    else:
                        write(device, pack(size, reply, header[2]))
                elif isinstance(reply, tuple):
                    first, second = reply
                    write(device, pack(size + len(first) + len(second), 0, header[2]) + first + second)
                elif len(reply) <= _SMALL:
                    write(device, pack(size + len(reply), 0, header[2]) + reply)
                else:
                    writev(device, (pack(size + len(reply), 0, header[2]), reply))
            except OSError as error:
                self._undeliverable(header, error)

    def _failed(self, header: Header) -> Reply:
        """Log an exception that is no ``OSError``; opcodes beyond the table are none of ours."""
        if header[1] >= _OPCODES:
            return -errno.ENOSYS
        _LOG.exception("%s of node %d failed", _name(header[1]), header[3])
        return None if header[1] in _NO_REPLY else -errno.EIO

    def _undeliverable(self, header: Header, error: OSError) -> None:
        """Handle a reply that the kernel did not take: nobody waits any more (ENOENT), or it is malformed (EINVAL).

        Raise ``OSError`` where it does not take another one either: who asked would wait for ever, and with it every
        sync(2) of the machine, so the connection is to end.
        """
        if error.errno == errno.ENOENT or error.errno in _GONE:
            return
        _LOG.error("the kernel refused the reply to %s of node %d: %s", _name(header[1]), header[3], error)
        if not self._answer(header[2], -errno.EIO):
            raise error

    def _answer(self, unique: int, reply: int | Buffer) -> bool:
        """Write a reply off the hot path, from any thread; return False where somebody still waits for one."""
        code, body = (reply, b"") if isinstance(reply, int) else (0, reply)
        try:
            os.writev(self.device, (REPLY.pack(REPLY.size + len(body), code, unique), body))
        except OSError as error:
            if error.errno != errno.ENOENT and error.errno not in _GONE:
                _LOG.error("the kernel refused a reply: %s", error)
                return False
        return True

    def defer(self, header: Header, work: Callable[[], Buffer | int]) -> None:
        """Have ``work`` done by a worker, and its result sent as the reply; it must not touch the union."""
        if self._workers is None:
            self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="fuse-worker")
        self._workers.submit(self._work, header, work)

    def _work(self, header: Header, work: Callable[[], Buffer | int]) -> None:
        reply: Buffer | int = -errno.EIO
        try:
            reply = work()
        except OSError as error:
            reply = -(error.errno or errno.EIO)
        except Exception:  # noqa: BLE001  as in serve
            _LOG.exception("%s of node %d failed", _name(header[1]), header[3])
        finally:
            self._answer(header[2], reply)


def _memory(before: int) -> memoryview:
    """Return memory for `MAX_WRITE` bytes from the start of a page on, and as much as is said before them.

    The kernel copies data page by page: to pages that are aligned as its own are it has half as many pieces to copy.
    """
    pages = mmap.mmap(-1, PAGE + MAX_WRITE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return memoryview(pages)[PAGE - before :]


def _name(opcode: int) -> str:
    return Opcode(opcode).name if opcode in Opcode.__members__.values() else f"operation {opcode}"
