"""Take a stream apart in threads: one reads and decompresses, one makes the digests, the caller has the blocks.

ISA-L, zstandard and hashlib work without the interpreter's lock, so each thread has a processor of its own. A stream
that fits into one chunk goes without threads: starting them costs more than they gain.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from layerfs.errors import os_error
from layerfs.layer import compression
from layerfs.layer.compression import CHUNK, Compression
from layerfs.layer.digest import Digest
from layerfs.layer.limits import Limits, check

_DEPTH = 8
"""Blocks that may wait between two threads; with blocks of a MiB, what bounds the memory."""

Item = TypeVar("Item")


class Readable(Protocol):
    """What the engine wants of a stream: bytes, at most ``size`` of them, and none at the end."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes."""
        ...


class _Channel(Generic[Item]):
    """A queue of at most `_DEPTH` items between two threads.

    Of C in both directions, as tokens for free places come back by a queue too: `queue.Queue`, which is Python inside
    and takes turns for the interpreter's lock with the thread that makes files, cost a tenth of the unpacking.
    """

    def __init__(self) -> None:
        self._items: SimpleQueue[Item] = SimpleQueue()
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(_DEPTH):
            self._free.put(None)

    def put(self, item: Item) -> None:
        """Hand over one item; wait while the queue is full."""
        self._free.get()
        self._items.put(item)

    def get(self) -> Item:
        """Wait for the next item."""
        item = self._items.get()
        self._free.put(None)
        return item


class Worker(Generic[Item]):
    """A thread that does ``work`` on each item it is given, in order.

    An exception in it is raised again by the next `put` or by `close`. Use it as a context manager: the thread has
    ended when the block is left, however it is left.
    """

    def __init__(self, work: Callable[[Item], None], name: str) -> None:
        self._work = work
        self._queue: _Channel[Item | None] = _Channel()
        self._error: BaseException | None = None
        self._cancelled = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._open = True
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over one item; wait while the queue is full."""
        if self._error is not None:
            self.close()
        self._queue.put(item)

    def close(self) -> None:
        """Wait until everything is done; raise what went wrong."""
        self._stop()
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """Drop what waits and end the thread; doing it twice, or after `close`, is no error."""
        self._cancelled = True
        self._stop()

    def _stop(self) -> None:
        if self._open:
            self._open = False
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None and not self._cancelled:
                try:
                    self._work(item)
                except BaseException as error:  # noqa: BLE001  it is raised again in the thread that waits for it
                    self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.cancel()


class LayerStream:
    """The uncompressed blocks of a layer, and the digests of both forms of it once the last block has gone.

    Use as a context manager and iterate; `drain` the rest before asking for the digests. ``compressed_size`` and
    ``size`` are the bytes that have come and gone so far. ``known`` is the digest of the stream as it comes, where that
    was verified before; it is then not made again.
    """

    def __init__(self, stream: Readable, limits: Limits, *, known: Digest | None = None) -> None:
        self._stream = stream
        self._limits = limits
        self._known = known
        self._compressed = hashlib.sha256()
        self._plain = hashlib.sha256()
        self._blocks: Iterator[bytes] | None = None
        self._threads: _Threads | None = None
        self._ended = False
        self.compression = Compression.NONE
        self.compressed_size = 0
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._threads is not None:
            self._threads.stop()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the blocks, once."""
        return self

    def __next__(self) -> bytes:
        if self._blocks is None:
            self._blocks = self._start()
        block = next(self._blocks, None)
        if block is None:
            self._ended = True
            raise StopIteration
        self.size += len(block)
        limits = self._limits
        if self.size > limits.stream_bytes:
            check(limits, "stream_bytes", self.size, "the size of the uncompressed layer")
        if self.size > limits.ratio_free:
            check(limits, "ratio", self.size // max(1, self.compressed_size), "the compression ratio of the layer")
        return block

    def drain(self) -> None:
        """Read to the end of the stream."""
        for _ in self:
            pass

    @property
    def digest(self) -> Digest:
        """Return the digest of the stream as it came."""
        if self._known is not None and self.compression is not Compression.NONE:
            return self._known
        return Digest(f"sha256:{self._compressed.hexdigest()}")

    @property
    def diff_id(self) -> Digest:
        """Return the digest of the uncompressed stream."""
        if self.compression is Compression.NONE:
            return self.digest
        return Digest(f"sha256:{self._plain.hexdigest()}")

    def _start(self) -> Iterator[bytes]:
        """Read the first chunk, see what it is, and decide on threads."""
        first = self._read_chunk(CHUNK)
        self.compression = compression.detect(first[: compression.MAGIC_BYTES])
        second = self._read_chunk(1) if first else b""
        if not second:
            return self._hashed(self._count(iter((first,))))
        chunks = self._count(self._chunks(first + second))
        self._threads = _Threads(chunks, self.compression, self._hash, whole=self._known is None)
        return iter(self._threads)

    def _read_chunk(self, least: int) -> bytes:
        """Read until there are ``least`` bytes; fewer are the end."""
        parts: list[bytes] = []
        length = 0
        while length < least and (part := self._read()):
            parts.append(part)
            length += len(part)
        return b"".join(parts)

    def _chunks(self, first: bytes) -> Iterator[bytes]:
        yield first
        while chunk := self._read():
            yield chunk

    def _read(self) -> bytes:
        """Read a piece; an error of the stream is none of the files being made."""
        try:
            return self._stream.read(CHUNK)
        except OSError as error:
            raise os_error("read the layer", error) from error

    def _count(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.compressed_size += len(chunk)
            yield chunk

    def _hash(self, item: tuple[bool, bytes]) -> None:
        compressed, data = item
        (self._compressed if compressed else self._plain).update(data)

    def _hashed(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Do everything in the thread of the caller."""

        def tee() -> Iterator[bytes]:
            for chunk in chunks:
                if self._known is None or self.compression is Compression.NONE:
                    self._compressed.update(chunk)
                yield chunk

        for block in compression.decompress(tee(), self.compression):
            if self.compression is not Compression.NONE:
                self._plain.update(block)
            yield block


class _Threads:
    """The two threads of a stream: the one that decompresses feeds the one that hashes, and the caller."""

    def __init__(
        self, chunks: Iterator[bytes], kind: Compression, work: Callable[[tuple[bool, bytes]], None], *, whole: bool
    ) -> None:
        self._chunks = chunks
        self._kind = kind
        self._whole = whole or kind is Compression.NONE
        self._ready: _Channel[bytes | None] = _Channel()
        self._stopping = self._ended = False
        self._error: BaseException | None = None
        self._hasher = Worker(work, "layerfs-digest")
        self._thread = threading.Thread(target=self._run, name="layerfs-decompress", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._hasher.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        """Yield the blocks; at their end both threads are gone and the digests are whole."""
        while (block := self._ready.get()) is not None:
            yield block
        self._ended = True
        self._thread.join()
        self._hasher.close()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End both threads, whatever they have left; a read that is under way ends first."""
        self._stopping = True
        while not self._ended:
            self._ended = self._ready.get() is None
        self._thread.join()
        self._hasher.cancel()

    def _run(self) -> None:
        """Put every block, and a None at the end, come what may."""
        try:
            for block in compression.decompress(self._hashed_chunks(), self._kind):
                if self._stopping:
                    return
                if self._kind is not Compression.NONE:
                    self._hasher.put((False, block))
                self._ready.put(block)
        except BaseException as error:  # noqa: BLE001  it is raised again in the thread that waits for it
            self._error = error
        finally:
            self._ready.put(None)

    def _hashed_chunks(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            if self._whole:
                self._hasher.put((True, chunk))
            yield chunk
