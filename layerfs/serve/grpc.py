"""gRPC calls over `layerfs.serve.http2`: a message of a few bytes goes in, one or several come out, and a status.

Source: gRPC's "gRPC over HTTP2" (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Final
from urllib.parse import quote

from layerfs.errors import LayerfsError
from layerfs.serve import hpack
from layerfs.serve.http2 import MAX_BODY, Connection, Request

Metadata = Mapping[bytes, bytes]
"""The headers of a call."""
Method = Callable[[bytes, Metadata], Iterable[bytes]]
"""Take a message and the metadata, and return the messages of the answer; raise `LayerfsError`."""

_log = logging.getLogger(__name__)


class Status(IntEnum):
    """The status codes that a server gives (https://grpc.github.io/grpc/core/md_doc_statuscodes.html)."""

    OK = 0
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    DATA_LOSS = 15


_STATUS_200: Final = b"\x88"
"""``:status: 200``, which HPACK's own table has as number 8."""
_HEAD: Final = _STATUS_200 + hpack.encode(b"content-type", b"application/grpc")
_DONE: Final = hpack.encode(b"grpc-status", b"0")
_REFUSED: Final = hpack.encode(b":status", b"415")
_PREFIX: Final = 5
"""Bytes before each message: whether it is compressed, and its length in four bytes."""
_LONGEST_WORDS: Final = 2048
"""Characters of an error's message: a client refuses headers that are too long."""


class CallError(Exception):
    """Report a call that cannot reach its method."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


def serve(connection: Connection, request: Request, methods: Mapping[bytes, Method]) -> None:
    """Carry out one call and send its answer, whatever becomes of it."""
    if not request.headers.get(b"content-type", b"").startswith(b"application/grpc"):
        connection.answer(request.stream, _REFUSED, (), lambda: hpack.encode(b"grpc-status", b"%d" % Status.UNKNOWN))
        return
    call = _Call(request, methods.get(request.headers.get(b":path", b""), _unknown))
    connection.answer(request.stream, _HEAD, call.messages(), lambda: call.tail)


class _Call:
    """One call under way; ``tail`` is how it ended, once its messages are there."""

    def __init__(self, request: Request, method: Method) -> None:
        self._request = request
        self._method = method
        self.tail = _DONE

    def messages(self) -> Iterator[bytes]:
        """Carry it out."""
        try:
            for message in self._method(_message(self._request), self._request.headers):
                yield _framed(message)
        except CallError as error:
            self.tail = _failure(error.status, str(error))
        except LayerfsError as error:
            words = f"{error.message} ({error.hint})" if error.hint else error.message
            self.tail = _failure(Status[error.grpc_code], words)
        except Exception:  # noqa: BLE001  the edge of the service: a mistake of ours must not end it
            _log.exception("a mistake of layerfs in %r", self._request.headers.get(b":path"))
            self.tail = _failure(Status.INTERNAL, "internal error of layerfs: its log has more")


def _unknown(data: bytes, metadata: Metadata) -> Iterable[bytes]:  # noqa: ARG001  the signature of a method
    raise CallError(Status.UNIMPLEMENTED, "there is no such method")


def _message(request: Request) -> bytes:
    """Return the one message of a request."""
    compressed, length = request.body[:1], int.from_bytes(request.body[1:_PREFIX])
    if not request.whole or length > MAX_BODY:
        raise CallError(Status.RESOURCE_EXHAUSTED, f"a message may have {MAX_BODY - _PREFIX} bytes")
    if len(request.body) != _PREFIX + length:
        raise CallError(Status.INTERNAL, "the call does not hold one message")
    if compressed != b"\x00":
        raise CallError(Status.UNIMPLEMENTED, "messages are not compressed here: send them as they are")
    return request.body[_PREFIX:]


def _framed(message: bytes) -> bytes:
    return b"\x00" + len(message).to_bytes(4) + message


def _failure(status: Status, words: str) -> bytes:
    """Return the trailers of a call that failed; the words are percent-encoded, as the protocol wants them."""
    message = quote(words[:_LONGEST_WORDS], safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~").encode()
    return hpack.encode(b"grpc-status", b"%d" % status) + hpack.encode(b"grpc-message", message)
