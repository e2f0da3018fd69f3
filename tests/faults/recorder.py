"""A disk that remembers in which order it was written to and flushed, so that the power can fail at any moment of it.

A small FUSE file system shows two files: ``disk``, which a loop device makes a disk of, and ``told``, into which a load
says what it has been told is done. One log has all of it in order. `Replay` then makes what a real disk may hold after
a power cut: everything before the last flush, and any part of what came after that, sectors torn.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import struct
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from layerfs.errors import Busy
from layerfs.kernel import mounting as core_mounting
from layerfs.kernel import syscalls
from layerfs.kernel.children import fork
from layerfs_fuse import mounting
from layerfs_fuse.attributes import ATTRIBUTES, ENTRY, FOREVER
from layerfs_fuse.mounting import Attachment
from layerfs_fuse.protocol import ATTR_OUT, HEADER, OPEN_DIRECT_IO, OPEN_OUT, READ_IN, ROOT, WRITE_IN, WRITE_OUT, Opcode
from layerfs_fuse.server import Channel, Header, Reply
from layerfs_fuse.session import Wishes

DISK, TOLD = 2, 3
_NODES = {b"disk": DISK, b"told": TOLD}
_RECORD = struct.Struct("=BQQ")
"""Kind, offset, length; the data follows."""
SECTOR = 512
_TRIES = 200


class Kind(IntEnum):
    """What a record is: a write of the disk, a flush of it, or words of the load."""

    WRITE = 0
    FLUSH = 1
    TOLD = 2


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the log, and where its data lies there."""

    kind: Kind
    offset: int
    place: int
    length: int


class _Recorder:
    """The file system: one thread, so there is one order."""

    def __init__(self, channel: Channel, image: Path, log: Path) -> None:
        self._channel = channel
        self._image = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._image).st_size

    def serve(self) -> None:
        """Answer until it is unmounted."""
        self._channel.serve(
            {
                Opcode.LOOKUP: self._look_up,
                Opcode.FORGET: lambda _: None,
                Opcode.BATCH_FORGET: lambda _: None,
                Opcode.GETATTR: self._attributes,
                Opcode.SETATTR: self._attributes,
                Opcode.OPEN: self._open,
                Opcode.READ: self._read,
                Opcode.WRITE: self._write,
                Opcode.FSYNC: self._flush,
                Opcode.FLUSH: lambda _: 0,
                Opcode.RELEASE: lambda _: 0,
                Opcode.FALLOCATE: lambda _: -errno.EOPNOTSUPP,  # a disk without discard
            }
        )

    def _status(self, node: int) -> bytes:
        mode = stat.S_IFDIR | 0o700 if node == ROOT else stat.S_IFREG | 0o600
        size = self._size if node == DISK else 0
        return ATTRIBUTES.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _look_up(self, header: Header) -> Reply:
        node = _NODES.get(bytes(self._channel.body[HEADER.size : header[0] - 1]))
        if node is None:
            return -errno.ENOENT
        return ENTRY.pack(node, 0, FOREVER, FOREVER, 0, 0, self._status(node))

    def _attributes(self, header: Header) -> Reply:
        return ATTR_OUT.pack(FOREVER, 0, 0) + self._status(header[3])

    def _open(self, header: Header) -> Reply:
        return OPEN_OUT.pack(0, OPEN_DIRECT_IO if header[3] == TOLD else 0, 0)

    def _read(self, _: Header) -> Reply:
        offset, size = READ_IN.unpack_from(self._channel.body, HEADER.size)
        return os.pread(self._image, size, offset)

    def _write(self, header: Header) -> Reply:
        body = self._channel.body
        _, offset, size, *_ = WRITE_IN.unpack_from(body, HEADER.size)
        data = body[HEADER.size + WRITE_IN.size :][:size]
        kind = Kind.WRITE if header[3] == DISK else Kind.TOLD
        os.writev(self._log, (_RECORD.pack(kind, offset, size), data))
        if kind is Kind.WRITE:
            os.pwrite(self._image, data, offset)
        return WRITE_OUT.pack(size, 0)

    def _flush(self, header: Header) -> Reply:
        if header[3] == DISK:
            os.write(self._log, _RECORD.pack(Kind.FLUSH, 0, 0))
        return 0


@contextmanager
def recording(place: Path, image: Path, log: Path) -> Iterator[Path]:
    """Show ``image`` as the file "disk" in the directory that is given; every write goes into ``log``.

    The server ends with this process, so that nobody waits for it.
    """
    place.mkdir()
    device = mounting.attach(place, Attachment())
    child = fork()
    if child == 0:
        try:
            syscalls.die_with_parent(signal.SIGKILL)
            channel = Channel(device)
            if channel.negotiate(Wishes(passthrough=False, writeback=False)) is not None:
                _Recorder(channel, image, log).serve()
        finally:
            os._exit(0)
    os.close(device)
    try:
        yield place
    finally:
        try:
            _unmount(place)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _unmount(place: Path) -> None:
    """Unmount it when the loop device lets go of its file, which it does some moments after its last user."""
    for _ in range(_TRIES):
        try:
            core_mounting.unmount(place)
        except Busy:
            time.sleep(0.05)
        else:
            return
    core_mounting.unmount(place, lazy=True)
    raise AssertionError(f"{place} stays in use")


class Replay:
    """What was recorded, and the images of a disk that lost its power meanwhile; ``base`` is the disk at the start."""

    def __init__(self, base: Path, log: Path) -> None:
        self._base = base
        self._data = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
        self.records = list(_records(self._data))
        self._flushes = [number for number, record in enumerate(self.records) if record.kind is Kind.FLUSH]

    def close(self) -> None:
        """Close the log."""
        os.close(self._data)

    def told(self, end: int) -> str:
        """Return what the load had said before the record ``end``."""
        return "".join(self._bytes(it).decode() for it in self.records[:end] if it.kind is Kind.TOLD)

    def flushed(self, end: int) -> int:
        """Return how many of the records before ``end`` are surely on the disk: those before the last flush."""
        before = bisect_right(self._flushes, end - 1)
        return self._flushes[before - 1] if before else 0

    def cut(self, image: Path, end: int, chance: random.Random) -> str:
        """Make ``image`` what the disk may hold when the power fails before the record ``end``; say how it is made."""
        sure = self.flushed(end)
        doubtful = [record for record in self.records[sure:end] if record.kind is Kind.WRITE]
        share = chance.choice([0.0, 0.25, 0.5, 0.75, 1.0])
        _copy_sparse(self._base, image)
        descriptor = os.open(image, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for record in self.records[:sure]:
                if record.kind is Kind.WRITE:
                    os.pwrite(descriptor, self._bytes(record), record.offset)
            lost = [self._keep_some(descriptor, record, share, chance) for record in doubtful]
        finally:
            os.close(descriptor)
        return f"cut before record {end}: {sum(lost)} of {len(doubtful)} writes since the last flush lost or torn"

    def _keep_some(self, descriptor: int, record: Record, share: float, chance: random.Random) -> bool:
        """Write a record that was not flushed, or not, or some sectors of it; tell whether something is missing."""
        torn = chance.random() < 0.1 and share < 1
        if not torn and chance.random() >= share:
            return True
        data = self._bytes(record)
        for start in range(0, len(data), SECTOR) if torn else (0,):
            if not torn or chance.random() < 0.5:
                os.pwrite(descriptor, data[start : start + SECTOR] if torn else data, record.offset + start)
        return torn

    def _bytes(self, record: Record) -> bytes:
        return os.pread(self._data, record.length, record.place)


def words(log: Path) -> int:
    """Return how often the load has told something until now."""
    if not log.exists():
        return 0
    descriptor = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return sum(record.kind is Kind.TOLD for record in _records(descriptor))
    finally:
        os.close(descriptor)


def _records(log: int) -> Iterator[Record]:
    place = 0
    while len(head := os.pread(log, _RECORD.size, place)) == _RECORD.size:
        kind, offset, length = _RECORD.unpack(head)
        place += _RECORD.size
        yield Record(Kind(kind), offset, place, length)
        place += length


def _copy_sparse(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        size = os.fstat(reading.fileno()).st_size
        writing.truncate(size)
        start = 0
        with suppress(OSError):  # ENXIO: no more data
            while start < size:
                start = os.lseek(reading.fileno(), start, os.SEEK_DATA)
                end = os.lseek(reading.fileno(), start, os.SEEK_HOLE)
                while start < end:
                    piece = os.pread(reading.fileno(), min(end - start, 1 << 20), start)
                    os.pwrite(writing.fileno(), piece, start)
                    start += len(piece)


def pick(records: Sequence[Record], start: int, count: int, chance: random.Random) -> list[int]:
    """Choose moments from ``start`` on at which the power fails, in order: half anywhere, half by a flush or words."""
    interesting = [number + 1 for number in range(start, len(records)) if records[number].kind is not Kind.WRITE]
    anywhere = [chance.randrange(start, len(records)) for _ in range(count - count // 2)]
    return sorted([*anywhere, *(chance.choice(interesting) for _ in range(count // 2))])
