"""A union that is held to a quota: what comes to its upper directory is counted, and refused where there is no room.

What counts are the blocks and inodes of the upper directory, whiteouts and unlinked open files among them, as for the
project quota of a file system. A union without a quota is a `Union`, and none of this costs it anything.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from layerfs import tree
from layerfs.contract import Usage
from layerfs_fuse.attributes import BLOCKS, ENTRY_ATTRIBUTES, U64
from layerfs_fuse.index.reader import Index
from layerfs_fuse.union.handle import Handle
from layerfs_fuse.union.ledger import Ledger
from layerfs_fuse.union.node import HIDDEN, Directory, Node
from layerfs_fuse.union.places import fail
from layerfs_fuse.union.requests import Caller, Options
from layerfs_fuse.union.union import Union
from layerfs_fuse.union.upper import Upper, proc

_SECTOR = 512
"""Bytes of a unit of ``st_blocks`` (stat(3type))."""
_BLOCKS = ENTRY_ATTRIBUTES + BLOCKS
_FREEING = 0x02 | 0x08 | 0x20
"""``FALLOC_FL_PUNCH_HOLE``, ``COLLAPSE_RANGE`` and ``INSERT_RANGE``, which take no blocks (fallocate(2))."""


class CountedUpper(Upper):
    """An upper directory of which the whiteouts are counted."""

    ledger: Ledger

    def hide(self, directory: int, name: bytes) -> None:
        """Make a whiteout, if there is room for an inode; deleting needs no bytes, whatever there is too much of."""
        self._require_inode()
        super().hide(directory, name)
        self.ledger.add(0, 1)

    def leave_whiteout(self, old_dir: int, old: bytes, new_dir: int, new: bytes) -> None:
        """Rename and leave a whiteout, if there is room for an inode."""
        self._require_inode()
        super().leave_whiteout(old_dir, old, new_dir, new)
        self.ledger.add(0, 1)

    def _require_inode(self) -> None:
        if not self.ledger.fits_inode():
            fail(errno.EDQUOT)


class CountedUnion(Union):
    """The union, held to the quota that the file ``quota`` says (`layerfs_fuse.union.ledger`)."""

    def __init__(
        self, index: Index, layers: Sequence[int], upper: CountedUpper, options: Options, *, quota: Path
    ) -> None:
        """Borrow all of them but the file, as `Union` does."""
        self._block = os.fstatvfs(upper.fd).f_frsize
        self._directory_size = _size(os.fstat(upper.fd)) and self._block
        self._path_of_upper = Path(os.fsdecode(os.readlink(proc(upper.fd))))
        super().__init__(index, layers, upper, options)
        self.ledger = upper.ledger = Ledger(quota, self._measure)

    def statfs(self) -> os.statvfs_result:
        """Return the state of the file system, no larger than the quota."""
        return self.ledger.statvfs(super().statfs())

    def has_nameless(self) -> bool:
        """Tell whether there are files without a name, which the kernel knows still."""
        return any(True for _ in self._nameless())

    def _nameless(self) -> Iterator[Node]:
        return (node for node in self._nodes.values() if node.upper and node.directory is None and node.fd >= 0)

    def _measure(self) -> Usage:
        nameless = [_size(os.fstat(node.fd)) for node in self._nameless()]
        return tree.usage(self._path_of_upper) + Usage(sum(nameless), len(nameless))

    # -- data ----------------------------------------------------------------------------------------------------------

    def write(self, handle: Handle, data: memoryview, offset: int) -> int:
        """Write as much as there is room for; raise ``OSError`` (EDQUOT) where that is nothing."""
        count = self._fitting(handle, offset, len(data))
        if not count and data:
            fail(errno.EDQUOT)
        with self._changing(handle):
            return handle.write(data[:count], offset)

    def allocate(self, handle: Handle, mode: int, offset: int, length: int) -> None:
        """Change the space of a range, if there is room for all of it (fallocate(2))."""
        if not mode & _FREEING and self._fitting(handle, offset, length) < length:
            fail(errno.EDQUOT)
        with self._changing(handle):
            handle.allocate(mode, offset, length)

    def copy_range(self, source: Handle, offset: int, target: Handle, to: int, length: int) -> int:
        """Copy as many bytes as there is room for."""
        length = min(length, max(0, _status(source).st_size - offset))
        count = self._fitting(target, to, length)
        if not count and length:
            fail(errno.EDQUOT)
        with self._changing(target):
            return source.copy_range(offset, target, to, count)

    @contextmanager
    def _changing(self, handle: Handle) -> Iterator[None]:
        before = _size(_status(handle))
        try:
            yield
        finally:
            self.ledger.add(_size(_status(handle)) - before)

    def _fitting(self, handle: Handle, offset: int, length: int) -> int:
        """Return how many of the bytes of a range can be written: what has blocks already needs none."""
        block = self._block if handle.content is None else 1 << handle.content.header.shift
        first, last = offset // block * block, -(-(offset + length) // block) * block
        if self.ledger.fits(last - first):
            return length
        if handle.content is not None:
            return 0
        room, status = self.ledger.room(), os.fstat(handle.fd)
        whole = -(-status.st_size // block) * block
        if room >= 0 and last <= whole <= _size(status):
            return length
        return min(length, _reached(handle.fd, (first, last), room, block) - offset)

    # -- copy-up -------------------------------------------------------------------------------------------------------

    def _copy_up_directory(self, row: int, parent: Directory) -> Directory:
        self.ledger.require(self._directory_size, 1)
        with self._growing(parent):
            directory = super()._copy_up_directory(row, parent)
        self.ledger.add(self._taken(directory), 1)
        return directory

    def _copy_up(self, row: int, size: int | None = None, mode: int | None = None) -> Node:
        (sectors,) = U64.unpack_from(self.index.entry(row), _BLOCKS)
        needed = int(sectors) * _SECTOR
        if size is not None:
            needed = min(needed, -(-size // self._block) * self._block)
        self.ledger.require(0 if self._redirects_from(needed) else needed, 1)
        node = super()._copy_up(row, size, mode)
        self.ledger.add(_size(self._status(node)), 1)
        return node

    def _bring_in(self, fresh: bytes, places: list[tuple[Directory, bytes]]) -> None:
        with self._growing(*(parent for parent, _ in places)):
            super()._bring_in(fresh, places)

    # -- names ---------------------------------------------------------------------------------------------------------

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[bytes | bytearray, Handle]:
        """Make a regular file and open it, if there is room for an inode."""
        with self._naming(parent):
            entry, handle = super().create(parent, name, mode, flags, caller)
        self.ledger.add(_size(os.fstat(handle.fd)), 1)
        return entry, handle

    def temporary(self, parent: int, mode: int, flags: int, caller: Caller) -> tuple[bytes | bytearray, Handle]:
        """Make a regular file without a name, if there is room for an inode."""
        with self._naming(parent):
            entry, handle = super().temporary(parent, mode, flags, caller)
        self.ledger.add(_size(os.fstat(handle.fd)), 1)
        return entry, handle

    def make_node(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> bytes | bytearray:
        """Make a regular file, a FIFO, a socket or a device, if there is room for an inode."""
        with self._naming(parent):
            entry = super().make_node(parent, name, mode, rdev, caller)
        return self._entered(entry)

    def make_symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> bytes | bytearray:
        """Make a symbolic link, if there is room for an inode."""
        with self._naming(parent):
            entry = super().make_symlink(parent, name, target, caller)
        return self._entered(entry)

    def make_directory(self, parent: int, name: bytes, mode: int, caller: Caller) -> bytes | bytearray:
        """Make a directory, if there is room for it."""
        with self._naming(parent, self._directory_size):
            entry = super().make_directory(parent, name, mode, caller)
        return self._entered(entry)

    def link(self, number: int, parent: int, name: bytes) -> bytes | bytearray:
        """Give an inode one more name."""
        with self._naming(parent, inodes=0):
            return super().link(number, parent, name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        """Rename; where nothing may come to the upper directory, nothing may be copied up for it either."""
        self.ledger.require(0)
        super().rename(parent, name, new_parent, new_name, flags)

    def _move_on_disk(
        self, directory: Directory, name: bytes, new_directory: Directory, new_name: bytes, node: Node
    ) -> None:
        with self._growing(directory, new_directory):
            super()._move_on_disk(directory, name, new_directory, new_name, node)

    def _hide(self, directory: Directory, name: bytes) -> None:
        with self._growing(directory):
            super()._hide(directory, name)

    @contextmanager
    def _naming(self, parent: int, size: int = 0, inodes: int = 1) -> Iterator[None]:
        self.ledger.require(size, inodes)
        with self._growing(self._changeable(parent)):
            yield

    @contextmanager
    def _growing(self, *directories: Directory) -> Iterator[None]:
        before = sum(map(self._taken, directories))
        yield
        self.ledger.add(sum(map(self._taken, directories)) - before)

    def _taken(self, directory: Directory) -> int:
        return _size(os.fstat(self._place(directory)))

    def _entered(self, entry: bytes | bytearray) -> bytes | bytearray:
        (sectors,) = U64.unpack_from(entry, _BLOCKS)
        self.ledger.add(int(sectors) * _SECTOR, 1)
        return entry

    # -- what goes -----------------------------------------------------------------------------------------------------

    def _remove_upper_directory(self, directory: Directory, name: bytes, node: Directory) -> None:
        own, whiteouts = self._taken(node), sum(known == HIDDEN for known in node.children.values())
        super()._remove_upper_directory(directory, name, node)
        self.ledger.add(-own, -1 - whiteouts)

    def open(self, number: int, flags: int) -> Handle:
        """Open a regular file; O_TRUNC makes room."""
        handle = super().open(number, flags)
        if flags & os.O_TRUNC:
            self.ledger.doubt()
        return handle

    def remove_xattr(self, number: int, name: bytes) -> None:
        """Remove an attribute."""
        super().remove_xattr(number, name)
        self.ledger.doubt()

    def _touch(self, directory: Directory) -> None:
        super()._touch(directory)
        self.ledger.doubt()

    def _drop(self, node: Node) -> None:
        nameless = node.upper and node.directory is None and node.fd >= 0
        status = os.fstat(node.fd) if nameless else None
        super()._drop(node)
        if status is not None and node.fd < 0 and not status.st_nlink:
            self.ledger.add(-_size(status), -1)

    # -- attributes ----------------------------------------------------------------------------------------------------

    def set_xattr(self, number: int, name: bytes, value: bytes, flags: int = 0, *, kill_sgid: bool = False) -> None:
        """Set an attribute, if there is room for it."""
        if flags & os.XATTR_REPLACE:
            self.get_xattr(number, name)
        self.ledger.require(len(value) // self._block * self._block)
        node = self._changed(number)
        before = _size(self._status(node))
        super().set_xattr(number, name, value, flags, kill_sgid=kill_sgid)
        self.ledger.add(_size(self._status(node)) - before)

    def _cut(self, node: Node, size: int) -> None:
        before = _size(self._status(node))
        super()._cut(node, size)
        self.ledger.add(_size(self._status(node)) - before)


def _size(status: os.stat_result) -> int:
    return status.st_blocks * _SECTOR


def _status(handle: Handle) -> os.stat_result:
    return os.fstat(handle.fd) if handle.content is None else handle.content.status()


def _reached(fd: int, span: tuple[int, int], room: int, block: int) -> int:
    """Return up to where a range of whole blocks can be written with ``room`` bytes for those that it has not yet."""
    at, end = span
    while at < end:
        data = _seek(fd, at, os.SEEK_DATA, end) // block * block
        hole = min(data, end) - at
        if hole > room:
            return at + max(0, room) // block * block
        if data >= end:
            break
        room -= max(0, hole)
        at = -(-_seek(fd, max(at, data), os.SEEK_HOLE, end) // block) * block
    return end


def _seek(fd: int, offset: int, whence: int, end: int) -> int:
    """Return where the next data or hole is, ``end`` where there is none."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end
