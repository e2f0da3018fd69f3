"""The ledger: which thin device of the pool each snapshot is, and how far it has come, as small files.

::

    <root>/devices/<id>   a line: the state, the device's number in the pool, that of its origin's snapshot, and
                          the blocks and inodes that it had when it was committed
    <root>/numbers        the next number, and the one up to which numbers are written down as given away

A *number* names a thin device inside its pool: 24 bits, and never used twice, for after a crash nobody can tell what
became of a device that was being made. A line is written before a device is made, without waiting for the disk, which
is enough after a process was killed; and once more, synced, when the device is there. A power cut may lose the first
line, but numbers are written down in groups beforehand: those of the last groups that no line has are what it lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from layerfs import locks
from layerfs.contract import SnapshotId
from layerfs.errors import AlreadyExists, Corrupt, NoSpace, NotFound

_GROUP = 64
"""Numbers that are given away for one sync; those that nobody took when the pool was let go are given away again."""
_LAST = (1 << 24) - 1
_LINE = 63
"""Bytes of a line without its end: less than a sector, so that a disk writes all of it or nothing."""

BASE = SnapshotId(0)
"""Stands in the ledger for the empty file system of which every snapshot without a parent is a snapshot."""


class State(StrEnum):
    """How far a device has come."""

    CREATING = "creating"
    OPEN = "open"
    """Active snapshots and views: the kernel has it as a device."""
    COMMITTED = "committed"
    REMOVING = "removing"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line; ``blocks`` (of the pool) and ``inodes`` count what a committed one holds with its parents."""

    id: SnapshotId
    state: State
    number: int
    origin: SnapshotId = BASE
    blocks: int = 0
    inodes: int = 0

    def line(self) -> bytes:
        """Return it as it is written."""
        text = f"{self.state} {self.number} {self.origin} {self.blocks} {self.inodes}"
        return text.ljust(_LINE).encode("ascii") + b"\n"


class Ledger:
    """Keep the lines of a driver's directory, for any number of processes at once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._devices = root / "devices"
        self._numbers = root / "numbers"
        self._devices.mkdir(mode=0o700, exist_ok=True)

    def ids(self) -> set[SnapshotId]:
        """Return the ids of all snapshots that have a line, the base not among them."""
        return {SnapshotId(int(name)) for name in os.listdir(self._devices)} - {BASE}

    def is_empty(self) -> bool:
        """Tell whether there are no snapshots, without listing them."""
        with os.scandir(self._devices) as found:
            return all(entry.name == str(BASE) for entry in found)

    def entries(self) -> Iterator[Entry]:
        """Yield every line, the base's too."""
        for name in os.listdir(self._devices):
            if entry := self.find(SnapshotId(int(name))):
                yield entry

    def find(self, id: SnapshotId) -> Entry | None:  # noqa: A002  the contract's word
        """Return the line of a snapshot, or None; raise `Corrupt`."""
        try:
            words = (self._devices / str(id)).read_text(encoding="ascii").split()
        except FileNotFoundError:
            return None
        try:
            state, *figures = words
            number, origin, blocks, inodes = map(int, figures)
            return Entry(id, State(state), number, SnapshotId(origin), blocks, inodes)
        except ValueError as error:
            raise Corrupt(f"{self._devices / str(id)} is damaged: {words}") from error

    def get(self, id: SnapshotId) -> Entry:  # noqa: A002  the contract's word
        """Return the line of a snapshot whose device is there; raise `NotFound`."""
        entry = self.find(id)
        if entry is None or entry.state not in {State.OPEN, State.COMMITTED}:
            raise NotFound(f"snapshot {id} has no device")
        return entry

    def add(self, entry: Entry) -> None:
        """Write a new line; raise `AlreadyExists`."""
        try:
            fd = os.open(self._devices / str(entry.id), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise AlreadyExists(f"snapshot {entry.id} has a device already") from error
        try:
            os.write(fd, entry.line())
        finally:
            os.close(fd)

    def change(self, entry: Entry, *, durable: bool) -> None:
        """Write a line anew, in its place."""
        fd = os.open(self._devices / str(entry.id), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, entry.line(), 0)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)

    def sync(self) -> None:
        """Put the names of the lines on disk."""
        fd = os.open(self._devices, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def drop(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Delete a line; after a power cut it may be there again, which removing it once more mends."""
        (self._devices / str(id)).unlink(missing_ok=True)

    def take_number(self) -> int:
        """Return a number that no device had before; raise `NoSpace` when there are no more."""
        with self._counting() as fd:
            following, given = _read(fd)
            if following > _LAST:
                raise NoSpace(
                    f"the pool has used up its {_LAST} numbers of devices", hint="move the images to a new store"
                )
            group_is_used_up = following >= given
            given = following + _GROUP if group_is_used_up else given
            _write(fd, following + 1, given, durable=group_is_used_up)
            return following

    def settle_numbers(self) -> None:
        """Write down that all numbers given away have their lines, as when the pool is let go."""
        with self._counting() as fd:
            following, _ = _read(fd)
            _write(fd, following, following, durable=True)

    def lost_numbers(self) -> list[int]:
        """Give away the rest of the last group, and return the numbers of the last two that no line has.

        Empty unless the pool was lost without `settle_numbers`, as in a power cut.
        """
        with self._counting() as fd:
            following, given = _read(fd)
            if following == given:
                return []
            known = {entry.number for entry in self.entries()}
            _write(fd, given, given, durable=True)
            return [number for number in range(max(1, given - 2 * _GROUP), given) if number not in known]

    @contextmanager
    def _counting(self) -> Iterator[int]:
        with locks.locked(self._root / "lock", locks.named("numbers"), exclusive=True, what="the numbers of devices"):
            fd = os.open(self._numbers, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                yield fd
            finally:
                os.close(fd)


def _read(fd: int) -> tuple[int, int]:
    words = os.pread(fd, _LINE + 1, 0).split()
    if not words:
        return 1, 1  # 0 is the base
    with suppress(ValueError):
        following, given = map(int, words)
        return following, given
    raise Corrupt(f"the numbers of devices are damaged: {words!r}")


def _write(fd: int, following: int, given: int, *, durable: bool) -> None:
    os.pwrite(fd, f"{following} {given}".ljust(_LINE).encode("ascii") + b"\n", 0)
    if durable:
        os.fsync(fd)
