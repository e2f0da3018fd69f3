"""Ask the index of a stack of layers: which row a name is, and what the row's file is like."""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Self
from zlib import crc32

from layerfs.errors import Corrupt, os_error
from layerfs.kernel.descriptors import Closing, opened
from layerfs_fuse.attributes import (
    ATTRIBUTES_REPLY,
    ENTRY_ATTRIBUTES,
    ENTRY_SIZE,
    INO,
    MODE,
    NODEID,
    RECORD_DIRENT,
    RECORD_NAME,
    U32,
    U64,
    pack_dirent,
)
from layerfs_fuse.index import format as layout
from layerfs_fuse.index.format import (
    HAS_XATTRS,
    LAYER_MASK,
    LINKED,
    NAME_LENGTH,
    PROBES,
    ROOT,
    ROW_MASK,
    Layer,
    Section,
)

_INO = ENTRY_ATTRIBUTES + INO
_LENGTH = NAME_LENGTH - RECORD_NAME
"""Where a name's length is, counted from the name."""
_DIRECTORY = 4
"""The type of a directory in a directory entry (DT_DIR)."""
_MODE = ENTRY_ATTRIBUTES + MODE


class Index(Closing):
    """The merged view of the layers of a stack, mapped from a file (`open`); use as a context manager, or `close` it.

    Rows are numbered from 1, the root. The file must stay as it is while it is open: an index is never written again,
    but replaced under its name.
    """

    __slots__ = (
        "_counts",
        "_directories",
        "_firsts",
        "_links",
        "_map",
        "_marks",
        "_offsets",
        "_parents",
        "_rows",
        "_size",
        "_slots",
        "_targets",
        "_view",
        "count",
        "header",
        "layers",
        "living",
    )

    def __init__(self, mapped: mmap.mmap, header: layout.Header) -> None:
        """Read ``mapped``, of which ``header`` was checked; `open` does both."""
        self._map = mapped
        self._view = memoryview(mapped)
        self.header = header
        self.count = header.rows
        """The highest row; some below may be dead."""
        self.living = header.living
        """The names that the tree shows, the root among them."""
        self.layers = header.layers
        self._offsets = self.section(Section.OFFSETS)
        self._parents = self.section(Section.PARENTS)
        self._directories = self.section(Section.DIRECTORIES)
        self._marks = self.section(Section.MARKS)
        self._rows = self.section(Section.DIRECTORY_ROW)
        self._firsts = self.section(Section.DIRECTORY_FIRST)
        self._counts = self.section(Section.DIRECTORY_COUNT)
        self._slots = self.section(Section.SLOTS)
        self._links = self.section(Section.LINKS)
        self._targets = self.section(Section.TARGETS)
        self._size = len(self._slots) - PROBES

    @classmethod
    def open(cls, path: Path | bytes) -> Self:
        """Map the index at ``path``; raise `NotFound` or `Corrupt`.

        The header is checked, and that every section is where it says: 0.1 ms. `verify` finds damage elsewhere (0.15 ms
        a MiB), `checks.check` everything. In a damaged file that was not verified, rows may be missing or raise
        ``IndexError``; nothing worse happens.
        """
        try:
            with opened(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
                return cls.of(fd)
        except OSError as error:
            raise os_error("open the index of layers", error) from error

    @classmethod
    def of(cls, fd: int) -> Self:
        """Map the index that ``fd`` is open on, as `open` does; the descriptor is not needed any longer."""
        size = os.fstat(fd).st_size
        header = layout.unpack_header(os.pread(fd, layout.HEADER_SIZE, 0), size)
        return cls(mmap.mmap(fd, size, access=mmap.ACCESS_READ), header)

    def close(self) -> None:
        """Let go of the file; no view that was given out may be used any more."""
        for name in self.__slots__:
            view = getattr(self, name)
            if isinstance(view, memoryview):
                view.release()
        self._map.close()

    def section(self, section: Section) -> memoryview[int]:
        """Return the items of a section."""
        offset, size, _ = self.header.places[section]
        return self._view[offset : offset + size].cast(layout.TYPES[section])

    @property
    def identity(self) -> bytes:
        """Return the 64 bytes that the builder's caller gave to know its index by."""
        return self.header.identity

    @property
    def layer_table(self) -> tuple[Layer, ...]:
        """Return what is known of the layers' directories, the lowest first."""
        return tuple(Layer(*fields) for fields in layout.LAYER.iter_unpack(self.section(Section.LAYERS)))

    @property
    def wasteful(self) -> bool:
        """Tell whether there are more dead rows than living ones: a build on top then leaves them out."""
        return layout.is_wasteful(self.count, self.living)

    # -- names ---------------------------------------------------------------------------------------------------------

    def child(self, parent: int, name: bytes) -> int:
        """Return the row of a name in the directory ``parent``, or 0 where there is none."""
        directory = self._directories[parent]
        value = crc32(name, directory)
        slots = self._slots
        slot = value * self._size >> 32
        end = slot + PROBES
        while found := slots[slot]:  # a loop over a range takes a sixth longer
            if found >> 32 == value:
                row = found & ROW_MASK
                if self._parents[row] == directory:
                    start = self._offsets[row] * 8 + RECORD_NAME
                    length = len(name)
                    if self._map[start : start + length] == name and self._map[start + _LENGTH] == length:
                        return row
            slot += 1
            if slot == end:
                return self._search(directory, name)
        return 0

    def _search(self, directory: int, name: bytes) -> int:
        """Find a name among the sorted ones of its directory, as the hash table had no room for it."""
        rows = range(self._firsts[directory], self._firsts[directory] + self._counts[directory])
        place = bisect_left(rows, name, key=self.name)
        return rows[place] if place < len(rows) and self.name(rows[place]) == name else 0

    def name(self, row: int) -> bytes:
        """Return the last part of a row's path; b"" for the root."""
        start = self._offsets[row] * 8
        return self._map[start + RECORD_NAME : start + RECORD_NAME + self._map[start + NAME_LENGTH]]

    def parent(self, row: int) -> int:
        """Return the directory that a row lies in; for the root itself."""
        return self._rows[self._parents[row]]

    def path(self, row: int) -> bytes:
        """Return the path below the root, which is that in the row's layer too; b"" for the root."""
        parts: list[bytes] = []
        while row != ROOT:
            parts.append(self.name(row))
            row = self._rows[self._parents[row]]
            if len(parts) > self.count:
                raise Corrupt("the directories of the index are no tree")
        return b"/".join(parts[::-1])

    def children(self, row: int) -> range:
        """Return the rows in a directory, in the order of their names; none for what is no directory."""
        directory = self._directories[row]
        first = self._firsts[directory]
        return range(first, first + self._counts[directory])

    def linked(self, row: int) -> bool:
        """Tell whether the inode of a row has several names."""
        return self._marks[row] & LINKED != 0

    def aliases(self, row: int) -> tuple[int, ...]:
        """Return every row of the same inode, this one among them."""
        if not self._marks[row] & LINKED:
            return (row,)
        node = self.node(row)
        start = bisect_left(self._links, node << 32)
        end = bisect_left(self._links, node + 1 << 32, start)
        return tuple(link & ROW_MASK for link in self._links[start:end])

    # -- what a row is like --------------------------------------------------------------------------------------------

    def entry(self, row: int) -> bytes:
        """Return the 128 bytes of a reply to LOOKUP."""
        start = self._offsets[row] * 8
        return self._map[start : start + ENTRY_SIZE]

    def attributes(self, row: int) -> bytes:
        """Return the 88 bytes of a row's attributes."""
        start = self._offsets[row] * 8
        return self._map[start + ENTRY_ATTRIBUTES : start + ENTRY_SIZE]

    def attributes_reply(self, row: int) -> bytes:
        """Return the 104 bytes of a reply to GETATTR, which end with the attributes."""
        start = self._offsets[row] * 8
        return self._map[start + ATTRIBUTES_REPLY : start + ENTRY_SIZE]

    def record(self, row: int) -> bytes:
        """Return the READDIRPLUS record of a row."""
        return self._map[self._offsets[row] * 8 : self._offsets[row + 1] * 8]

    def marks(self, row: int) -> int:
        """Return layer and flags of a row, as in the file (`format`)."""
        return self._marks[row]

    def node(self, row: int) -> int:
        """Return the first row of the same inode."""
        return int(U64.unpack_from(self._map, self._offsets[row] * 8 + NODEID)[0])

    def ino(self, row: int) -> int:
        """Return the inode number that is shown."""
        return int(U64.unpack_from(self._map, self._offsets[row] * 8 + _INO)[0])

    def mode(self, row: int) -> int:
        """Return type and permissions."""
        return int(U32.unpack_from(self._map, self._offsets[row] * 8 + _MODE)[0])

    def is_directory(self, row: int) -> bool:
        """Tell whether a row is a directory."""
        return self._directories[row] != 0

    def layer(self, row: int) -> int:
        """Return the layer that the object lies in, 0 for the lowest; of a directory the uppermost that has it."""
        return self._marks[row] & LAYER_MASK

    def has_xattrs(self, row: int) -> bool:
        """Tell whether the object may have extended attributes, beside those of the overlay."""
        return self._marks[row] & HAS_XATTRS != 0

    def has_target(self, row: int) -> bool:
        """Tell whether a symbolic link's target is there, as it is in every file that is whole."""
        place = bisect_left(self._targets, row << 32)
        return place < len(self._targets) and self._targets[place] >> 32 == row

    def target(self, row: int) -> bytes:
        """Return where a symbolic link points to; raise ``ValueError`` for another row."""
        place = bisect_left(self._targets, row << 32)
        if place == len(self._targets) or self._targets[place] >> 32 != row:
            raise ValueError(f"row {row} is no symbolic link")
        start = self.header.places[Section.STRINGS].offset + (self._targets[place] & ROW_MASK)
        length = int.from_bytes(self._map[start : start + 2], "little")
        return self._map[start + 2 : start + 2 + length]

    # -- listings ------------------------------------------------------------------------------------------------------

    def records(self, row: int, offset: int, size: int) -> memoryview:
        """Return the READDIRPLUS records of a directory from ``offset`` on, whole ones of ``size`` bytes at most.

        ``offset`` is 0 or the ``off`` of the last record sent; "." and ".." are not among them (`dots`).
        """
        rows = self.span(row, offset, size)
        return self._view[self._offsets[rows.start] * 8 : self._offsets[rows.stop] * 8]

    def span(self, row: int, offset: int, size: int) -> range:
        """Return the rows whose records `records` returns."""
        directory = self._directories[row]
        first = self._firsts[directory]
        end = first + self._counts[directory]
        first = max(first, offset)
        if first >= end:
            return range(end, end)
        offsets = self._offsets
        start = offsets[first]
        if offsets[end] - start > size >> 3:
            end = bisect_right(offsets, start + (size >> 3), first, end) - 1
        return range(first, end)

    def dots(self, row: int, *, plus: bool) -> tuple[bytes, bytes]:
        """Return the records of "." and "..", whose positions are 1 and 2; with node 0 the kernel looks nothing up."""
        entry = bytes(ENTRY_SIZE) if plus else b""
        return (
            entry + pack_dirent(self.ino(row), 1, _DIRECTORY, b"."),
            entry + pack_dirent(self.ino(self.parent(row)), 2, _DIRECTORY, b".."),
        )

    def dirents(self, row: int, offset: int, size: int) -> bytes:
        """Return the READDIR records of a directory, as `records` does with attributes."""
        records = self.records(row, offset, size << 4)
        found: list[memoryview] = []
        start = total = 0
        while start < len(records):
            length = RECORD_NAME + (records[start + NAME_LENGTH] + 7 & ~7)
            total += length - RECORD_DIRENT
            if total > size:
                break
            found.append(records[start + RECORD_DIRENT : start + length])
            start += length
        return b"".join(found)

    # -- checks --------------------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Check every byte of the sections against its checksum; raise `Corrupt`."""
        for section, (offset, size, expected) in zip(Section, self.header.places, strict=True):
            if layout.checksum(self._view[offset : offset + size]) != expected:
                raise Corrupt(f"the index is damaged in its {section.name.lower().replace('_', ' ')}")
