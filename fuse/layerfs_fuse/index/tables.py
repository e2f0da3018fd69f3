"""The sections of an index while it is being built: those of the parent's index, changed in memory, and the records.

Records go to the new file as they are made (`Records`); everything else is small enough to be kept in memory until the
end, some 40 bytes for each row.
"""

from __future__ import annotations

import stat
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Literal
from zlib import crc32

from layerfs_fuse.attributes import ENTRY_ATTRIBUTES, NLINK, NODEID, RECORD_NAME, RECORD_OFF, U32, U64, pack_record
from layerfs_fuse.index import format as layout
from layerfs_fuse.index.format import (
    HAS_XATTRS,
    HEADER_SIZE,
    LINKED,
    NAME_LENGTH,
    ROOT,
    ROW_MASK,
    Layer,
    Section,
)
from layerfs_fuse.index.hashing import HashTable
from layerfs_fuse.index.links import Links
from layerfs_fuse.index.reader import Index
from layerfs_fuse.index.records import Records
from layerfs_fuse.index.scan import Found
from layerfs_fuse.index.targets import Targets

_NLINK = ENTRY_ATTRIBUTES + NLINK


class Tables:
    """Everything that an index holds, open to change. Row and directory 0 are none."""

    def __init__(self, records: Records) -> None:
        """Start without even a root; `load` or `adopt` an index, or `set_root`."""
        self._records = records
        self.layers: list[Layer] = []
        self._living = 0
        self._offsets = array("I", [HEADER_SIZE >> 3, HEADER_SIZE >> 3])
        self._parents = array("I", [0])
        self._directories = array("I", [0])
        self._marks = array("H", [0])
        self._rows = array("I", [ROOT])  # the root lies in directory 0, which leads to the root again
        self._firsts = array("I", [0])
        self._counts = array("I", [0])
        self._targets = Targets()
        self._names = HashTable()
        self._links = Links()
        self._below: list[tuple[bytes, int, Found]] = []

    # -- from an index, to an index ------------------------------------------------------------------------------------

    def load(self, index: Index) -> None:
        """Take over everything of an index, at the speed of memory, dead rows too."""

        def items(section: Section, kind: Literal["H", "I", "Q"]) -> array[int]:
            result = array(kind)
            result.frombytes(index.section(section).cast("B"))
            return result

        self.layers = list(index.layer_table)
        self._living = index.living
        self._offsets = items(Section.OFFSETS, "I")
        self._parents = items(Section.PARENTS, "I")
        self._directories = items(Section.DIRECTORIES, "I")
        self._marks = items(Section.MARKS, "H")
        self._rows = items(Section.DIRECTORY_ROW, "I")
        self._firsts = items(Section.DIRECTORY_FIRST, "I")
        self._counts = items(Section.DIRECTORY_COUNT, "I")
        self._targets = Targets(items(Section.TARGETS, "Q"), bytearray(index.section(Section.STRINGS)))
        self._names = HashTable(items(Section.SLOTS, "Q"), index.header.slots_used)
        self._links = Links(len(self._parents))
        for link in index.section(Section.LINKS):
            self._links.add(link & ROW_MASK, link >> 32)
        self._records.append(index.section(Section.RECORDS))

    def adopt(self, index: Index) -> None:
        """Take over what lives of an index, block by block, and leave its dead rows behind."""
        self.layers = list(index.layer_table)
        self._links = Links(index.count + 1)
        self._append(index.record(ROOT), 0, index.marks(ROOT))
        pending = [(ROOT, self._new_directory(ROOT))]
        while pending:
            old_parent, directory = pending.pop()
            rows = index.children(old_parent)
            self._firsts[directory] = len(self._parents)
            self._counts[directory] = len(rows)
            for old in rows:
                row = self._adopt_row(index, old, directory)
                if index.is_directory(old):
                    pending.append((old, self._new_directory(row)))
        self.settle()

    def _adopt_row(self, index: Index, old: int, directory: int) -> int:
        marks = index.marks(old)
        row = self._append(index.record(old), directory, marks)
        self._names.add((crc32(index.name(old), directory) << 32 | row,))
        if marks & LINKED:
            self._links.add(row, index.node(old))
        if stat.S_ISLNK(index.mode(old)):
            self._targets.set(row, index.target(old))
        return row

    def finish(self, identity: bytes) -> None:
        """Write all other sections behind the records, and the header; the file is whole then, and not synced."""
        contents: Mapping[Section, bytearray | array[int] | bytes] = {
            Section.OFFSETS: self._offsets,
            Section.PARENTS: self._parents,
            Section.DIRECTORIES: self._directories,
            Section.MARKS: self._marks,
            Section.DIRECTORY_ROW: self._rows,
            Section.DIRECTORY_FIRST: self._firsts,
            Section.DIRECTORY_COUNT: self._counts,
            Section.SLOTS: self._names.slots,
            Section.LINKS: array("Q", self._links.pairs()),
            Section.TARGETS: self._targets.places,
            Section.STRINGS: self._targets.strings,
            Section.LAYERS: b"".join(layout.LAYER.pack(*layer) for layer in self.layers),
        }
        places = [self._records.place()]
        places.extend(self._records.add_section(contents[section]) for section in list(Section)[1:])
        header = layout.Header(
            size=self._records.end,
            rows=len(self._parents) - 1,
            living=self._living,
            directories=len(self._rows) - 1,
            layers=len(self.layers),
            slots_used=self._names.used,
            identity=identity.ljust(layout.IDENTITY_SIZE, b"\0"),
            places=tuple(places),
        )
        self._records.write_header(layout.pack_header(header))

    @property
    def wasteful(self) -> bool:
        """Tell whether there are more dead rows than living ones."""
        return layout.is_wasteful(len(self._parents) - 1, self._living)

    # -- changes by one layer ------------------------------------------------------------------------------------------

    def begin_layer(self, layer: Layer) -> None:
        """Add one more layer; what is set from now on lies in it."""
        self.layers.append(layer)
        self._links.begin_layer()

    def set_root(self, found: Found) -> int:
        """Give the root what a layer says of it; return its directory."""
        if len(self._parents) > ROOT:
            self._replace(ROOT, b"", found)
            return self._directories[ROOT]
        self._append(pack_record(ROOT, found.ino, ROOT + 1, b"", found.status, 2), 0, self._marks_of(found))
        return self._new_directory(ROOT)

    def merge(
        self, directory: int, found: Mapping[bytes, Found], hidden: Iterable[bytes]
    ) -> list[tuple[bytes, int, Found]]:
        """Put into a directory what a layer brings, and take out what it hides.

        Return the directories among what it brings, to be merged next.
        """
        self._below = []
        if self._counts[directory]:
            gone = {row for name in hidden if (row := self._find(directory, name))}
            fresh: list[bytes] = []
            for name, one in found.items():
                if row := self._find(directory, name):
                    self._replace(row, name, one)
                else:
                    fresh.append(name)
            if gone or fresh:
                self._rewrite(directory, gone, sorted(fresh), found)
        elif found:
            self._firsts[directory] = len(self._parents)
            self._counts[directory] = len(found)
            self._add(directory, sorted(found), found)
        first, count = self._firsts[directory], self._counts[directory]
        subdirectories = count - self._directories[first : first + count].count(0)
        self._records.patch(self._offsets[self._rows[directory]] * 8 + _NLINK, U32.pack(2 + subdirectories))
        return self._below

    def settle(self) -> None:
        """Bring the hash table and the hard links up to date at the end of a layer."""
        self._names.settle(self._living - 1, self._is_named, self._all_names)
        reachable = {0: False}
        for rows in self._links.settle(lambda row: self._is_reachable(row, reachable)):
            for row in rows:
                self._set_link(row, rows[0], len(rows))

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _marks_of(self, found: Found) -> int:
        return len(self.layers) - 1 | (HAS_XATTRS if found.xattrs else 0)

    def _append(self, record: bytes, directory: int, marks: int) -> int:
        """Add a row behind all others, and make its record say so."""
        row = len(self._parents)
        start = self._records.append(record)
        if row != ROOT:
            self._records.patch(start + NODEID, U64.pack(row))
            self._records.patch(start + RECORD_OFF, U64.pack(row + 1))
        self._offsets.append(self._records.end >> 3)
        self._parents.append(directory)
        self._directories.append(0)
        self._marks.append(marks)
        self._living += 1
        return row

    def _add(self, directory: int, names: list[bytes], found: Mapping[bytes, Found]) -> None:
        """Add names that are new to a directory. Of the steps of a build this is the one that every file takes."""
        first = row = len(self._parents)
        layer = len(self.layers) - 1
        records: list[bytes] = []
        slots: list[int] = []
        special: list[int] = []
        for name in names:
            status, ino, is_special, xattrs, _, _ = found[name]
            records.append(pack_record(row, ino, row + 1, name, status, 1))
            slots.append(crc32(name, directory) << 32 | row)
            self._marks.append(layer | HAS_XATTRS if xattrs else layer)
            if is_special:
                special.append(row)
            row += 1
        self._names.add(slots)
        self._offsets.pop()
        self._offsets.extend(accumulate((len(record) >> 3 for record in records), initial=self._records.end >> 3))
        self._records.append(b"".join(records))
        self._parents.extend([directory] * len(names))
        self._directories.extend([0] * len(names))
        self._living += len(names)
        for row in special:
            self._complete(row, names[row - first], found[names[row - first]])

    def _complete(self, row: int, name: bytes, found: Found) -> None:
        """Do what only directories, symbolic links and inodes of several names need."""
        if found.is_directory:
            self._below.append((name, self._directories[row] or self._new_directory(row), found))
            return
        status = found.status
        if stat.S_ISLNK(status.st_mode):
            self._targets.set(row, found.target)
        if status.st_nlink > 1:
            self._links.add(row, self._links.group(status.st_dev, status.st_ino))

    def _replace(self, row: int, name: bytes, found: Found) -> None:
        """Make a row what an upper layer says that its name is."""
        directory = self._directories[row]
        if directory and row != ROOT and (found.is_opaque or not found.is_directory):
            self._drop(directory)
            self._directories[row] = 0
        self._links.remove(row)
        self._marks[row] = self._marks_of(found)
        self._records.patch(self._offsets[row] * 8, pack_record(row, found.ino, row + 1, name, found.status, 1))
        self._complete(row, name, found)

    def _rewrite(self, directory: int, gone: set[int], fresh: list[bytes], found: Mapping[bytes, Found]) -> None:
        """Write the block of a directory anew behind all others, without some rows and with some new names."""
        rows = range(self._firsts[directory], self._firsts[directory] + self._counts[directory])
        start = self._offsets[rows.start] * 8
        block = self._records.read(start, self._offsets[rows.stop] * 8 - start)
        names = [_name_in(block, offset * 8 - start) for offset in self._offsets[rows.start : rows.stop]]
        stops: dict[int, list[bytes]] = {row - rows.start: [] for row in gone}
        for name in fresh:
            stops.setdefault(bisect_left(names, name), []).append(name)
        self._firsts[directory] = len(self._parents)
        self._counts[directory] = len(rows) - len(gone) + len(fresh)
        begin = 0
        for stop in sorted({*stops, len(rows)}):
            if begin < stop:
                low, high = (self._offsets[row] * 8 - start for row in (rows[begin], rows[stop - 1] + 1))
                self._move(directory, rows[begin:stop], names[begin:stop], bytearray(block[low:high]))
            if new := stops.get(stop):
                self._add(directory, new, found)
            begin = stop
            if stop < len(rows) and rows[stop] in gone:
                self._remove(rows[stop], crc32(names[stop], directory))
                begin += 1

    def _move(self, directory: int, rows: range, names: list[bytes], records: bytearray) -> None:
        """Give rows that stand together new numbers behind all others. ``records`` are theirs, and changed.

        A layer that touches a large directory spends its time here.
        """
        first = len(self._parents)
        start = self._offsets[rows.start]
        offsets = self._offsets[rows.start : rows.stop + 1]
        shift = (self._records.end >> 3) - start
        self._offsets.pop()
        self._offsets.extend([offset + shift for offset in offsets])
        self._parents.extend([directory] * len(rows))
        self._directories.extend(self._directories[rows.start : rows.stop])
        self._marks.extend(self._marks[rows.start : rows.stop])
        for row, (old, name, offset) in enumerate(zip(rows, names, offsets, strict=False), first):
            at = offset - start << 3
            U64.pack_into(records, at + NODEID, row)
            U64.pack_into(records, at + RECORD_OFF, row + 1)
            self._names.replace(crc32(name, directory), old, row)
            self._parents[old] = 0
            if own := self._directories[old]:
                self._directories[old] = 0
                self._rows[own] = row
            else:
                self._targets.move(old, row)
            self._links.move(old, row)  # whose mark is not set before the end of the layer
        self._records.append(records)

    def _remove(self, row: int, value: int) -> None:
        self._names.replace(value, row, 0)
        self._parents[row] = 0
        self._living -= 1
        if self._directories[row]:
            self._drop(self._directories[row])
            self._directories[row] = 0

    # -- directories and hard links ------------------------------------------------------------------------------------

    def _new_directory(self, row: int) -> int:
        directory = self._directories[row] = len(self._rows)
        self._rows.append(row)
        self._firsts.append(0)
        self._counts.append(0)
        return directory

    def _drop(self, directory: int) -> None:
        """Forget a directory and all below it; their rows are dead from now on."""
        pending = [directory]
        while pending:
            directory = pending.pop()
            first, count = self._firsts[directory], self._counts[directory]
            pending.extend(below for below in self._directories[first : first + count] if below)
            self._living -= count
            self._rows[directory] = self._counts[directory] = 0

    def _set_link(self, row: int, node: int, nlink: int) -> None:
        start = self._offsets[row] * 8
        self._records.patch(start + NODEID, U64.pack(node))
        self._records.patch(start + _NLINK, U32.pack(nlink))
        self._marks[row] = self._marks[row] | LINKED if nlink > 1 else self._marks[row] & ~LINKED

    def _is_reachable(self, row: int, known: dict[int, bool]) -> bool:
        """Tell whether a row can be reached from the root; ``known`` remembers it of directories."""
        passed: list[int] = []
        while row != ROOT:
            directory = self._parents[row]
            if directory in known:
                break
            passed.append(directory)
            row = self._rows[directory]
        answer = row == ROOT or known[self._parents[row]]
        known.update(dict.fromkeys(passed, answer))
        return answer

    # -- names ---------------------------------------------------------------------------------------------------------

    def _find(self, directory: int, name: bytes) -> int:
        """Return the row of a name of a directory; 0 where there is none."""
        candidates, complete = self._names.candidates(crc32(name, directory))
        for row in candidates:
            if self._parents[row] == directory and self._name(row) == name:
                return row
        return 0 if complete else self._search(directory, name)

    def _name(self, row: int) -> bytes:
        start = self._offsets[row] * 8
        return _name_in(self._records.read(start, self._offsets[row + 1] * 8 - start), 0)

    def _search(self, directory: int, name: bytes) -> int:
        """Find a name among the sorted ones of its directory."""
        rows = range(self._firsts[directory], self._firsts[directory] + self._counts[directory])
        place = bisect_left(rows, name, key=self._name)
        return rows[place] if place < len(rows) and self._name(rows[place]) == name else 0

    def _is_named(self, row: int) -> bool:
        """Tell whether a row in the hash table is alive: `_drop` reaches all directories below."""
        directory = self._parents[row]
        return directory != 0 and self._rows[directory] != 0

    def _all_names(self) -> list[int]:
        """Make the slots of all names from the names."""
        return [
            crc32(self._name(row), directory) << 32 | row
            for row, directory in enumerate(self._parents)
            if directory and self._rows[directory]
        ]


def _name_in(records: bytes, begin: int) -> bytes:
    """Return the name of the record that starts at ``begin``."""
    start = begin + RECORD_NAME
    return records[start : start + records[begin + NAME_LENGTH]]
