"""Put a stream together in threads: the caller gives bytes, one thread hashes them, another compresses and writes."""

from __future__ import annotations

import hashlib
from typing import Protocol, Self

from layerfs.layer import tar
from layerfs.layer.compression import BLOCK, Compression, compressor
from layerfs.layer.digest import Digest
from layerfs.layer.pipeline import Worker


class Writable(Protocol):
    """What the engine wants of a destination."""

    def write(self, data: bytes, /) -> object:
        """Take all of the bytes."""
        ...


class LayerOutput:
    """Compress and digest a layer while it is made; use as a context manager, and call `finish` at its end.

    Bytes go on in blocks of exactly `BLOCK` bytes, so what comes out does not depend on how they came in. A layer of
    one block is made without threads.
    """

    def __init__(self, out: Writable, compression: Compression, level: int | None) -> None:
        self._out = out
        self._compression = compression
        self._compressor = compressor(compression, level)
        self._plain = hashlib.sha256()
        self._compressed = hashlib.sha256()
        self._parts: list[bytes] = []
        self._waiting = 0
        self._hasher: Worker[bytes | memoryview] | None = None
        self._packer: Worker[bytes | memoryview] | None = None
        self.diff_size = 0
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        for worker in (self._hasher, self._packer):
            if worker is not None:
                worker.cancel()

    def write(self, data: bytes) -> None:
        """Add bytes to the tar."""
        self._parts.append(data)
        self._waiting += len(data)
        if self._waiting >= BLOCK:
            self._pass_on()

    def finish(self) -> None:
        """End the archive and wait until everything is written."""
        self.write(tar.END_OF_ARCHIVE)
        rest = b"".join(self._parts)
        self._parts.clear()
        if self._hasher is None or self._packer is None:
            self._hash(rest)
            self._pack(rest)
        else:
            self._hasher.put(rest)
            self._packer.put(rest)
            self._hasher.close()
            self._packer.close()
        self._store(self._compressor.flush())

    @property
    def diff_id(self) -> Digest:
        """Return the digest of the tar."""
        return Digest(f"sha256:{self._plain.hexdigest()}")

    @property
    def digest(self) -> Digest:
        """Return the digest of what was written."""
        if self._compression is Compression.NONE:
            return self.diff_id
        return Digest(f"sha256:{self._compressed.hexdigest()}")

    def _pass_on(self) -> None:
        """Give whole blocks to the threads."""
        if self._hasher is None or self._packer is None:
            self._hasher = Worker(self._hash, "layerfs-digest")
            self._packer = Worker(self._pack, "layerfs-compress")
        data = memoryview(b"".join(self._parts))
        end = len(data) - len(data) % BLOCK
        for start in range(0, end, BLOCK):
            block = data[start : start + BLOCK]
            self._hasher.put(block)
            self._packer.put(block)
        self._parts = [bytes(data[end:])]
        self._waiting = len(data) - end

    def _hash(self, block: bytes | memoryview) -> None:
        self.diff_size += len(block)
        self._plain.update(block)

    def _pack(self, block: bytes | memoryview) -> None:
        self._store(self._compressor.compress(block))

    def _store(self, data: bytes) -> None:
        if data:
            self.size += len(data)
            if self._compression is not Compression.NONE:
                self._compressed.update(data)
            self._out.write(data)
