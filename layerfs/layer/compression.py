"""Compression of layers: told apart by their first bytes, undone in bounded steps, done again with fixed bytes.

gzip (RFC 1952) is read and written by ISA-L, three times faster than zlib; zstd (RFC 8878) by zstandard.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Protocol, cast

from layerfs.errors import Corrupt, InvalidArgument, Unsupported

BLOCK = 1 << 20
"""Bytes of uncompressed data that go through the engine at a time."""
CHUNK = 1 << 20
"""Bytes of compressed data that are read at a time."""
_LEAST = 1 << 12
"""Bytes that a gzip decoder is given at least."""
_GZIP_WINDOW_BITS = 31
"""15 bits of window, plus 16 for a gzip header (zlib.h, inflateInit2)."""
_ZSTD_WINDOW = 128 << 20
"""The window that every zstd decoder should accept (RFC 8878, section 3.1.1.1.2), and the most that we spend."""

_ZSTD_JOB = 2 << 20
"""What one thread compresses at a time: 30 MB of memory instead of 100 for 0.3 % more output at level 3."""


class Compression(StrEnum):
    """How the bytes of a layer are stored."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


_FOREIGN = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"LZIP": "lzip",
    b"PK\x03\x04": "zip",
}
MAGIC_BYTES = 6
"""How many bytes of a stream `detect` wants to see."""


def detect(head: bytes) -> Compression:
    """Tell by its first `MAGIC_BYTES` bytes how a stream is stored; raise `Unsupported` for other compressions."""
    if head.startswith(b"\x1f\x8b"):
        return Compression.GZIP
    if head.startswith(b"\x28\xb5\x2f\xfd") or _is_skippable(head):
        return Compression.ZSTD
    for magic, name in _FOREIGN.items():
        if head.startswith(magic):
            raise Unsupported(f"layers compressed by {name} are not supported", hint="use gzip, zstd or none")
    return Compression.NONE


def _is_skippable(head: bytes) -> bool:
    """Tell whether a skippable frame of zstd starts here (RFC 8878, section 3.1.2)."""
    return len(head) >= 4 and head[0] & 0xF0 == 0x50 and head[1:4] == b"\x2a\x4d\x18"  # noqa: PLR2004  4-byte magic


def decompress(chunks: Iterable[bytes], compression: Compression) -> Iterator[bytes]:
    """Yield the uncompressed blocks, none larger than about a MiB, of a stream that comes in ``chunks``.

    Raise `Corrupt` for damaged, truncated or trailing bytes.
    """
    match compression:
        case Compression.GZIP:
            return _gunzip(chunks)
        case Compression.ZSTD:
            return _unzstd(chunks)
        case Compression.NONE:
            return iter(chunks)


def _gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the blocks of every member; zero bytes may pad the end, as gzip(1) allows.

    The decoder copies what it is given beyond the end of its member. Some layers have a member for each file (eStargz),
    some may have nothing but ends, so it is given about as much as the last member took.
    """
    from isal import isal_zlib  # noqa: PLC0415  a compiled module that only those who unpack need

    failure = cast("type[Exception]", isal_zlib.IsalError)  # its stub takes the class for an instance
    decoder = None
    most = CHUNK
    for chunk in chunks:
        position = 0
        while position < len(chunk):
            if decoder is None:
                position = _after_zeros(chunk, position)
                if position == len(chunk):
                    break
                decoder = isal_zlib.decompressobj(_GZIP_WINDOW_BITS)
            data = memoryview(chunk)[position : position + most]
            try:
                block = decoder.decompress(data, BLOCK)
                # A full block may have left more in the decoder than in its input.
                while len(block) == BLOCK and not decoder.eof and not decoder.unconsumed_tail:
                    yield block
                    block = decoder.decompress(b"", BLOCK)
            except failure as error:
                raise Corrupt(f"the gzip stream is damaged: {error}") from error
            if block:
                yield block
            taken = len(data) - len(decoder.unused_data if decoder.eof else decoder.unconsumed_tail)
            position += taken
            most = max(_LEAST, 2 * taken) if decoder.eof else CHUNK
            if decoder.eof:
                decoder = None
    if decoder is not None:
        raise Corrupt("the gzip stream is truncated")


def _after_zeros(data: bytes, position: int) -> int:
    """Return where the zeros end that begin at a position."""
    return position if data[position] else len(data) - len(data[position:].lstrip(b"\0"))


def _unzstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the blocks of every frame; `_ZstdSteps` bounds the output of a call and sees the end of the last frame."""
    import zstandard  # noqa: PLC0415  a compiled module that only those who unpack need

    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj(BLOCK, read_across_frames=True)
    steps = _ZstdSteps()
    for chunk in chunks:
        for step in steps.cut(chunk):
            try:
                block = decoder.decompress(step)
            except zstandard.ZstdError as error:
                raise Corrupt(f"the zstd stream is damaged: {error}") from error
            if block:
                yield block
    if not steps.complete:
        raise Corrupt("the zstd stream is truncated")


class _ZstdSteps:
    """Cut a zstd stream into pieces that hold few blocks each, by its frame and block headers (RFC 8878, section 3).

    The binding has no bound on the output of a call, and 64 KiB may hold 2 GiB of zeros. A block makes 128 KiB at most.
    """

    BLOCKS = 8

    def __init__(self) -> None:
        self._left = b""
        self._body = 0
        self._checksum = 0
        self._next: Callable[[bytes, int], int] = self._magic

    @property
    def complete(self) -> bool:
        """Tell whether the stream may end here."""
        return not self._left and not self._body and self._next == self._magic

    def cut(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the pieces of the next chunk; a header that it splits waits for the following one."""
        data = self._left + chunk
        start = position = steps = 0
        while True:
            if self._body:
                length = min(self._body, len(data) - position)
                self._body -= length
                position += length
            if steps >= self.BLOCKS:
                yield data[start:position]
                start, steps = position, 0
            length = 0 if self._body else self._next(data, position)
            if not length:
                break
            position += length
            steps += 1
        self._left = data[position:]
        if position > start:
            yield data[start:position]

    def _magic(self, data: bytes, position: int) -> int:
        """Read the magic number of a frame and its header's length; 0 where more bytes are needed."""
        head = data[position : position + 14]
        if len(head) < 5:  # noqa: PLR2004  the magic number, and the descriptor of the frame
            return 0
        if _is_skippable(head):
            if len(head) < 8:  # noqa: PLR2004  magic number and length
                return 0
            self._body = int.from_bytes(head[4:8], "little")
            return 8
        if not head.startswith(b"\x28\xb5\x2f\xfd"):
            raise Corrupt("bytes that are no zstd frame follow the zstd stream")
        descriptor = head[4]
        single = descriptor >> 5 & 1
        size = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
        length = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3] + size
        if len(data) - position < length:
            return 0
        self._checksum = 4 if descriptor & 4 else 0
        self._next = self._block
        return length

    def _block(self, data: bytes, position: int) -> int:
        """Read a block's header; 0 where more bytes are needed."""
        if len(data) - position < 3:  # noqa: PLR2004  a block's header
            return 0
        header = int.from_bytes(data[position : position + 3], "little")
        self._body = 1 if header >> 1 & 3 == 1 else header >> 3
        if header & 1:
            self._body += self._checksum
            self._next = self._magic
        return 3


class Compressor(Protocol):
    """What zlib's, ISA-L's and zstandard's objects have in common."""

    def compress(self, data: bytes | memoryview, /) -> bytes:
        """Take data and return what is ready."""
        ...

    def flush(self) -> bytes:
        """Return the rest; nothing may follow."""
        ...


class _Plain:
    """Store bytes as they are."""

    def compress(self, data: bytes | memoryview, /) -> bytes:
        return bytes(data)

    def flush(self) -> bytes:
        return b""


def compressor(compression: Compression, level: int | None = None) -> Compressor:
    """Return an object that compresses one stream, to the same bytes each time.

    ``level`` is 0 to 9 for gzip (0 to 2 by ISA-L, 2 by default; from 3 by zlib) and 1 to 22 for zstd (3 by default).
    Raise `InvalidArgument` for a level that there is not.
    """
    match compression:
        case Compression.GZIP:
            return _gzip(2 if level is None else level)
        case Compression.ZSTD:
            return _zstd(3 if level is None else level)
        case Compression.NONE:
            if level is not None:
                raise InvalidArgument(f"there is no level {level} of no compression", hint="leave the level out")
            return _Plain()


def _gzip(level: int) -> Compressor:
    """Return a gzip compressor; neither library writes the time or a name into the header."""
    if not 0 <= level <= 9:  # noqa: PLR2004  zlib's levels
        raise InvalidArgument(f"gzip has no level {level}", hint="0 to 9")
    if level <= 2:  # noqa: PLR2004  the highest level of ISA-L that is faster than zlib at the same size
        from isal import isal_zlib  # noqa: PLC0415  a compiled module that only those who pack need

        fast: Compressor = isal_zlib.compressobj(level, isal_zlib.DEFLATED, _GZIP_WINDOW_BITS)
        return fast
    import zlib  # noqa: PLC0415  beside its sibling

    return zlib.compressobj(level, zlib.DEFLATED, _GZIP_WINDOW_BITS)


def _zstd(level: int) -> Compressor:
    """Return a zstd compressor with threads: their number does not change the bytes, whether there are any does."""
    import zstandard  # noqa: PLC0415  a compiled module that only those who pack need

    if not 1 <= level <= zstandard.MAX_COMPRESSION_LEVEL:
        raise InvalidArgument(f"zstd has no level {level}", hint=f"1 to {zstandard.MAX_COMPRESSION_LEVEL}")
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, threads=max(1, min(4, os.cpu_count() or 1)), job_size=_ZSTD_JOB, write_checksum=True
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compressobj()
