"""The sections of an index while it is being built: those of the parent's index, changed in memory, and the records.

Records go to the new file as they are made (`Records`); everything else is small enough to be kept in memory until the
end, some 40 bytes for each row.
"""

from __future__ import annotations

import stat
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from zlib import crc32

from layerfs_fuse.attributes import ENTRY_ATTRIBUTES, NLINK, NODEID, RECORD_NAME, RECORD_OFF, U32, U64, pack_record
from layerfs_fuse.index import format as layout
from layerfs_fuse.index.format import (
    HAS_XATTRS,
    HEADER_SIZE,
    LINKED,
    PROBES,
    ROOT,
    ROW_MASK,
    TOMBSTONE,
    Layer,
    Section,
)
from layerfs_fuse.index.reader import Index
from layerfs_fuse.index.records import Records
from layerfs_fuse.index.scan import Found, is_opaque

_LOAD = 0.65
"""How full the hash table may get; made anew, it is half full."""
_NLINK = ENTRY_ATTRIBUTES + NLINK


class Tables:
    """Everything that an index holds, open to change. Row and directory 0 are none."""

    def __init__(self, records: Records) -> None:
        """Start without even a root; `load` or `adopt` an index, or `set_root`."""
        self.records = records
        self.layers: list[Layer] = []
        self.living = 0
        self.offsets = array("I", [HEADER_SIZE >> 3, HEADER_SIZE >> 3])
        self.parents = array("I", [0])
        self.directories = array("I", [0])
        self.marks = array("H", [0])
        self.rows = array("I", [ROOT])  # the directory in which the root lies is 0, and leads to the root again
        self.firsts = array("I", [0])
        self.counts = array("I", [0])
        self.slots = array("Q", bytes(8 * (PROBES + 1)))
        self.targets = array("Q")
        self.strings = bytearray()
        self._size = 1
        self._used = 0
        self._pending = array("Q")
        self._groups: dict[int, list[int]] = {}
        self._group_of: dict[int, int] = {}
        self._next_group = 0
        self._group_by_inode: dict[tuple[int, int], int] = {}
        self._below: list[tuple[bytes, int, Found]] = []

    # -- from an index, to an index ------------------------------------------------------------------------------------

    def load(self, index: Index) -> None:
        """Take over everything of an index, at the speed of memory, dead rows too."""
        self.layers = list(index.layer_table)
        self.living = index.living
        for name, section in (
            ("offsets", Section.OFFSETS),
            ("parents", Section.PARENTS),
            ("directories", Section.DIRECTORIES),
            ("marks", Section.MARKS),
            ("rows", Section.DIRECTORY_ROW),
            ("firsts", Section.DIRECTORY_FIRST),
            ("counts", Section.DIRECTORY_COUNT),
            ("slots", Section.SLOTS),
            ("targets", Section.TARGETS),
        ):
            items = array(layout.TYPES[section])
            items.frombytes(index.section(section).cast("B"))
            setattr(self, name, items)
        self.strings = bytearray(index.section(Section.STRINGS))
        self._size = len(self.slots) - PROBES
        self._used = len(self.slots) - self.slots.count(0)
        for link in index.section(Section.LINKS):
            self._link(link & ROW_MASK, link >> 32)
        self._next_group = len(self.offsets)  # the groups loaded are known by their first rows
        self.records.append(index.section(Section.RECORDS))

    def adopt(self, index: Index) -> None:
        """Take over what lives of an index, block by block, and leave its dead rows behind."""
        self.layers = list(index.layer_table)
        self._next_group = index.count + 1
        self._append(index.record(ROOT), 0, index.marks(ROOT))
        pending = [(ROOT, self._new_directory(ROOT))]
        while pending:
            old_parent, directory = pending.pop()
            self.firsts[directory] = len(self.parents)
            rows = index.children(old_parent)
            self.counts[directory] = len(rows)
            for old in rows:
                row = self._adopt_row(index, old, directory)
                if index.is_directory(old):
                    pending.append((old, self._new_directory(row)))
        self.settle()

    def _adopt_row(self, index: Index, old: int, directory: int) -> int:
        name, marks = index.name(old), index.marks(old)
        row = self._append(index.record(old), directory, marks)
        self._pending.append(crc32(name, directory) << 32 | row)
        if marks & LINKED:
            self._link(row, index.node(old))
        if stat.S_ISLNK(index.mode(old)):
            self._set_target(row, index.target(old))
        return row

    def finish(self, identity: bytes) -> None:
        """Write all other sections behind the records, and the header; the file is whole then, and not synced."""
        contents: Mapping[Section, bytearray | array[int] | bytes] = {
            Section.OFFSETS: self.offsets,
            Section.PARENTS: self.parents,
            Section.DIRECTORIES: self.directories,
            Section.MARKS: self.marks,
            Section.DIRECTORY_ROW: self.rows,
            Section.DIRECTORY_FIRST: self.firsts,
            Section.DIRECTORY_COUNT: self.counts,
            Section.SLOTS: self.slots,
            Section.LINKS: array("Q", sorted(self._links())),
            Section.TARGETS: self.targets,
            Section.STRINGS: self.strings,
            Section.LAYERS: b"".join(layout.LAYER.pack(*layer) for layer in self.layers),
        }
        places = [self.records.place()]
        places.extend(self.records.add_section(contents[section]) for section in list(Section)[1:])
        header = layout.Header(
            self.records.end,
            len(self.parents) - 1,
            self.living,
            len(self.rows) - 1,
            len(self.layers),
            identity.ljust(layout.IDENTITY_SIZE, b"\0"),
            tuple(places),
        )
        self.records.write_header(layout.pack_header(header))

    def _links(self) -> Iterable[int]:
        for rows in self._groups.values():
            if len(rows) > 1:
                node = min(rows)
                yield from (node << 32 | row for row in rows)

    @property
    def wasteful(self) -> bool:
        """Tell whether there are more dead rows than living ones."""
        return layout.is_wasteful(len(self.parents) - 1, self.living)

    # -- changes by one layer ------------------------------------------------------------------------------------------

    def begin_layer(self, layer: Layer) -> None:
        """Add one more layer; what is set from now on lies in it."""
        self.layers.append(layer)
        self._group_by_inode = {}

    def set_root(self, found: Found, ino: int) -> int:
        """Give the root what a layer says of it; return its directory."""
        if len(self.parents) > ROOT:
            self._replace(ROOT, b"", found, ino)
            return self.directories[ROOT]
        row = self._append(pack_record(ROOT, ino, ROOT + 1, b"", found.status, 2), 0, self._marks(found))
        return self._new_directory(row)

    def merge(
        self, directory: int, found: Mapping[bytes, tuple[Found, int]], hidden: Iterable[bytes]
    ) -> list[tuple[bytes, int, Found]]:
        """Put into a directory what a layer brings, with the inode numbers to show, and take out what it hides.

        Return the directories among it, to be merged next.
        """
        self._below = []
        if self.counts[directory]:
            gone = {row for name in hidden if (row := self._find(directory, name))}
            fresh: list[bytes] = []
            for name, (one, ino) in found.items():
                if row := self._find(directory, name):
                    self._replace(row, name, one, ino)
                else:
                    fresh.append(name)
            if gone or fresh:
                self._rewrite(directory, gone, sorted(fresh), found)
        elif found:
            self.firsts[directory] = len(self.parents)
            self.counts[directory] = len(found)
            for name in sorted(found):
                self._add(directory, name, *found[name])
        first, count = self.firsts[directory], self.counts[directory]
        subdirectories = count - self.directories[first : first + count].count(0)
        self.records.patch(self.offsets[self.rows[directory]] * 8 + _NLINK, U32.pack(2 + subdirectories))
        return self._below

    def settle(self) -> None:
        """Bring the hash table and the hard links up to date at the end of a layer."""
        self._insert_pending()
        self._settle_links()

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _marks(self, found: Found) -> int:
        return len(self.layers) - 1 | (HAS_XATTRS if found.xattrs else 0)

    def _append(self, record: bytes | bytearray | memoryview, directory: int, marks: int) -> int:
        """Add a row behind all others, and make its record say so."""
        row = len(self.parents)
        start = self.records.append(record)
        if row != ROOT:
            self.records.patch(start + NODEID, U64.pack(row))
            self.records.patch(start + RECORD_OFF, U64.pack(row + 1))
        self.offsets.append(self.records.end >> 3)
        self.parents.append(directory)
        self.directories.append(0)
        self.marks.append(marks)
        self.living += 1
        return row

    def _add(self, directory: int, name: bytes, found: Found, ino: int) -> None:
        """Add a name that is new to a directory."""
        row = len(self.parents)
        self.records.append(pack_record(row, ino, row + 1, name, found.status, 1))
        self.offsets.append(self.records.end >> 3)
        self.parents.append(directory)
        self.directories.append(0)
        self.marks.append(self._marks(found))
        self.living += 1
        self._pending.append(crc32(name, directory) << 32 | row)
        self._complete(row, name, found)

    def _complete(self, row: int, name: bytes, found: Found) -> None:
        """Do what only directories, symbolic links and files with several names need."""
        status = found.status
        if stat.S_ISDIR(status.st_mode):
            if not self.directories[row]:
                self._new_directory(row)
            self._below.append((name, self.directories[row], found))
            return
        if stat.S_ISLNK(status.st_mode):
            self._set_target(row, found.target)
        if status.st_nlink > 1:
            key = (status.st_dev, status.st_ino)
            group = self._group_by_inode.get(key)
            if group is None:
                group = self._group_by_inode[key] = self._next_group
                self._next_group += 1
            self._link(row, group)

    def _replace(self, row: int, name: bytes, found: Found, ino: int) -> None:
        """Make a row what an upper layer says that its name is."""
        directory = self.directories[row]
        if directory and row != ROOT and (not stat.S_ISDIR(found.status.st_mode) or is_opaque(found)):
            self._drop(directory)
            self.directories[row] = 0
        group = self._group_of.pop(row, None)
        if group is not None:
            self._groups[group].remove(row)
        self.marks[row] = self._marks(found)
        self.records.patch(self.offsets[row] * 8, pack_record(row, ino, row + 1, name, found.status, 1))
        self._complete(row, name, found)

    def _rewrite(
        self, directory: int, gone: set[int], fresh: list[bytes], found: Mapping[bytes, tuple[Found, int]]
    ) -> None:
        """Write the block of a directory anew behind all others, without some rows and with some new names."""
        first, count = self.firsts[directory], self.counts[directory]
        start = self.offsets[first] * 8
        block = self.records.read(start, self.offsets[first + count] * 8 - start)
        self.firsts[directory] = len(self.parents)
        self.counts[directory] = count - len(gone) + len(fresh)
        fresh.reverse()
        for old in range(first, first + count):
            begin = self.offsets[old] * 8 - start
            if old in gone:
                self._remove(old, directory, self._name(block, begin))
                continue
            name = self._name(block, begin)
            while fresh and fresh[-1] < name:
                self._add(directory, fresh[-1], *found[fresh.pop()])
            self._move(old, directory, name, block[begin : self.offsets[old + 1] * 8 - start])
        while fresh:
            self._add(directory, fresh[-1], *found[fresh.pop()])

    @staticmethod
    def _name(block: bytes, begin: int) -> bytes:
        begin += RECORD_NAME
        return block[begin : begin + block[begin - RECORD_NAME + layout.NAME_LENGTH]]

    def _move(self, old: int, directory: int, name: bytes, record: bytes) -> None:
        row = self._append(record, directory, self.marks[old])
        self.living -= 1
        self._set_slot(crc32(name, directory), old, row)
        self.parents[old] = 0
        if own := self.directories[old]:
            self.directories[old] = 0
            self.directories[row] = own
            self.rows[own] = row
        group = self._group_of.pop(old, None)
        if group is not None:
            self._groups[group].remove(old)
            self._link(row, group)
        place = bisect_left(self.targets, old << 32)
        if place < len(self.targets) and self.targets[place] >> 32 == old:
            self.targets.append(row << 32 | self.targets[place] & ROW_MASK)

    def _remove(self, row: int, directory: int, name: bytes) -> None:
        self._set_slot(crc32(name, directory), row, 0)
        self.parents[row] = 0
        self.living -= 1
        if self.directories[row]:
            self._drop(self.directories[row])
            self.directories[row] = 0

    # -- directories, symbolic links, hard links -----------------------------------------------------------------------

    def _new_directory(self, row: int) -> int:
        directory = self.directories[row] = len(self.rows)
        self.rows.append(row)
        self.firsts.append(0)
        self.counts.append(0)
        return directory

    def _drop(self, directory: int) -> None:
        """Forget a directory and all below it; their rows are dead from now on."""
        pending = [directory]
        while pending:
            directory = pending.pop()
            first, count = self.firsts[directory], self.counts[directory]
            pending.extend(below for below in self.directories[first : first + count] if below)
            self.living -= count
            self.rows[directory] = self.counts[directory] = 0

    def _set_target(self, row: int, target: bytes) -> None:
        value = row << 32 | len(self.strings)
        self.strings += len(target).to_bytes(2, "little") + target
        place = bisect_left(self.targets, row << 32)
        if place < len(self.targets) and self.targets[place] >> 32 == row:
            self.targets[place] = value
        else:
            self.targets.insert(place, value)

    def _link(self, row: int, group: int) -> None:
        self._groups.setdefault(group, []).append(row)
        self._group_of[row] = group

    def _settle_links(self) -> None:
        """Give all living names of an inode the first one's row as node, and the number of names as link count."""
        alive = {0: True}
        for group, rows in list(self._groups.items()):
            living = sorted(row for row in rows if self._is_alive(row, alive))
            for row in set(rows).difference(living):
                del self._group_of[row]
            self._groups[group] = living
            for row in living:
                self._set_link(row, living[0], len(living))
            if len(living) < 2:  # noqa: PLR2004  an inode with one name is none with several
                del self._groups[group]
                for row in living:
                    del self._group_of[row]

    def _set_link(self, row: int, node: int, nlink: int) -> None:
        start = self.offsets[row] * 8
        self.records.patch(start + NODEID, U64.pack(node))
        self.records.patch(start + _NLINK, U32.pack(nlink))
        self.marks[row] = self.marks[row] | LINKED if nlink > 1 else self.marks[row] & ~LINKED

    def _is_alive(self, row: int, alive: dict[int, bool]) -> bool:
        """Tell whether a row can be reached from the root; ``alive`` remembers it of directories."""
        passed: list[int] = []
        while True:
            if row == ROOT:
                answer = True
                break
            directory = self.parents[row]
            if not directory or directory in alive:
                answer = bool(directory) and alive[directory]
                break
            passed.append(directory)
            row = self.rows[directory]
            if not row:
                answer = False
                break
        alive.update(dict.fromkeys(passed, answer))
        return answer

    # -- the hash table ------------------------------------------------------------------------------------------------

    def _find(self, directory: int, name: bytes) -> int:
        """Return the row of a name of a directory; 0 where there is none."""
        value = crc32(name, directory)
        home = value * self._size >> 32
        for found in self.slots[home : home + PROBES]:
            if not found:
                return 0
            row = found & ROW_MASK
            if found >> 32 == value and self.parents[row] == directory and self._has_name(row, name):
                return row
        return self._search(directory, name)

    def _has_name(self, row: int, name: bytes) -> bool:
        start = self.offsets[row] * 8
        record = self.records.read(start, RECORD_NAME + len(name))
        return self._name(record, 0) == name

    def _search(self, directory: int, name: bytes) -> int:
        first, count = self.firsts[directory], self.counts[directory]
        for row in range(first, first + count):
            if self._has_name(row, name):
                return row
        return 0

    def _set_slot(self, value: int, old: int, row: int) -> None:
        """Make the slot of a row name another one, or none."""
        home = value * self._size >> 32
        wanted = value << 32 | old
        for slot in range(home, home + PROBES):
            if self.slots[slot] == wanted:
                self.slots[slot] = value << 32 | row if row else TOMBSTONE
                return

    def _insert_pending(self) -> None:
        pending, self._pending = self._pending, array("Q")
        if self._used + len(pending) > self._size * _LOAD:
            pending = array("Q", [value for value in self.slots if value & ROW_MASK and self._in_use(value)]) + pending
            self._size = max(16, 2 * len(pending))
            self.slots = array("Q", bytes(8 * (self._size + PROBES)))
            self._used = 0
        self._used += len(pending)
        slots, size = self.slots, self._size
        for value in pending:
            home = (value >> 32) * size >> 32
            for slot in range(home, home + PROBES):
                if not slots[slot]:
                    slots[slot] = value
                    break

    def _in_use(self, value: int) -> bool:
        return self.rows[self.parents[value & ROW_MASK]] != 0
