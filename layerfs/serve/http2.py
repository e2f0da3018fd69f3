"""One HTTP/2 connection, seen from the server: requests come out whole, answers go in (RFC 9113; "section" is of it).

Any number of threads serve a connection, and one of them reads. When it has a whole request it carries that out by
itself and then reads on: requests that come one by one are served without a switch of threads, which would cost more
than all else here. Meanwhile another thread, the *watcher*, looks every `_MOMENT` whether the reading has been left for
that long, and takes it over; so a request that takes long holds up nobody. After `_QUIET` looks at nothing it sleeps.

A client is bounded in what it makes us hold: `MAX_BODY` a request, `_HELD` all together, `_STREAMS` at a time.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from layerfs.serve import frames
from layerfs.serve.frames import DEFAULT_WINDOW, MAX_FRAME, ErrorCode, ProtocolError, Setting, Type
from layerfs.serve.hpack import Decoder

MAX_BODY: Final = 4 << 20
"""Bytes of one request."""
_HELD: Final = 16 << 20
"""Bytes of all requests that have begun and are not whole yet, which is the window that we give the connection."""
_STREAMS: Final = 256
"""Requests that may be under way at a time (SETTINGS_MAX_CONCURRENT_STREAMS)."""
_HEADERS: Final = 64 << 10
"""Bytes of headers of one request, compressed as well as not."""
_BLOCK: Final = 64 << 10
"""Bytes to read at a time."""
_MOMENT: Final = 0.002
"""Seconds for which the reading may be left."""
_QUIET: Final = 50
"""Looks of the watcher without a request in between, after which it sleeps until the next one."""
_PATIENCE: Final = 60
"""Seconds that a client may take nothing of what is sent to it."""

_GREETING: Final = frames.settings(
    {
        Setting.MAX_CONCURRENT_STREAMS: _STREAMS,
        Setting.INITIAL_WINDOW_SIZE: MAX_BODY,
        Setting.MAX_HEADER_LIST_SIZE: _HEADERS,
    }
) + frames.window_update(0, _HELD - DEFAULT_WINDOW)


@dataclass(frozen=True, slots=True)
class Request:
    """A request: its stream, its headers (of several with one name the last) and its body.

    ``whole`` is False for a body that is cut off because it is longer than `MAX_BODY`.
    """

    stream: int
    headers: Mapping[bytes, bytes]
    body: bytes
    whole: bool = True


@dataclass(slots=True)
class _Stream:
    """A stream that the client has opened and that was not answered to the end; ``window`` is what we may send."""

    headers: Mapping[bytes, bytes]
    window: int
    body: bytearray = field(default_factory=bytearray)
    held: int = 0
    """Bytes of the connection's window that it takes, padding included."""
    taken: bool = False
    """Whether the request was handed out, so that what else comes is not wanted."""
    whole: bool = False
    """Whether the client has sent all of it."""


class Connection:
    """Serve one client; `next_request` and `answer` may be called by any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        # Guards all that follows, except what only the reading thread touches.
        self._state = threading.Condition(threading.Lock())
        self._ready: deque[Request] = deque()
        self._streams: dict[int, _Stream] = {}
        self._window = DEFAULT_WINDOW
        self._first_window = DEFAULT_WINDOW
        self._largest_frame = MAX_FRAME
        self._reading = False
        self._left = 0.0
        self._watching = False
        self._quiet = 0
        self._idle = 0
        self._senders = 0
        self._ending = False
        self._ended = False
        # Of the reading thread.
        self._input = b""
        self._greeted = False
        self._decoder = Decoder()
        self._last = 0
        self._open_block: tuple[int, int, bytes] | None = None
        self._held = 0
        self._released = 0
        seconds = struct.pack("ll", _PATIENCE, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)

    @property
    def short_of_threads(self) -> bool:
        """Tell whether nobody waits for the next request."""
        return self._idle == 0 and not self._ended

    def next_request(self) -> Request | None:
        """Wait for a request and return it, or None when the connection has ended or should."""
        with self._state:
            self._idle += 1
            try:
                request = self._await_request()
            finally:
                self._idle -= 1
            if request is None or self._senders:
                self._state.notify_all()
            elif self._ready or not self._watching:
                self._state.notify()  # to take the next request, or to watch
            return request

    def _await_request(self) -> Request | None:
        fresh = True
        while not self._ended:
            if self._ready:
                request = self._ready.popleft()
                if request.stream in self._streams:  # else it was cancelled meanwhile
                    self._left, self._quiet = time.monotonic(), 0
                    return request
            elif not self._reading and (fresh or time.monotonic() >= self._left + _MOMENT):
                self._read_unlocked()
            else:
                self._wait()
                fresh = False
        return None

    def _wait(self) -> None:
        """Wait for news, as the watcher if there is none and something to watch."""
        if self._watching or self._quiet >= _QUIET:
            self._state.wait()
            return
        self._watching = True
        try:
            self._state.wait(_MOMENT)
        finally:
            self._watching = False
            self._quiet += 1

    def answer(self, stream: int, head: bytes, body: Iterable[bytes], tail: Callable[[], bytes]) -> None:
        """Send an answer: a header block, the parts of a body, and a block of trailers; then the stream is over.

        Parts are sent as they come, and the trailers are asked for when all are sent. Return silently where the client
        is gone or has cancelled the request.
        """
        try:
            self._answer(stream, head, iter(body), tail)
        finally:
            with self._state:
                found = self._streams.pop(stream, None)
                if self._ending and not self._streams:
                    self._stop_reading()
        if found is not None and not found.whole:
            # The client is still sending what nobody reads (section 8.1).
            self._send(frames.reset(stream, ErrorCode.NO_ERROR))

    def _answer(self, stream: int, head: bytes, body: Iterator[bytes], tail: Callable[[], bytes]) -> None:
        first = next(body, b"")
        second = next(body, None)
        opening = frames.frame(Type.HEADERS, frames.END_HEADERS, stream, head)
        if second is None and self._take_from_window(stream, len(first)):
            data = frames.frame(Type.DATA, 0, stream, first) if first else b""
            self._send(opening + data + _trailers(stream, tail()))
            return
        if stream not in self._streams:
            return
        self._send(opening)
        parts = chain((first,) if second is None else (first, second), body)
        if all(self._send_body(stream, part) for part in parts):
            self._send(_trailers(stream, tail()))

    def _take_from_window(self, stream: int, size: int) -> bool:
        """Tell whether so much may be sent at once, and count it."""
        with self._state:
            found = self._streams.get(stream)
            if found is None or size > min(self._window, found.window, self._largest_frame):
                return False
            self._window -= size
            return True

    def _send_body(self, stream: int, data: bytes) -> bool:
        """Send a part of a body as the client's windows allow; return False where the request is cancelled."""
        rest = memoryview(data)
        while rest:
            size = self._await_window(stream, len(rest))
            if not size:
                return False
            self._send(frames.frame(Type.DATA, 0, stream, bytes(rest[:size])))
            rest = rest[size:]
        return True

    def _await_window(self, stream: int, wanted: int) -> int:
        """Wait until something may be sent, and return how many bytes; 0 if nothing will be."""
        with self._state:
            self._senders += 1
            try:
                while not self._ended and (found := self._streams.get(stream)) is not None:
                    size = min(wanted, self._window, found.window, self._largest_frame)
                    if size > 0:
                        self._window -= size
                        found.window -= size
                        return size
                    if self._reading:
                        self._state.wait()
                    else:
                        self._read_unlocked()
            finally:
                self._senders -= 1
        return 0

    def end_soon(self) -> None:
        """Take no further requests, and end when those that were taken are answered."""
        with self._state:
            if self._ending or self._ended:
                return
            self._ending = True
            last = self._last
        self._send(frames.goaway(last, ErrorCode.NO_ERROR))
        with self._state:
            if not self._streams:
                self._stop_reading()

    def cut(self) -> None:
        """End at once: requests that were taken are carried out, but their answers go nowhere."""
        self._ended = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # not connected any more

    def close(self) -> None:
        """Close the socket, once no thread uses the connection."""
        self._socket.close()

    # -- reading, by one thread at a time ------------------------------------------------------------------------------

    def _read_unlocked(self) -> None:
        """Read what there is; called with the state held, which is let go meanwhile."""
        self._reading = True
        self._state.release()
        ended = True
        try:
            ended = not self._read()
        finally:
            self._state.acquire()
            self._reading = False
            self._ended = self._ended or ended
            if self._senders or self._ended:
                self._state.notify_all()

    def _read(self) -> bool:
        """Read once and take in what came; return False at the end of the connection."""
        try:
            data = self._socket.recv(_BLOCK)
            if not data:
                return False
            self._take_input(self._input + data if self._input else data)
        except ProtocolError as error:
            self._send(frames.goaway(self._last, error.code, str(error).encode()))
            self.cut()
            return False
        except OSError:
            return False
        return True

    def _take_input(self, data: bytes) -> None:
        at = 0 if self._greeted else self._greet(data)
        while self._greeted and len(data) - at >= frames.HEADER_SIZE:
            length, type_, flags, stream = frames.parse_header(data, at)
            if length > MAX_FRAME:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            end = at + frames.HEADER_SIZE + length
            if len(data) < end:
                break
            self._take(type_, flags, stream, data[at + frames.HEADER_SIZE : end])
            at = end
        self._input = data[at:]

    def _greet(self, data: bytes) -> int:
        """Return where the first frame begins, after the preface; 0 while that is not whole."""
        if not frames.PREFACE.startswith(data[: len(frames.PREFACE)]):
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "this is no HTTP/2")
        if len(data) < len(frames.PREFACE):
            return 0
        self._greeted = True
        self._send(_GREETING)
        return len(frames.PREFACE)

    def _take(self, type_: int, flags: int, stream: int, payload: bytes) -> None:
        if self._open_block is not None and type_ != Type.CONTINUATION:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a header block that is not continued")
        match type_:
            case Type.HEADERS:
                self._take_block(stream, flags, frames.unpadded(Type.HEADERS, flags, payload))
            case Type.CONTINUATION:
                self._continue_block(stream, flags, payload)
            case Type.DATA:
                self._take_data(stream, flags, payload)
            case Type.WINDOW_UPDATE:
                self._take_window(stream, payload)
            case Type.SETTINGS:
                self._take_settings(stream, flags, payload)
            case Type.PING:
                self._take_ping(flags, payload)
            case Type.RST_STREAM:
                self._cancel(stream)
            case Type.PUSH_PROMISE:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a push from a client")
            case _:
                return  # what else there is, and what later versions add, asks for nothing (section 5.5)

    def _take_ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:  # noqa: PLR2004  section 6.7
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "a ping of another size than eight bytes")
        if not flags & frames.ACK:
            self._send(frames.frame(Type.PING, frames.ACK, 0, payload))

    def _take_block(self, stream: int, flags: int, block: bytes) -> None:
        if not stream % 2:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"headers of stream {stream}")
        if not flags & frames.END_HEADERS:
            self._open_block = (stream, flags, block)
            return
        # Every block changes the table of headers, also one that nobody wants.
        headers = dict(self._decoder.decode(block, _HEADERS))
        if stream > self._last:
            self._open(stream, headers)
        if flags & frames.END_STREAM:
            self._finish(stream)

    def _continue_block(self, stream: int, flags: int, payload: bytes) -> None:
        if self._open_block is None or self._open_block[0] != stream:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a continuation of nothing")
        _, first_flags, block = self._open_block
        block += payload
        if len(block) > _HEADERS:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too many headers")
        self._open_block = (stream, first_flags, block)
        if flags & frames.END_HEADERS:
            self._open_block = None
            self._take_block(stream, first_flags | frames.END_HEADERS, block)

    def _open(self, stream: int, headers: Mapping[bytes, bytes]) -> None:
        with self._state:
            if self._ending:
                return  # after the last stream that GOAWAY named: the client asks somebody else
            self._last = stream
            crowded = len(self._streams) >= _STREAMS
            if not crowded:
                self._streams[stream] = _Stream(headers, self._first_window)
        if crowded:
            self._send(frames.reset(stream, ErrorCode.REFUSED_STREAM))

    def _take_data(self, stream: int, flags: int, payload: bytes) -> None:
        if stream == 0 or stream > self._last:
            if not self._ending:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"data of stream {stream}, which was not opened")
            return
        self._held += len(payload)
        if self._held > _HELD:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "more data than the window allows")
        found = self._streams.get(stream)
        if found is None or found.taken:
            self._let_go(len(payload))
        else:
            found.held += len(payload)
            found.body += frames.unpadded(Type.DATA, flags, payload)
            if len(found.body) > MAX_BODY:
                self._hand_out(stream, found, whole=False)
        if flags & frames.END_STREAM:
            self._finish(stream)

    def _finish(self, stream: int) -> None:
        found = self._streams.get(stream)
        if found is None:
            return
        found.whole = True
        if not found.taken:
            self._hand_out(stream, found, whole=True)

    def _hand_out(self, stream: int, found: _Stream, *, whole: bool) -> None:
        found.taken = True
        self._ready.append(Request(stream, found.headers, bytes(found.body), whole))
        found.body = bytearray()
        self._let_go(found.held)
        found.held = 0

    def _let_go(self, size: int) -> None:
        """Count bytes that are not held any more, and allow the client as many when they are worth a frame."""
        self._released += size
        if self._released >= _HELD // 4:
            self._send(frames.window_update(0, self._released))
            self._held -= self._released
            self._released = 0

    def _take_window(self, stream: int, payload: bytes) -> None:
        size = int.from_bytes(payload) & frames.MAX_WINDOW
        if len(payload) != 4 or not size:  # noqa: PLR2004  section 6.9
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a wrong window update")
        with self._state:
            if stream == 0:
                self._window += size
            elif found := self._streams.get(stream):
                found.window += size
            largest = self._window if stream == 0 else getattr(self._streams.get(stream), "window", 0)
        if largest > frames.MAX_WINDOW:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "a window of more than two gibibytes")

    def _take_settings(self, stream: int, flags: int, payload: bytes) -> None:
        if stream:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "settings of a stream")
        if flags & frames.ACK:
            return
        with self._state:
            for key, value in frames.parse_settings(payload):
                self._set(key, value)
        self._send(frames.frame(Type.SETTINGS, frames.ACK, 0))

    def _set(self, key: int, value: int) -> None:
        if key == Setting.INITIAL_WINDOW_SIZE:
            if value > frames.MAX_WINDOW:
                raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, f"a first window of {value} bytes")
            for found in self._streams.values():
                found.window += value - self._first_window
            self._first_window = value
        elif key == Setting.MAX_FRAME_SIZE:
            if not MAX_FRAME <= value < 1 << 24:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"frames of {value} bytes")
            self._largest_frame = min(value, _BLOCK)

    def _cancel(self, stream: int) -> None:
        """Forget a stream; a request that was handed out is carried out, but its answer goes nowhere."""
        with self._state:
            found = self._streams.pop(stream, None)
        if found is not None:
            self._let_go(found.held)

    # -- the socket ----------------------------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        """Send frames; a client that is gone is noticed by who reads."""
        with self._sending:
            try:
                self._socket.sendall(data)
            except OSError:
                self._end()

    def _end(self) -> None:
        self._ended = True
        self._stop_reading()

    def _stop_reading(self) -> None:
        """Wake the thread that reads: it finds the end."""
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError:
            return  # not connected any more


def _trailers(stream: int, block: bytes) -> bytes:
    return frames.frame(Type.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream, block)
