"""The frames of HTTP/2: their types, flags and layout, and the errors that a peer is told (RFC 9113)."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (section 3.4)."""

HEADER_SIZE: Final = 9
_HEADER = struct.Struct(">IBI")
"""24 bits of length and 8 of type, flags, stream (section 4.1)."""
_STREAM_MASK: Final = 0x7FFF_FFFF

MAX_FRAME: Final = 16384
"""Bytes of payload that both sides take unless they say otherwise (SETTINGS_MAX_FRAME_SIZE)."""
DEFAULT_WINDOW: Final = 65535
"""Bytes that may be sent before the receiver allows more (section 6.9.2)."""
MAX_WINDOW: Final = (1 << 31) - 1


class Type(IntEnum):
    """The type of a frame (section 6); frames of other types are ignored."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY: Final = 0x20


class Setting(IntEnum):
    """What a SETTINGS frame may set (section 6.5.2), as far as it matters here."""

    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ErrorCode(IntEnum):
    """Why a stream or a connection ends (section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ProtocolError(Exception):
    """Report that the peer broke the rules in a way that ends the connection; ``code`` tells it which."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def frame(type_: Type, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame; the payload must fit the peer's largest frame."""
    return _HEADER.pack(len(payload) << 8 | type_, flags, stream) + payload


def parse_header(data: bytes | bytearray, at: int) -> tuple[int, int, int, int]:
    """Return length, type, flags and stream of the frame header at an offset."""
    word, flags, stream = _HEADER.unpack_from(data, at)
    return word >> 8, word & 0xFF, flags, stream & _STREAM_MASK


def settings(values: dict[Setting, int]) -> bytes:
    """Return a SETTINGS frame."""
    payload = b"".join(struct.pack(">HI", key, value) for key, value in values.items())
    return frame(Type.SETTINGS, 0, 0, payload)


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Return identifiers and values of a SETTINGS frame."""
    if len(payload) % 6:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "settings that are cut off")
    return list(struct.iter_unpack(">HI", payload))


def window_update(stream: int, size: int) -> bytes:
    """Return the frame that allows the peer to send ``size`` bytes more."""
    return frame(Type.WINDOW_UPDATE, 0, stream, size.to_bytes(4))


def reset(stream: int, code: ErrorCode) -> bytes:
    """Return the frame that ends a stream at once."""
    return frame(Type.RST_STREAM, 0, stream, code.to_bytes(4))


def goaway(last: int, code: ErrorCode, words: bytes = b"") -> bytes:
    """Return the frame that announces the end of the connection; streams after ``last`` were not looked at."""
    return frame(Type.GOAWAY, 0, 0, last.to_bytes(4) + code.to_bytes(4) + words[:256])


def unpadded(type_: Type, flags: int, payload: bytes) -> bytes:
    """Take the padding of a DATA or HEADERS frame off, and the priority of the latter (sections 6.1 and 6.2)."""
    start, end = 0, len(payload)
    if flags & PADDED:
        if not payload:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "padding without its length")
        start, end = 1, end - payload[0]
    if type_ is Type.HEADERS and flags & PRIORITY:
        start += 5
    if start > end:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[start:end]
