"""Listings of directories, packed as the replies to READDIR and READDIRPLUS."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

from layerfs_fuse.attributes import DIRENT, ENTRY_SIZE, PADDING, RECORD_DIRENT, U64, pack_dirent
from layerfs_fuse.union.files import Files
from layerfs_fuse.union.node import HIDDEN, Directory
from layerfs_fuse.union.order import Order
from layerfs_fuse.union.places import fail

_DIRECTORY = 4
_DOTS = 2
"""Offsets 1 and 2 are those behind "." and ".."."""
_NONE = bytes(ENTRY_SIZE)


class Listing(Files):
    """The tree, with what lists directories."""

    def list(self, number: int, offset: int, size: int, *, plus: bool) -> bytes | memoryview:
        """Return the names behind ``offset``, as many as fit into ``size`` bytes; nothing at the end.

        The reply is an array of ``struct fuse_dirent`` or, with ``plus``, ``struct fuse_direntplus``, and then one
        lookup is counted of every node in it. "." and ".." are among them, as no lookups; so is, now and then, a name
        of which the kernel knows the node and its attributes. ``offset`` is 0 or the ``off`` of any element of an
        earlier reply, however long ago.
        """
        directory = self._directories.get(number)
        if directory is None:
            if number > self.index.count or not self.index.is_directory(number):
                fail(errno.ENOTDIR)
            return self._list_pristine(number, offset, size, plus=plus)
        if directory.dead:
            return b""
        if not directory.loaded:
            self._load(directory)
        if directory.order is None:
            directory.order = self._first_order(directory)
        found: list[bytes] = []
        for element in self._elements(directory, offset, plus=plus):
            size -= len(element)
            if size < 0:
                break
            found.append(element)
            if plus:
                self._count_element(element)
        return b"".join(found)

    def names(self, number: int) -> Sequence[tuple[bytes, int]]:
        """Return all names of a directory with the ids of their nodes, of which no lookup is counted."""
        directory = self._directories.get(number)
        if directory is None:
            return [(self.index.name(row), self.index.node(row)) for row in self.index.children(number)]
        if not directory.loaded:
            self._load(directory)
        result: list[tuple[bytes, int]] = []
        for row in self.index.children(directory.below) if directory.below else ():
            name = self.index.name(row)
            if name not in directory.children:
                result.append((name, self.index.node(row)))
        for name in [name for name, known in directory.children.items() if known != HIDDEN]:
            found = self._resolve(directory, name)
            result.append((name, found if isinstance(found, int) else found.id))
        return result

    def _list_pristine(self, row: int, offset: int, size: int, *, plus: bool) -> bytes | memoryview:
        index = self.index
        dots = b"".join(index.dots(row, plus=plus)[offset:]) if offset < _DOTS else b""
        if len(dots) > size:
            dots = index.dots(row, plus=plus)[offset]
            return dots if len(dots) <= size else b""
        if not plus:
            return dots + index.dirents(row, offset, size - len(dots))
        records = index.records(row, offset, size - len(dots))
        if self.upper is not None:
            counts = self._counts
            for one in index.span(row, offset, size - len(dots)):
                counts[index.node(one) if index.linked(one) else one] += 1
        return dots + bytes(records) if dots else records

    def _first_order(self, directory: Directory) -> Order:
        """Give an order to the names that lower layers do not have."""
        order = Order(self.index.count + _DOTS)
        for name, known in directory.children.items():
            if known != HIDDEN and not self._row(directory, name):
                order.add(name)
        return order

    def _count_element(self, element: bytes) -> None:
        number = U64.unpack_from(element)[0]
        if not number:
            return
        if number < len(self._counts):
            self._counts[number] += 1
        else:
            self._nodes[number].lookups += 1

    # -- elements ------------------------------------------------------------------------------------------------------

    def _elements(self, directory: Directory, offset: int, *, plus: bool) -> Iterator[bytes]:
        """Yield the elements behind an offset; they come in the order of their own offsets."""
        yield from self._dots(directory, offset, plus=plus)
        index, children = self.index, directory.children
        order = directory.order
        if order is None:
            return
        rows = index.children(directory.below) if directory.below else range(0)
        for row in range(max(rows.start, offset), rows.stop):
            name = index.name(row)
            known = children.get(name)
            if known is None:
                yield self._row_element(row, plus=plus)
            elif known != HIDDEN:
                yield self._element(directory, name, row + 1, plus=plus)
        for cookie, name in order.after(offset):
            yield self._element(directory, name, cookie, plus=plus)

    def _dots(self, directory: Directory, offset: int, *, plus: bool) -> Iterator[bytes]:
        above = directory if directory.directory is None else directory.directory
        for place, (name, node) in enumerate(((b".", directory), (b"..", above))):
            if place >= offset:
                element = pack_dirent(node.ino, place + 1, _DIRECTORY, name)
                yield _NONE + element if plus else element

    def _row_element(self, row: int, *, plus: bool) -> bytes:
        record = self.index.record(row)
        if self.index.linked(row) and plus:
            patched = self._patched(self.index.node(row))
            if patched is not None:
                return bytes(patched.entry) + record[RECORD_DIRENT:]
        return record if plus else record[RECORD_DIRENT:]

    def _element(self, directory: Directory, name: bytes, cookie: int, *, plus: bool) -> bytes:
        known = directory.children[name]
        node = self._nodes[known] if known > 0 else self._find(directory, name)
        dirent = DIRENT.pack(node.ino, cookie, len(name), node.kind >> 12) + name + PADDING[len(name) & 7]
        if not plus:
            return dirent
        if node.stale or node.past:
            self._refresh(node)
        elif self._known(node):
            # What the kernel has need not be packed here, taken in there, and forgotten once more often.
            return _NONE + dirent
        return bytes(node.entry) + dirent
