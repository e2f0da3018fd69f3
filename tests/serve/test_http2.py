"""A connection as a client sees it that says what it likes, byte for byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from layerfs.serve import frames, grpc, hpack
from layerfs.serve.frames import ErrorCode, Setting, Type
from layerfs.serve.http2 import MAX_BODY, Connection

HEAD = b"".join(
    hpack.encode(name, value)
    for name, value in ((b":method", b"POST"), (b":path", b"/echo"), (b"content-type", b"application/grpc"))
)
BIG = 300_000
OPENING = frames.PREFACE + frames.settings({})


class Client:
    """The other end of a connection, and the threads that serve ours."""

    def __init__(self, threads: int = 2) -> None:
        self.socket, ours = socket.socketpair()
        self.socket.settimeout(30)
        self.connection = Connection(ours)
        self.calls: list[bytes] = []
        self.hold = threading.Event()
        self.hold.set()
        self._threads = [threading.Thread(target=self._serve) for _ in range(threads)]
        for thread in self._threads:
            thread.start()
        self._buffer = b""

    def _serve(self) -> None:
        while request := self.connection.next_request():
            grpc.serve(self.connection, request, {b"/echo": self._echo, b"/big": lambda *_: (b"x" * BIG,)})

    def _echo(self, data: bytes, metadata: grpc.Metadata) -> tuple[bytes, ...]:  # noqa: ARG002  a method's signature
        self.calls.append(data)
        self.hold.wait(30)
        return (data,)

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def frame(self) -> tuple[int, int, int, bytes] | None:
        """Return type, flags, stream and payload of the next frame, or None at the end."""
        while len(self._buffer) < frames.HEADER_SIZE or len(self._buffer) < self._size():
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._buffer += data
        _, type_, flags, stream = frames.parse_header(self._buffer, 0)
        size = self._size()
        payload, self._buffer = self._buffer[frames.HEADER_SIZE : size], self._buffer[size:]
        return type_, flags, stream, payload

    def _size(self) -> int:
        return frames.parse_header(self._buffer, 0)[0] + frames.HEADER_SIZE

    def until(self, wanted: Type) -> tuple[int, int, int, bytes]:
        """Return the next frame of a type."""
        while found := self.frame():
            if found[0] == wanted:
                return found
        raise AssertionError(f"no {wanted.name} came")

    def answer(self) -> tuple[bytes, int]:
        """Return the data of the next answer, and its gRPC status."""
        data = b""
        while found := self.frame():
            type_, flags, _, payload = found
            if type_ == Type.DATA:
                data += payload
            if type_ == Type.HEADERS and flags & frames.END_STREAM:
                fields = dict(hpack.Decoder().decode(payload, 1 << 16))
                return data[5:], int(fields[b"grpc-status"])
        raise AssertionError("no answer came")

    def join(self) -> None:
        """Wait for the end of the threads that serve."""
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def close(self) -> None:
        self.hold.set()
        self.socket.close()
        self.join()
        self.connection.close()


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.close()


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4) + data


def call(stream: int, data: bytes, head: bytes = HEAD) -> bytes:
    body = message(data)
    return frames.frame(Type.HEADERS, frames.END_HEADERS, stream, head) + frames.frame(
        Type.DATA, frames.END_STREAM, stream, body
    )


def test_a_request_comes_in_any_pieces(client: Client) -> None:
    for byte in OPENING + call(1, b"hello"):
        client.send(bytes((byte,)))
    assert client.answer() == (b"hello", 0)


def test_headers_may_be_continued_padded_and_ranked(client: Client) -> None:
    block = b"\x03" + b"\0" * 5 + HEAD[:20] + b"\0" * 3
    client.send(OPENING, frames.frame(Type.HEADERS, frames.PADDED | frames.PRIORITY, 1, block))
    client.send(frames.frame(Type.CONTINUATION, frames.END_HEADERS, 1, HEAD[20:]))
    data = b"\x02" + message(b"padded") + b"\0" * 2
    client.send(frames.frame(Type.DATA, frames.PADDED | frames.END_STREAM, 1, data))
    assert client.answer() == (b"padded", 0)


def test_pings_settings_and_unknown_frames_are_taken(client: Client) -> None:
    client.send(OPENING, frames.frame(Type.PING, 0, 0, b"12345678"), b"\0\0\x01\xee\0\0\0\0\x09z", call(1, b"x"))
    assert client.until(Type.PING) == (Type.PING, frames.ACK, 0, b"12345678")
    assert client.answer() == (b"x", 0)


def test_a_call_that_takes_long_holds_up_nobody(client: Client) -> None:
    client.hold.clear()
    client.send(OPENING, call(1, b"slow"))
    while not client.calls:
        pass
    client.send(frames.frame(Type.PING, 0, 0, b"12345678"))
    assert client.until(Type.PING)[1] == frames.ACK
    client.hold.set()
    assert client.answer() == (b"slow", 0)


def test_a_large_answer_waits_for_the_client_s_windows(client: Client) -> None:
    client.send(frames.PREFACE, frames.settings({Setting.INITIAL_WINDOW_SIZE: 1000}))
    client.send(call(1, b"", HEAD.replace(b"\x05/echo", b"\x04/big")))
    _, _, _, first = client.until(Type.DATA)
    assert len(first) == 1000
    client.send(frames.window_update(0, BIG), frames.settings({Setting.INITIAL_WINDOW_SIZE: 2000}))
    assert len(client.until(Type.DATA)[3]) == 1000
    client.send(frames.window_update(1, BIG))
    data, status = client.answer()
    assert (len(data) + 5 + 2000, status) == (BIG + 5, 0)


def test_a_cancelled_answer_is_dropped(client: Client) -> None:
    client.send(OPENING, call(1, b"", HEAD.replace(b"\x05/echo", b"\x04/big")))
    client.until(Type.DATA)
    client.send(frames.reset(1, ErrorCode.NO_ERROR), frames.window_update(0, BIG), call(3, b"next"))
    assert client.answer()[1] == 0
    assert client.calls == [b"next"]


def test_a_request_that_is_too_large_is_refused_and_the_next_one_served(client: Client) -> None:
    client.send(OPENING, frames.frame(Type.HEADERS, frames.END_HEADERS, 1, HEAD))
    part = frames.frame(Type.DATA, 0, 1, b"\0" * frames.MAX_FRAME)
    for _ in range(MAX_BODY // frames.MAX_FRAME + 1):
        client.send(part)
    assert client.answer()[1] == grpc.Status.RESOURCE_EXHAUSTED
    assert client.until(Type.RST_STREAM)[2] == 1
    client.send(part, call(3, b"small"))
    assert client.answer() == (b"small", 0)


def test_far_more_data_than_one_window_comes_through_in_time(client: Client) -> None:
    client.send(OPENING)
    big = b"y" * (frames.MAX_FRAME - 5)
    for number in range(3000):  # 48 MiB, three times what the connection holds
        client.send(call(2 * number + 1, big))
        assert client.answer() == (big, 0)
        client.send(frames.window_update(0, frames.MAX_FRAME))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", grpc.Status.INTERNAL),
        (message(b"a") + message(b"b"), grpc.Status.INTERNAL),
        (b"\x01" + message(b"zip")[1:], grpc.Status.UNIMPLEMENTED),
        (b"\0\xff\xff\xff\xff", grpc.Status.RESOURCE_EXHAUSTED),
    ],
)
def test_bodies_that_are_no_message_are_refused(client: Client, body: bytes, status: int) -> None:
    client.send(OPENING, frames.frame(Type.HEADERS, frames.END_HEADERS, 1, HEAD))
    client.send(frames.frame(Type.DATA, frames.END_STREAM, 1, body))
    assert client.answer() == (b"", status)
    assert client.calls == []


def test_unknown_methods_are_unimplemented(client: Client) -> None:
    client.send(OPENING, call(1, b"", HEAD.replace(b"/echo", b"/none")))
    assert client.answer() == (b"", grpc.Status.UNIMPLEMENTED)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", ErrorCode.PROTOCOL_ERROR),
        (frames.PREFACE + b"\xff\xff\xff\x00\0\0\0\0\x01", ErrorCode.FRAME_SIZE_ERROR),
        (OPENING + frames.frame(Type.DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (OPENING + frames.frame(Type.HEADERS, frames.END_HEADERS, 2, HEAD), ErrorCode.PROTOCOL_ERROR),
        (OPENING + frames.frame(Type.HEADERS, frames.END_HEADERS, 1, b"\x80"), ErrorCode.COMPRESSION_ERROR),
        (OPENING + frames.frame(Type.HEADERS, 0, 1, HEAD) + call(3, b""), ErrorCode.PROTOCOL_ERROR),
        (OPENING + frames.frame(Type.CONTINUATION, 4, 1, HEAD), ErrorCode.PROTOCOL_ERROR),
        (OPENING + frames.frame(Type.HEADERS, frames.PADDED, 1, b"\x09abc"), ErrorCode.PROTOCOL_ERROR),
        (OPENING + frames.frame(Type.PUSH_PROMISE, 0, 1, b"\0" * 4), ErrorCode.PROTOCOL_ERROR),
        (OPENING + frames.frame(Type.PING, 0, 0, b"1"), ErrorCode.FRAME_SIZE_ERROR),
        (OPENING + frames.frame(Type.SETTINGS, 0, 0, b"1"), ErrorCode.FRAME_SIZE_ERROR),
        (OPENING + frames.frame(Type.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (OPENING + frames.settings({Setting.INITIAL_WINDOW_SIZE: 1 << 31}), ErrorCode.FLOW_CONTROL_ERROR),
        (OPENING + frames.settings({Setting.MAX_FRAME_SIZE: 1}), ErrorCode.PROTOCOL_ERROR),
        (OPENING + frames.window_update(0, frames.MAX_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
        (OPENING + frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
        (
            OPENING + frames.frame(Type.HEADERS, 0, 1) + frames.frame(Type.CONTINUATION, 0, 1, b"\0" * 16000) * 5,
            ErrorCode.ENHANCE_YOUR_CALM,
        ),
    ],
)
def test_a_client_that_breaks_the_rules_is_told_and_left(client: Client, data: bytes, code: ErrorCode) -> None:
    client.send(data)
    _, _, _, payload = client.until(Type.GOAWAY)
    assert int.from_bytes(payload[4:8]) == code
    client.socket.shutdown(socket.SHUT_WR)
    assert client.calls == []


def test_a_client_that_ignores_the_window_is_left(client: Client) -> None:
    client.send(OPENING)
    part = frames.MAX_FRAME
    try:
        for stream in range(1, 13, 2):  # each a little less than a whole request, 24 MiB together
            client.send(frames.frame(Type.HEADERS, frames.END_HEADERS, stream, HEAD))
            for _ in range(MAX_BODY // part - 1):
                client.send(frames.frame(Type.DATA, 0, stream, b"\0" * part))
    except (BrokenPipeError, ConnectionResetError):
        return
    assert int.from_bytes(client.until(Type.GOAWAY)[3][4:8]) == ErrorCode.FLOW_CONTROL_ERROR


def test_the_end_comes_when_calls_under_way_are_answered(client: Client) -> None:
    client.hold.clear()
    client.send(OPENING, call(1, b"last"))
    while not client.calls:
        pass
    client.connection.end_soon()
    assert int.from_bytes(client.until(Type.GOAWAY)[3][:4]) == 1
    client.send(call(3, b"too late"))
    client.hold.set()
    assert client.answer() == (b"last", 0)
    client.join()
    assert client.calls == [b"last"]
