"""HPACK, the compression of HTTP/2's headers, as a server needs it (RFC 7541; "section" means one of it).

The decoder takes all that the RFC has; the encoder writes each field as it is, without a table, so that answers can be
made in any order and by any thread.
"""

from __future__ import annotations

from collections import deque
from functools import cache
from typing import Final

from layerfs.serve.frames import ErrorCode, ProtocolError

Field = tuple[bytes, bytes]
"""A header's name, in lower case, and its value."""

_TABLE_SIZE: Final = 4096
"""Bytes that the dynamic table may take (SETTINGS_HEADER_TABLE_SIZE, which we leave at its default)."""
_ENTRY_OVERHEAD: Final = 32
"""What an entry counts beside its bytes (section 4.1)."""
_LARGEST: Final = 1 << 28
"""Integers beyond this have no meaning in a header block of ours."""

_APPENDIX_A: Final = (
    ":authority|:method GET|:method POST|:path /|:path /index.html|:scheme http|:scheme https|:status 200|"
    ":status 204|:status 206|:status 304|:status 400|:status 404|:status 500|accept-charset|"
    "accept-encoding gzip, deflate|accept-language|accept-ranges|accept|access-control-allow-origin|age|allow|"
    "authorization|cache-control|content-disposition|content-encoding|content-language|content-length|"
    "content-location|content-range|content-type|cookie|date|etag|expect|expires|from|host|if-match|"
    "if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|link|location|max-forwards|"
    "proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after|server|set-cookie|"
    "strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate"
)
_STATIC: Final[tuple[Field, ...]] = tuple(
    (name.encode(), value.encode()) for name, _, value in (entry.partition(" ") for entry in _APPENDIX_A.split("|"))
)
"""Appendix A, from index 1 on."""

_LENGTHS: Final = (
    "13 23 28 28 28 28 28 28 28 24 30 28 28 30 28 28 28 28 28 "
    "28 28 28 30 28 28 28 28 28 28 28 28 28 6 10 10 12 13 6 "
    "8 11 10 10 8 11 8 6 6 6 5 5 5 6 6 6 6 6 6 "
    "6 7 8 15 6 12 10 13 6 7 7 7 7 7 7 7 7 7 7 "
    "7 7 7 7 7 7 7 7 7 7 7 7 8 7 8 13 19 13 14 "
    "6 15 5 6 5 6 5 6 6 6 5 7 7 6 6 6 5 6 7 "
    "6 5 5 6 7 7 7 7 7 15 11 14 13 28 20 22 20 20 22 "
    "22 22 23 22 23 23 23 23 23 24 23 24 24 22 23 24 23 23 23 "
    "23 21 22 23 22 23 23 24 22 21 20 22 22 23 23 21 23 22 22 "
    "24 21 22 23 23 21 21 22 21 23 22 23 23 20 22 22 22 23 22 "
    "22 23 26 26 20 19 22 23 22 25 26 26 26 27 27 26 24 25 19 "
    "21 26 27 27 26 27 24 21 21 26 26 28 27 27 27 20 24 20 21 "
    "22 21 21 23 22 22 25 25 24 24 26 23 26 27 26 26 27 27 27 "
    "27 27 28 27 27 27 27 27 26 30 "
)
"""Bits of the Huffman code of each byte, and at last of the end mark (appendix B).

The code is canonical: codes of one length are consecutive, in the order of what they stand for.
"""
_END: Final = 256


@cache
def _symbols() -> dict[int, int]:
    """Return what each Huffman code stands for; a code is written with a 1 in front, which tells its length."""
    lengths = [int(length) for length in _LENGTHS.split()]
    symbols: dict[int, int] = {}
    code = length = 0
    for symbol in sorted(range(len(lengths)), key=lambda one: (lengths[one], one)):
        code <<= lengths[symbol] - length
        length = lengths[symbol]
        symbols[1 << length | code] = symbol
        code += 1
    return symbols


def _unhuffman(data: bytes) -> bytes:
    """Decode a string (section 5.2)."""
    symbols = _symbols()
    out = bytearray()
    code = 1
    for byte in data:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            symbol = symbols.get(code)
            if symbol is not None:
                if symbol == _END:
                    raise _broken("a string that contains the end mark")
                out.append(symbol)
                code = 1
    # What is left is padding: fewer than eight bits, all of them 1, as the end mark begins.
    if code >= 1 << 8 or code & (code + 1):
        raise _broken("a string with wrong padding")
    return bytes(out)


class Decoder:
    """The headers of one connection, whose blocks must be decoded in the order of their arrival."""

    def __init__(self) -> None:
        self._dynamic: deque[Field] = deque()
        self._size = 0
        self._limit = _TABLE_SIZE

    def decode(self, block: bytes, limit: int) -> list[Field]:
        """Return the fields of a whole header block; raise `ProtocolError` for one that is wrong.

        ``limit`` bounds the bytes of all fields, counted as the table counts (section 4.1): a block of few bytes can
        name an entry of thousands many times.
        """
        reader = _Reader(block)
        fields: list[Field] = []
        while reader.left:
            field = self._next(reader, resizable=not fields)
            if field is None:
                continue
            limit -= len(field[0]) + len(field[1]) + _ENTRY_OVERHEAD
            if limit < 0:
                raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too many headers")
            fields.append(field)
        return fields

    def _next(self, reader: _Reader, *, resizable: bool) -> Field | None:
        first = reader.peek()
        if first & 0x80:  # section 6.1
            return self._entry(reader.integer(7))
        if first & 0x40:  # section 6.2.1
            field = self._literal(reader, 6)
            self._add(field)
            return field
        if first & 0x20:  # section 6.3
            self._resize(reader.integer(5), allowed=resizable)
            return None
        return self._literal(reader, 4)  # sections 6.2.2 and 6.2.3

    def _literal(self, reader: _Reader, prefix: int) -> Field:
        index = reader.integer(prefix)
        name = self._entry(index)[0] if index else reader.string()
        return name, reader.string()

    def _entry(self, index: int) -> Field:
        if 1 <= index <= len(_STATIC):
            return _STATIC[index - 1]
        place = index - len(_STATIC) - 1
        if not 0 <= place < len(self._dynamic):
            raise _broken(f"no header has the index {index}")
        return self._dynamic[place]

    def _add(self, field: Field) -> None:
        self._dynamic.appendleft(field)
        self._size += _cost(field)
        self._evict()

    def _resize(self, limit: int, *, allowed: bool) -> None:
        if not allowed or limit > _TABLE_SIZE:
            raise _broken(f"a table of {limit} bytes")
        self._limit = limit
        self._evict()

    def _evict(self) -> None:
        while self._size > self._limit:
            self._size -= _cost(self._dynamic.pop())


class _Reader:
    """Integers and strings of a header block, from the first on (section 5)."""

    def __init__(self, block: bytes) -> None:
        self._block = block
        self._at = 0

    @property
    def left(self) -> bool:
        return self._at < len(self._block)

    def peek(self) -> int:
        if not self.left:
            raise _broken("a block that ends too early")
        return self._block[self._at]

    def integer(self, prefix: int) -> int:
        """Read an integer that begins in the low ``prefix`` bits."""
        most = (1 << prefix) - 1
        value = self.peek() & most
        self._at += 1
        if value < most:
            return value
        shift = 0
        while True:
            byte = self.peek()
            self._at += 1
            value += (byte & 0x7F) << shift
            shift += 7
            if value > _LARGEST or shift > 35:  # noqa: PLR2004  so many bits hold any number within the limit
                raise _broken("an integer without end")
            if byte < 0x80:  # noqa: PLR2004  the bit that says "more follows"
                return value

    def string(self) -> bytes:
        huffman = self.peek() & 0x80
        length = self.integer(7)
        data = self._block[self._at : self._at + length]
        if len(data) < length:
            raise _broken("a string that is longer than its block")
        self._at += length
        return _unhuffman(data) if huffman else data


def encode(name: bytes, value: bytes) -> bytes:
    """Return a field as a literal that no table keeps (section 6.2.2)."""
    return b"\x00" + _string(name) + _string(value)


def _string(data: bytes) -> bytes:
    length = len(data)
    if length < 0x7F:  # noqa: PLR2004  what fits the prefix of seven bits
        return bytes((length,)) + data
    out = bytearray(b"\x7f")
    length -= 0x7F
    while length >= 0x80:  # noqa: PLR2004  seven bits in each byte
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out) + data


def _cost(field: Field) -> int:
    return len(field[0]) + len(field[1]) + _ENTRY_OVERHEAD


def _broken(what: str) -> ProtocolError:
    return ProtocolError(ErrorCode.COMPRESSION_ERROR, f"headers: {what}")
