"""The file of an index: a page of header, then sections of one type each, found by the header's table.

A *row* is one name of the merged tree, numbered from 1, the root. Rows stand in *blocks*: the children of a directory
one after the other, sorted by name. A *directory* has, beside its row, a number of its own that stays when its row
moves to another block; so a layer that adds one file writes the block of one directory anew, and leaves all below
alone. What was moved or hidden stays behind as a dead row until a build finds more dead than living ones.

Sections, all in the byte order of the machine:

- RECORDS: for each row, in order, what READDIRPLUS says of it (`attributes.pack_record`): nodeid is the row, or the
  first row of the same inode; off, the position behind it in its directory, is the row + 1. The children of a directory
  are one slice of the file.
- OFFSETS: where each row's record starts, in units of 8 bytes from the start of the file; one more for the end.
- PARENTS, DIRECTORIES, MARKS: for each row the directory that it lies in, the directory that it is (or 0), and its
  layer with bits of what else is known.
- DIRECTORY_ROW, DIRECTORY_FIRST, DIRECTORY_COUNT: for each directory its row, its first child and their number.
- SLOTS: a hash table of names, open addressing without wrap. A slot holds ``hash << 32 | row``, an empty one 0; hash is
  crc32 of the name, started with the directory's number, and ``hash * (slots - PROBES) >> 32`` is where to look first.
  A name that found no room in PROBES slots is in none: collisions made on purpose cost a search among sorted names.
- LINKS: for each name of an inode with several names ``nodeid << 32 | row``, sorted.
- TARGETS: for each symbolic link ``row << 32 | place in STRINGS``, sorted; there a length of 16 bits, and the target.
- LAYERS: for each layer, the lowest first, what `Layer` says.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Mapping
from enum import IntEnum
from typing import Literal, NamedTuple

from isal import isal_zlib

from layerfs.errors import Corrupt

MAGIC = b"layerfsI"
VERSION = 1
ORDER = 0x01020304
HEADER_SIZE = 4096
"""Bytes before RECORDS: a page, so that a file system with reflinks can share the records of a parent's index."""
IDENTITY_SIZE = 64

ROOT = 1
PROBES = 64
"""Slots that are looked at for one name; no table of honest names at this load needs half of them."""
TOMBSTONE = 1 << 32
"""What a slot holds whose name is gone: row 0, which no name ever has."""
ROW_MASK = 0xFFFF_FFFF

LAYER_MASK = 0x3FFF
HAS_XATTRS = 0x8000
LINKED = 0x4000
"""The inode has several names."""

NAME_LENGTH = 144 if sys.byteorder == "little" else 147
"""Where in a record the only byte of namelen is that is not always zero: a name has 255 bytes at most."""

_FORGIVEN = 4096
"""Dead rows that do no harm."""
_HEADER = struct.Struct(f"=8sIIQIIIII4x{IDENTITY_SIZE}s")
_SECTION = struct.Struct("=QQI4x")
_CHECKSUM = struct.Struct("=I")
LAYER = struct.Struct("=QqQI4x")


class Section(IntEnum):
    """The sections, in their order in the file."""

    RECORDS = 0
    OFFSETS = 1
    PARENTS = 2
    DIRECTORIES = 3
    MARKS = 4
    DIRECTORY_ROW = 5
    DIRECTORY_FIRST = 6
    DIRECTORY_COUNT = 7
    SLOTS = 8
    LINKS = 9
    TARGETS = 10
    STRINGS = 11
    LAYERS = 12


TYPES: Mapping[Section, Literal["B", "H", "I", "Q"]] = {
    Section.RECORDS: "B",
    Section.OFFSETS: "I",
    Section.PARENTS: "I",
    Section.DIRECTORIES: "I",
    Section.MARKS: "H",
    Section.DIRECTORY_ROW: "I",
    Section.DIRECTORY_FIRST: "I",
    Section.DIRECTORY_COUNT: "I",
    Section.SLOTS: "Q",
    Section.LINKS: "Q",
    Section.TARGETS: "Q",
    Section.STRINGS: "B",
    Section.LAYERS: "B",
}
"""The type of a section's items, as `array` and `memoryview` name it."""


class Layer(NamedTuple):
    """What an index knows of the directory of one layer, to tell whether it is still the one that it was made from.

    ``root`` and ``mtime`` (ns) are those of the layer's root, ``device`` names its file system and outlives a reboot
    where the file system can tell. ``ordinal`` numbers the devices of the stack from 0 (`unique_ino`).
    """

    root: int
    mtime: int
    device: int
    ordinal: int


class Place(NamedTuple):
    """Where a section is: offset and size in bytes, and the CRC-32 of it."""

    offset: int
    size: int
    checksum: int


class Header(NamedTuple):
    """What the first page says: the file's size in bytes, the highest row, the living rows, the highest directory.

    ``slots_used`` are the slots that are not empty.
    """

    size: int
    rows: int
    living: int
    directories: int
    layers: int
    slots_used: int
    identity: bytes
    places: tuple[Place, ...]


def is_wasteful(rows: int, living: int) -> bool:
    """Tell whether more rows are dead than living; a few are never worth a clean file."""
    return rows - living > living + _FORGIVEN


def unique_ino(ino: int, ordinal: int) -> int:
    """Return an inode number that no other device of the stack shows; those of the first stay what they are.

    Others get the device's number into their upper bits, as overlay's ``xino`` does. Where both do not fit into 64 bits
    the number is mixed: equal ones are then very unlikely, which is all that 64 bits allow.
    """
    if not ordinal:
        return ino
    if ino < 1 << 48 and ordinal < 1 << 15:
        return ordinal << 48 | ino
    return (ino ^ ordinal * 0x9E37_79B9_7F4A_7C15) * 0xD6E8_FEB8_6659_FD93 & 0xFFFF_FFFF_FFFF_FFFF


def checksum(data: bytes | bytearray | memoryview | array[int], value: int = 0) -> int:
    """Return the CRC-32; isal's is four times as fast as zlib's, which is what makes whole checks cheap."""
    return int(isal_zlib.crc32(data, value))


def pack_header(header: Header) -> bytes:
    """Return the first page, with its own checksum at its end."""
    packed = _HEADER.pack(MAGIC, ORDER, VERSION, *header[:-1])
    packed += b"".join(_SECTION.pack(*place) for place in header.places)
    packed = packed.ljust(HEADER_SIZE - _CHECKSUM.size, b"\0")
    return packed + _CHECKSUM.pack(checksum(packed))


def unpack_header(page: bytes, size: int) -> Header:
    """Read the first page of a file of ``size`` bytes; raise `Corrupt` unless everything fits together."""
    if len(page) < HEADER_SIZE or not page.startswith(MAGIC):
        raise Corrupt("this is no index of layers, or its beginning is lost")
    _, order, version, *fields = _HEADER.unpack_from(page)
    if (order, version) != (ORDER, VERSION):
        raise Corrupt("the index was written by a machine of another byte order, or by another version")
    end = HEADER_SIZE - _CHECKSUM.size
    if _CHECKSUM.unpack_from(page, end)[0] != checksum(page[:end]):
        raise Corrupt("the first page of the index is damaged")
    places = tuple(Place(*_SECTION.unpack_from(page, _HEADER.size + number * _SECTION.size)) for number in Section)
    header = Header._make((*fields, places))
    if header.size != size:
        raise Corrupt(f"the index should have {header.size:,} bytes and has {size:,}")
    _check_places(header)
    return header


def _check_places(header: Header) -> None:
    rows, directories = header.rows, header.directories
    counts = {
        Section.OFFSETS: rows + 2,
        Section.PARENTS: rows + 1,
        Section.DIRECTORIES: rows + 1,
        Section.MARKS: rows + 1,
        Section.DIRECTORY_ROW: directories + 1,
        Section.DIRECTORY_FIRST: directories + 1,
        Section.DIRECTORY_COUNT: directories + 1,
        Section.LAYERS: header.layers * LAYER.size,
    }
    for section in Section:
        offset, size, _ = header.places[section]
        width = array(TYPES[section]).itemsize
        wrong = offset < HEADER_SIZE or offset % 8 or size % width or offset + size > header.size
        if wrong or counts.get(section, size // width) != size // width:
            raise Corrupt(f"the index does not hold together: {section.name.lower()} of {size:,} bytes at {offset:,}")
    if not rows or not directories or header.places[Section.SLOTS].size <= PROBES * 8:
        raise Corrupt("the index has no root")
