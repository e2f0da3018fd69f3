"""Check that what an index says holds together, so that whoever made it, reading it neither fails nor ends nowhere.

Checksums find damage; these checks find files that were made to mislead. They look at every row, so they take longer
than a mount should, and are meant for `layerfs check` and for an index that came from elsewhere.
"""

from __future__ import annotations

import stat
from typing import NoReturn

from layerfs.errors import Corrupt
from layerfs_fuse.attributes import NODEID, RECORD_NAME, RECORD_OFF, U64
from layerfs_fuse.index.format import HEADER_SIZE, NAME_LENGTH, ROOT, ROW_MASK, Section
from layerfs_fuse.index.reader import Index


def check(index: Index) -> None:
    """Verify the checksums, then everything that one number says of another; raise `Corrupt`."""
    index.verify()
    _check_numbers(index)
    _check_records(index)
    _check_tree(index)
    _check_targets(index)


def _fail(what: str) -> NoReturn:
    raise Corrupt(f"the index does not hold together: {what}")


def _check_numbers(index: Index) -> None:
    """Check that no row and no directory is named that is not there."""
    rows, directories = index.count, index.header.directories
    for section, most in (
        (Section.PARENTS, directories),
        (Section.DIRECTORIES, directories),
        (Section.DIRECTORY_ROW, rows),
    ):
        if max(index.section(section)) > most:
            _fail(f"a number in {section.name} is too large")
    if any(slot & ROW_MASK > rows for slot in index.section(Section.SLOTS)):
        _fail("a name leads to a row that is not there")
    links = index.section(Section.LINKS).tolist()
    if any(not 0 < link & ROW_MASK <= rows for link in links) or links != sorted(links):
        _fail("a hard link leads to a row that is not there")
    first, count = index.section(Section.DIRECTORY_FIRST), index.section(Section.DIRECTORY_COUNT)
    if first[0] or count[0]:
        _fail("what is no directory has children")
    if any(start + number > rows + 1 for start, number in zip(first, count, strict=True)):
        _fail("a directory has rows that are not there")
    if any(index.layer(row) >= index.layers for row in range(1, rows + 1)):
        _fail("a row lies in a layer that is not there")


def _check_records(index: Index) -> None:
    """Check that each record is as long as its name, and names nodes that are there."""
    offset, size, _ = index.header.places[Section.RECORDS]
    data = index.section(Section.RECORDS)
    offsets = index.section(Section.OFFSETS).tolist()
    if offsets[1] != HEADER_SIZE >> 3 or offset != HEADER_SIZE:
        _fail("the records do not start where they should")
    for row in range(1, index.count + 1):
        start = offsets[row] * 8 - HEADER_SIZE
        if not 0 <= start <= size - RECORD_NAME:
            _fail(f"row {row} has no record")
        if offsets[row + 1] - offsets[row] != RECORD_NAME + data[start + NAME_LENGTH] + 7 >> 3:
            _fail(f"the record of row {row} is not as long as its name")
        if not 0 < U64.unpack_from(data, start + NODEID)[0] <= index.count:
            _fail(f"row {row} has a node that is not there")
        if U64.unpack_from(data, start + RECORD_OFF)[0] != row + 1:
            _fail(f"the position behind row {row} is another row's")
    if offsets[-1] * 8 - HEADER_SIZE > size:
        _fail("the last record has no end")


def _check_tree(index: Index) -> None:
    """Check that the directories make one tree, in which names are sorted and found."""
    if not index.is_directory(ROOT) or index.parent(ROOT) != ROOT or index.name(ROOT):
        _fail("the root is none")
    pending, living = [ROOT], 1
    while pending:
        parent = pending.pop()
        last = b""
        for row in index.children(parent):
            living += 1
            name = index.name(row)
            if living > index.count or row == ROOT or index.parent(row) != parent:
                _fail("the directories are no tree")
            if name <= last or b"/" in name or b"\0" in name or name in (b".", b".."):
                _fail(f"row {row} has a name that cannot be there")
            if index.child(parent, name) != row:
                _fail(f"row {row} is not found by its name")
            _check_row(index, row)
            if index.is_directory(row):
                pending.append(row)
            last = name
    if living != index.living:
        _fail(f"{living:,} names live, and {index.living:,} should")


def _check_row(index: Index, row: int) -> None:
    if row not in index.aliases(row):
        _fail(f"row {row} is none of its own names")
    mode = index.mode(row)
    if stat.S_ISDIR(mode) != index.is_directory(row):
        _fail(f"row {row} is half a directory")
    if stat.S_ISLNK(mode) and not index.has_target(row):
        _fail(f"the symbolic link of row {row} leads nowhere")


def _check_targets(index: Index) -> None:
    strings = index.section(Section.STRINGS)
    for target in index.section(Section.TARGETS):
        start = target & ROW_MASK
        if start + 2 > len(strings) or start + 2 + int.from_bytes(strings[start : start + 2], "little") > len(strings):
            _fail("a symbolic link leads out of the file")
