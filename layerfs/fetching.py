"""Blobs that come from afar, several at a time, while those that came are already used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from types import TracebackType
from typing import BinaryIO, Self

from layerfs.errors import Corrupt
from layerfs.events import Listener, Progress, ignore
from layerfs.image.blobs import BlobStore
from layerfs.image.descriptor import Descriptor
from layerfs.layer.digest import Digest

_ACTION = "pull"


class Fetcher:
    """Bring blobs into a store: a context manager at whose end nothing is under way any more.

    ``opened`` gives the stream of a blob, in a thread; ``parallel`` of them are read at a time, in the order in which
    they were asked for.
    """

    def __init__(
        self, blobs: BlobStore, opened: Callable[[Digest], BinaryIO], *, parallel: int, listener: Listener = ignore
    ) -> None:
        self._blobs = blobs
        self._opened = opened
        self._listener = listener
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="layerfs-fetch")
        self._coming: dict[Digest, Future[None]] = {}
        self._stopping = Event()

    def begin(self, blobs: Iterable[Descriptor]) -> None:
        """Ask for blobs; those that are there are not brought again."""
        for blob in blobs:
            if blob.digest not in self._coming:
                self._coming[blob.digest] = self._pool.submit(self._fetch, blob)

    def open(self, digest: Digest) -> BinaryIO:
        """Open a blob once it is there, whole and verified; raise what kept it from coming."""
        self._coming[digest].result()
        return self._blobs.open(digest)

    def finish(self) -> None:
        """Wait for all of them; raise what kept one from coming."""
        for future in self._coming.values():
            future.result()

    def _fetch(self, blob: Descriptor) -> None:
        with suppress(Corrupt):
            self._put(blob)
            return
        try:
            self._put(blob)  # once more: wires, disks and proxies between flip bits now and then
        except Corrupt as error:
            raise Corrupt(error.message, hint="what sends it is broken: try again, or a mirror") from error

    def _put(self, blob: Descriptor) -> None:
        if self._blobs.has(blob):
            self._hear(Progress(_ACTION, str(blob.digest), blob.size, blob.size))
            return
        with self._opened(blob.digest) as stream:
            self._blobs.put(stream, blob, self._hear, action=_ACTION)

    def _hear(self, event: Progress) -> None:
        if self._stopping.is_set():
            raise _StoppedError
        self._listener(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._pool.shutdown(cancel_futures=True)


class _StoppedError(Exception):
    """End a thread whose blob nobody wants any more."""
