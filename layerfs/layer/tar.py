"""The headers and numbers of the tar format without any I/O, read strictly; `pax` and `sparse` have the rest.

The rules are those of POSIX.1-2008 pax(1) ("ustar Interchange Format" and "pax Interchange Format") and of GNU tar's
manual ("Basic Tar Format", "Storing Sparse Files"). Names are bytes. What two readers could understand differently is
an error here.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from layerfs.errors import Corrupt

BLOCK_SIZE = 512
ZERO_BLOCK = bytes(BLOCK_SIZE)
END_OF_ARCHIVE = bytes(2 * BLOCK_SIZE)

REGULAR = b"0"
HARD_LINK = b"1"
SYMLINK = b"2"
CHARACTER_DEVICE = b"3"
BLOCK_DEVICE = b"4"
DIRECTORY = b"5"
FIFO = b"6"
GNU_SPARSE = b"S"
GNU_LONG_NAME = b"L"
GNU_LONG_LINK = b"K"
PAX_LOCAL = b"x"
PAX_LOCAL_SOLARIS = b"X"
PAX_GLOBAL = b"g"

_TYPES = {flag: flag for flag in (b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"S", b"L", b"K", b"x", b"g")}
_TYPES |= {b"\0": REGULAR, b"7": REGULAR, b"X": PAX_LOCAL}
EXTENSIONS = frozenset({PAX_LOCAL, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK})
"""Types of headers that say something about the entry that follows."""
_DEVICES = frozenset({CHARACTER_DEVICE, BLOCK_DEVICE})
WITHOUT_DATA = frozenset({HARD_LINK, SYMLINK, CHARACTER_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO})
"""Types whose size field says nothing about the stream, as every reader but star has it."""

# name mode uid gid size mtime checksum type link magic+version (uname gname) devmajor devminor prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
CHECKSUM = slice(148, 156)
_TYPE_FLAG = 156
_ADLER_BASE = 65521
_WHOLE = re.compile(rb"[0-9]{1,30}")
NANO = 10**9
_TIME_END = NANO << 62
"""Nanoseconds that no clock and no file system can mean."""
_ID_END = (1 << 32) - 1
"""The highest id is (uid_t) -1, which chown(2) takes for "leave it"."""


@dataclass(slots=True)
class Header:
    """One entry of an archive, extensions merged in: what a file should be.

    ``size`` is the number of bytes of the payload in the stream, ``real_size`` the length of the file (they differ for
    sparse files, whose ``extents`` are the offsets and lengths of data). Times are in nanoseconds since 1970;
    ``atime`` is None where the archive says nothing. Not frozen: one is made for each of up to millions of entries, and
    a frozen one takes three times as long.
    """

    name: bytes
    type: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: bytes
    major: int
    minor: int
    real_size: int
    atime: int | None = None
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    extents: tuple[tuple[int, int], ...] | None = None
    sparse_map_in_data: bool = False


PaxRecords = list[tuple[bytes, bytes]]
"""Keys and values in the order of the header: GNU's sparse format 0.0 repeats keys."""


# -- reading -----------------------------------------------------------------------------------------------------------


def shown(name: bytes) -> str:
    """Write a name for a message."""
    text = name[:200].decode("utf-8", errors="backslashreplace")
    return repr(text)


def number(raw: bytes) -> int:
    """Read a numeric field: octal digits with blanks or NULs around, or base-256 (GNU) where the first bit is set."""
    if raw[0] & 0x80:
        return _base256(raw)
    text = raw.partition(b"\0")[0].strip(b" ")
    if not text:
        return 0
    if not text.isdigit():
        raise Corrupt(f"a numeric field of a tar header holds {raw!r}")
    try:
        return int(text, 8)
    except ValueError as error:
        raise Corrupt(f"a numeric field of a tar header holds {raw!r}") from error


def decimal(value: bytes, key: bytes) -> int:
    """Read a decimal number without sign."""
    if not _WHOLE.fullmatch(value):
        raise Corrupt(f"the PAX record {shown(key)} holds {value[:40]!r}, which is no number")
    return int(value)


_cached_number = lru_cache(maxsize=4096)(number)
"""Modes, owners and times repeat: a look-up is ten times faster than reading them."""


def _base256(raw: bytes) -> int:
    """Read a big-endian two's complement number of which the first bit is a mark."""
    value = int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
    if raw[0] & 0x40:
        value -= 1 << (8 * len(raw) - 1)
    return value


def _is_sound(block: memoryview, field: bytes) -> bool:
    """Compare a header's checksum, in the unsigned form and in the signed one of old systems.

    The low half of Adler-32 is the sum of the bytes modulo 65,521, plus 1, and is made in C: 0.3 instead of 4 µs.
    """
    if zlib.adler32(block) & 0xFFFF == _adler(field):
        return True
    text = bytes(block)
    rest = text[: CHECKSUM.start] + text[CHECKSUM.stop :]
    return sum(byte - 256 if byte > 127 else byte for byte in rest) + 8 * 32 == number(field)  # noqa: PLR2004  signed bytes


@lru_cache(maxsize=4096)
def _adler(field: bytes) -> int:
    """Return the low half of the Adler-32 of a header whose checksum field is this: the sum has blanks in its place."""
    return (number(field) + sum(field) - 8 * 32 + 1) % _ADLER_BASE


def parse_header(block: memoryview) -> Header:
    """Read one header block, which is not all zeros; raise `Corrupt` for anything that is no tar header."""
    fields = _HEADER.unpack_from(block)
    name, mode, uid, gid, size, mtime, checksum, flag, link, magic, major, minor, prefix = fields
    if not _is_sound(block, checksum):
        raise Corrupt("a tar header has a wrong checksum")
    kind = _TYPES.get(flag)
    name = name.partition(b"\0")[0]
    if kind is None:
        raise Corrupt(f"the tar entry {shown(name)} has the unknown type {flag!r}")
    if prefix[0] and magic.startswith(b"ustar"):
        prefix = _prefix(block, magic, prefix)
        name = prefix + b"/" + name if prefix else name
    is_device = kind in _DEVICES
    return Header(
        name,
        kind,
        _cached_number(mode) & 0o7777,
        _cached_number(uid),
        _cached_number(gid),
        number(size),
        _cached_number(mtime) * NANO,
        link.partition(b"\0")[0],
        _cached_number(major) if is_device else 0,
        _cached_number(minor) if is_device else 0,
        0,
    )


def _prefix(block: memoryview, magic: bytes, prefix: bytes) -> bytes:
    """Return the front part of a name; GNU's header has other things in its place, star's a shorter one."""
    if magic == b"ustar  \0":
        times = (bytes(block[345:357]), bytes(block[357:369]))
        if all(_is_number(part) for part in times):
            return b""
    elif bytes(block[508:512]) == b"tar\0":
        prefix = prefix[:131]
    return prefix.partition(b"\0")[0]


def _is_number(raw: bytes) -> bool:
    """Tell whether GNU tar may have written this as access or change time."""
    try:
        number(raw)
    except Corrupt:
        return False
    return True


def check_header(header: Header) -> None:
    """Refuse values that no file can have: negative sizes and ids, times beyond any clock, NUL in names."""
    if header.size < 0 or header.real_size < 0:
        raise Corrupt(f"the tar entry {shown(header.name)} has a negative size")
    if not (0 <= header.uid < _ID_END and 0 <= header.gid < _ID_END):
        owner = f"{header.uid}:{header.gid}"
        raise Corrupt(f"the tar entry {shown(header.name)} has an owner that is out of range: {owner}")
    if not -_TIME_END < header.mtime < _TIME_END or not -_TIME_END < (header.atime or 0) < _TIME_END:
        raise Corrupt(f"the tar entry {shown(header.name)} has a time that is out of range")
    if b"\0" in header.name or b"\0" in header.link:
        raise Corrupt(f"the tar entry {shown(header.name)} has a NUL in its name or target")


def check_v7_directory(header: Header, block: memoryview) -> None:
    """Refuse a directory, told by a slash behind its name, in a header of a type that Unix V7 does not have.

    GNU tar makes a directory of it, Go's reader a file.
    """
    if block[_TYPE_FLAG]:
        raise Corrupt(f"the tar entry {shown(header.name)} is a regular file with the name of a directory")
