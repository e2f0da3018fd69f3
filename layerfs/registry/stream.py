"""The bytes of a blob as they come from a registry, over as many connections as it takes."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Final

from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from layerfs.errors import OperationFailed
from layerfs.image.descriptor import Descriptor
from layerfs.registry.transport import Transport

Ask = Callable[[int], AbstractContextManager[tuple[BaseHTTPResponse, int]]]
"""Give the answer that holds a blob from a byte on, and the byte at which it really starts."""

_PROGRESS: Final = 1 << 20
"""Bytes after which a connection that breaks counts as the first that does."""
_PIECE: Final = 1 << 20


class BlobStream(io.RawIOBase):
    """A blob, read from its start to its end; a connection that breaks or ends early is made again where it ended.

    ``where`` is how errors name what it comes from. Nothing is verified here: who reads checks size and digest.
    """

    def __init__(self, ask: Ask, transport: Transport, descriptor: Descriptor, where: str) -> None:
        super().__init__()
        self._ask = ask
        self._transport = transport
        self._descriptor = descriptor
        self._where = where
        self._answer = ExitStack()
        self._response: BaseHTTPResponse | None = None
        self._done = 0
        self._broken = 0
        self._counted = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # every buffer that is written to
        """Fill as much of the buffer as one read brings; 0 is the end."""
        view = memoryview(buffer)
        while True:
            try:
                data = self._opened().read(min(len(view), _PIECE))
            except (HTTPError, OSError, EOFError) as error:
                self._break(error)
                continue
            if data or self._done >= self._descriptor.size:
                self._done += len(data)
                view[: len(data)] = data
                return len(data)
            self._break(EOFError(f"it ended after {self._done} of {self._descriptor.size} bytes"))

    def close(self) -> None:
        """Close the connection."""
        self._answer.close()
        super().close()

    def _opened(self) -> BaseHTTPResponse:
        if self._response is None:
            response, start = self._answer.enter_context(self._ask(self._done))
            self._skip(response, self._done - start)
            self._response = response
        return self._response

    def _skip(self, response: BaseHTTPResponse, count: int) -> None:
        """Pass over what came before: a registry need not know of ranges (distribution-spec, "Pulling blobs")."""
        if count < 0:
            raise OperationFailed(f"{self._where} goes on with {self._descriptor.digest} at another byte than asked")
        while count > 0:
            data = response.read(min(count, _PIECE))
            if not data:
                raise EOFError("it ended before the byte where the last one did")
            count -= len(data)

    def _break(self, error: Exception) -> None:
        """Make ready for another connection; raise `OperationFailed` after too many that brought next to nothing."""
        self._answer.close()
        self._response = None
        if self._done - self._counted >= _PROGRESS:
            self._broken = 0
        self._counted = self._done
        self._broken += 1
        if self._broken >= self._transport.tries:
            raise OperationFailed(
                f"{self._descriptor.digest} does not come through from {self._where}: {error}",
                hint="try again later",
            ) from error
        self._transport.pause(self._broken)
