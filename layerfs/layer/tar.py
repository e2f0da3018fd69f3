"""The tar format without any I/O: headers, PAX records, numbers and sparse maps, read strictly.

The rules are those of POSIX.1-2008 pax(1) ("ustar Interchange Format" and "pax Interchange Format") and of GNU tar's
manual ("Basic Tar Format", "Storing Sparse Files"). Names are bytes. What two readers could understand differently is
an error here.
"""

from __future__ import annotations

import binascii
import re
import struct
import urllib.parse
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


# -- PAX ---------------------------------------------------------------------------------------------------------------

PaxRecords = list[tuple[bytes, bytes]]
"""Keys and values in the order of the header: GNU's sparse format 0.0 repeats keys."""

_DECIMAL = re.compile(rb"(-?)([0-9]{1,30})(?:\.([0-9]*))?")
_INTEGER = re.compile(rb"[0-9]{1,30}")
_ONLY_LOCAL = (b"path", b"linkpath", b"size")
_GLOBAL = frozenset({b"uid", b"gid", b"mtime", b"atime"})
_STAR_XATTR, _LIBARCHIVE_XATTR = b"SCHILY.xattr.", b"LIBARCHIVE.xattr."
_XATTR_KEYS = (_STAR_XATTR, _LIBARCHIVE_XATTR)
_MOST_OF_XATTRS = 1 << 16
"""Bytes of an attribute's value, and of the names of all of a file's (xattr(7), "Limits")."""


def parse_pax(data: bytes) -> PaxRecords:
    """Read the records of an extended header, each ``<length> <key>=<value>`` and a line feed."""
    records: PaxRecords = []
    position = 0
    while position < len(data):
        blank = data.find(b" ", position, position + 20)
        digits = data[position:blank]
        if blank < 0 or not digits.isdigit():
            raise Corrupt("a PAX header holds a record without a length")
        end = position + int(digits)
        equals = data.find(b"=", blank + 1, end)
        if end > len(data) or equals < 0 or data[end - 1 : end] != b"\n" or equals == blank + 1:
            raise Corrupt("a PAX header holds a record that is no key=value of its length")
        records.append((data[blank + 1 : equals], data[equals + 1 : end - 1]))
        position = end
    return records


def check_global(records: PaxRecords) -> None:
    """Refuse a global header that would give every file the same name, target or size."""
    for key, _ in records:
        if key in _ONLY_LOCAL or key.startswith(b"GNU.sparse."):
            raise Corrupt(f"a global PAX header sets {shown(key)}, which can only be right for one file")


def meaningful(records: PaxRecords) -> PaxRecords:
    """Return the records that `merge_pax` understands, of those that may be global."""
    return [(key, value) for key, value in records if key in _GLOBAL or key.startswith(_XATTR_KEYS)]


def check_names(local: PaxRecords, long_name: bytes | None, long_link: bytes | None) -> None:
    """Refuse an entry that GNU's and POSIX's extensions name differently: GNU tar takes the one, Go the other."""
    if long_name is None and long_link is None:
        return
    last = dict(local)
    for key, text in ((b"path", long_name), (b"linkpath", long_link)):
        if text is not None and last.get(key, text) not in (b"", text):
            raise Corrupt(f"a tar entry has two long names or targets, {shown(text)} and {shown(last[key])}")


def check_v7_directory(header: Header, block: memoryview) -> None:
    """Refuse a directory, told by a slash behind its name, in a header of a type that Unix V7 does not have.

    GNU tar makes a directory of it, Go's reader a file.
    """
    if block[_TYPE_FLAG]:
        raise Corrupt(f"the tar entry {shown(header.name)} is a regular file with the name of a directory")


def merge_pax(header: Header, records: PaxRecords) -> None:
    """Give the entry what its records say, the later over the earlier; an empty value takes an earlier one back."""
    last = dict(records)
    if value := last.get(b"path"):
        header.name = value
    if value := last.get(b"linkpath"):
        header.link = value
    if value := last.get(b"size"):
        header.size = _integer(value, b"size")
    if value := last.get(b"uid"):
        header.uid = _integer(value, b"uid")
    if value := last.get(b"gid"):
        header.gid = _integer(value, b"gid")
    if value := last.get(b"mtime"):
        header.mtime = _nanoseconds(value)
    if value := last.get(b"atime"):
        header.atime = _nanoseconds(value)
    header.xattrs = _xattrs(last)
    if any(key.startswith(b"GNU.sparse.") for key in last):
        _merge_sparse(header, records, last)


def _integer(value: bytes, key: bytes) -> int:
    """Read a decimal number without sign."""
    if not _INTEGER.fullmatch(value):
        raise Corrupt(f"the PAX record {shown(key)} holds {value[:40]!r}, which is no number")
    return int(value)


def _nanoseconds(value: bytes) -> int:
    """Read decimal seconds; digits beyond the ninth are cut off towards the past, as a file system does."""
    match = _DECIMAL.fullmatch(value)
    if match is None:
        raise Corrupt(f"a PAX record holds {value[:40]!r}, which is no time")
    digits = match[3] or b""
    fraction = int(digits[:9].ljust(9, b"0"))
    whole = int(match[2]) * NANO
    if not match[1]:
        return whole + fraction
    return -whole - fraction - (1 if digits[9:].strip(b"0") else 0)


def _xattrs(records: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Collect extended attributes: those of star (as they are), over those of libarchive (URL and base64 encoded)."""
    found: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key.startswith(_LIBARCHIVE_XATTR):
            try:
                found[urllib.parse.unquote_to_bytes(key[len(_LIBARCHIVE_XATTR) :])] = binascii.a2b_base64(value + b"==")
            except binascii.Error as error:
                raise Corrupt(f"the PAX record {shown(key)} is no base64") from error
    for key, value in records.items():
        if key.startswith(_STAR_XATTR):
            found[key[len(_STAR_XATTR) :]] = value
    if any(not name or b"\0" in name for name in found):
        raise Corrupt("an extended attribute has an empty name or a NUL in it")
    if sum(len(name) + 1 for name in found) > _MOST_OF_XATTRS or any(
        len(value) > _MOST_OF_XATTRS for value in found.values()
    ):
        raise Corrupt("a tar entry has longer extended attributes than a file can have")
    return found


# -- sparse files ------------------------------------------------------------------------------------------------------


def _merge_sparse(header: Header, records: PaxRecords, last: Mapping[bytes, bytes]) -> None:
    """Understand GNU's sparse formats 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files")."""
    if header.type != REGULAR:
        raise Corrupt(f"the tar entry {shown(header.name)} is sparse and no regular file")
    if value := last.get(b"GNU.sparse.name"):
        header.name = value
    if value := last.get(b"GNU.sparse.realsize") or last.get(b"GNU.sparse.size"):
        header.real_size = _integer(value, b"GNU.sparse.size")
    version = (last.get(b"GNU.sparse.major"), last.get(b"GNU.sparse.minor"))
    if version == (b"1", b"0"):
        header.sparse_map_in_data = True
        header.extents = ()
    elif version not in ((None, None), (b"0", b"0"), (b"0", b"1")):
        raise Corrupt(f"the tar entry {shown(header.name)} has an unknown sparse format")
    elif b"GNU.sparse.map" in last:
        header.extents = _extents([_integer(part, b"GNU.sparse.map") for part in _listed(last[b"GNU.sparse.map"])])
    elif b"GNU.sparse.numblocks" in last:
        header.extents = _extents(_pairs_of_format_0_0(records))
    else:
        raise Corrupt(f"the tar entry {shown(header.name)} is sparse and has no map")


def _listed(value: bytes) -> list[bytes]:
    """Split a map of format 0.1; an empty one is a file that is all hole."""
    return value.split(b",") if value else []


def _pairs_of_format_0_0(records: PaxRecords) -> list[int]:
    """Collect the repeated keys of format 0.0, which must take turns."""
    numbers: list[int] = []
    for key, value in records:
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (key == b"GNU.sparse.numbytes") != (len(numbers) % 2 == 1):
                raise Corrupt("a sparse map has an offset without a length")
            numbers.append(_integer(value, key))
    return numbers


def _extents(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    """Pair offsets with lengths."""
    if len(numbers) % 2:
        raise Corrupt("a sparse map has an offset without a length")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def parse_sparse_map(text: bytes) -> tuple[tuple[tuple[int, int], ...], int] | None:
    """Read the map in front of the data of format 1.0: its extents and bytes; None where ``text`` must be longer."""
    end = text.find(b"\n")
    if end < 0:
        return None
    wanted = 2 * _integer(text[:end], b"sparse map")
    parts = text.split(b"\n", wanted + 1)
    if len(parts) < wanted + 2:
        return None
    used = len(text) - len(parts[-1])
    return _extents([_integer(part, b"sparse map") for part in parts[1:-1]]), -(-used // BLOCK_SIZE) * BLOCK_SIZE


def parse_gnu_sparse(block: memoryview, *, first: bool) -> tuple[list[tuple[int, int]], bool]:
    """Read the map inside an old GNU header (4 extents) or an extension of it (21): extents, and if more follow."""
    start, count, flag = (386, 4, 482) if first else (0, 21, 504)
    extents: list[tuple[int, int]] = []
    for at in range(start, start + 24 * count, 24):
        if block[at] == 0 and block[at + 12] == 0:
            break
        extents.append((number(bytes(block[at : at + 12])), number(bytes(block[at + 12 : at + 24]))))
    return extents, block[flag] not in (0, 0x30)


def gnu_real_size(block: memoryview) -> int:
    """Read the length of a file in an old GNU sparse header."""
    return number(bytes(block[483:495]))


def check_extents(header: Header) -> None:
    """Refuse a sparse map that overlaps, runs backwards or beyond the end, or has not the length of the payload."""
    position = total = 0
    for offset, length in header.extents or ():
        if offset < position or length < 0:
            raise Corrupt(f"the sparse map of {shown(header.name)} overlaps or runs backwards")
        position = offset + length
        total += length
    if position > header.real_size:
        raise Corrupt(f"the sparse map of {shown(header.name)} reaches beyond the end of the file")
    if total != header.size:
        raise Corrupt(f"the sparse map of {shown(header.name)} does not fit its data: {total} and {header.size} bytes")
