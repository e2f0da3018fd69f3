"""The ledger: how far the thin device of each snapshot has come, as lines of one file.

::

    <root>/ledger         64 bytes a line. Line 0: the reach, twice. Line 1 is the base's, line N + 1 that of snapshot
                          N: the state, the snapshot that it is a snapshot of, and the blocks and inodes that it had
                          when it was committed; zeros for none.

The number of a thin device inside its pool is that of its snapshot, which is never used twice: after a crash nobody can
tell what became of a device that was being made. A line says so before the device is made, and again when it is there.
Neither waits for the disk, for a killed process loses nothing that way, and a power cut can lose only what was not
synced yet: lines of the last `GROUP` numbers below the *reach*, which is synced, with all lines before it, ahead of the
first snapshot beyond it. Which of these devices there are, the pool knows (`uncertain`). A commit is synced. The reach
is written before that sync and once more after it, so that nobody relies on one of a process that was killed between.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from layerfs import locks
from layerfs.contract import SnapshotId
from layerfs.errors import AlreadyExists, Corrupt, NoSpace, NotFound
from layerfs.kernel.descriptors import Holder

GROUP = 64
"""How many snapshots share one sync."""
_LAST = (1 << 24) - 1
"""dm-thin counts its devices with 24 bits."""
_LINE = 64
"""Bytes: a part of a sector, so that a disk writes all of it or nothing."""
_NOTHING = bytes(_LINE)
_REACH = locks.named("reach")
_PART = _LINE << 10

BASE = SnapshotId(0)
"""Stands in the ledger for the empty file system of which every snapshot without a parent is a snapshot."""


class State(StrEnum):
    """How far a device has come."""

    CREATING = "creating"
    OPEN = "open"
    """Active snapshots and views: the kernel has it as a device."""
    COMMITTED = "committed"
    REMOVING = "removing"


_STATES = {str(state): state for state in State}


@dataclass(frozen=True, slots=True)
class Entry:
    """A line; ``blocks`` (of the pool) and ``inodes`` count what a committed one holds with its parents."""

    id: SnapshotId
    state: State
    origin: SnapshotId = BASE
    blocks: int = 0
    inodes: int = 0

    def line(self) -> bytes:
        """Return it as it is written."""
        return _line(f"{self.state.value} {self.origin} {self.blocks} {self.inodes}")

    @classmethod
    def parse(cls, id: SnapshotId, line: bytes) -> Entry:  # noqa: A002  the contract's word
        """Read it; raise `Corrupt`."""
        try:
            state, origin, blocks, inodes = line.decode("ascii").split()
            return cls(id, _STATES[state], SnapshotId(int(origin)), int(blocks), int(inodes))
        except (ValueError, KeyError) as error:
            raise Corrupt(f"the ledger's line of snapshot {id} is damaged: {line.rstrip()!r}") from error


class Ledger(Holder):
    """Keep the lines of a driver's directory, for any number of processes and threads at once.

    After `close` the next call opens it again.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(-1)
        self._root = root
        self._known = BASE

    def ids(self) -> set[SnapshotId]:
        """Return the ids of all snapshots that have a line, the base not among them."""
        return {found for found, _ in self._lines() if found != BASE}

    def is_empty(self) -> bool:
        """Tell whether there are no snapshots; the one that was found last time is mostly there still."""
        if self._known == BASE or self.find(self._known) is None:
            self._known = next((found for found, _ in self._lines() if found != BASE), BASE)
        return self._known == BASE

    def entries(self) -> Iterator[Entry]:
        """Yield every line, the base's too; raise `Corrupt`."""
        for found, line in self._lines():
            yield Entry.parse(found, line)

    def find(self, id: SnapshotId) -> Entry | None:  # noqa: A002  the contract's word
        """Return the line of a snapshot, or None; raise `Corrupt`."""
        line = os.pread(self._file(), _LINE, (id + 1) * _LINE)
        return Entry.parse(id, line) if line.strip(b"\0") else None

    def get(self, id: SnapshotId) -> Entry:  # noqa: A002  the contract's word
        """Return the line of a snapshot whose device is there; raise `NotFound`."""
        entry = self.find(id)
        if entry is None or entry.state not in {State.OPEN, State.COMMITTED}:
            raise NotFound(f"snapshot {id} has no device")
        return entry

    def add(self, entry: Entry) -> None:
        """Write a new line, which a power cut may take, but not without a trace; raise `AlreadyExists`, `NoSpace`."""
        if entry.id > _LAST:
            raise NoSpace(
                f"a pool cannot number more than {_LAST} devices over its life", hint="move the images to a new store"
            )
        if self.find(entry.id) is not None:
            raise AlreadyExists(f"snapshot {entry.id} has a device already")
        self.change(entry)
        reach, synced = self._reach()
        if entry.id >= synced:
            self._extend(entry.id)
        elif entry.id < reach - GROUP:  # somebody else was so much faster
            self.sync()

    def change(self, entry: Entry) -> None:
        """Write a line anew, in its place."""
        self._write(entry.id, entry.line())

    def drop(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Delete a line; after a power cut it may be there again, which removing it once more mends."""
        self._write(id, _NOTHING)

    def sync(self) -> None:
        """Put all lines on disk."""
        os.fdatasync(self._file())

    def settle(self) -> None:
        """Put all lines on disk, and write down that nothing is uncertain, as when the pool is let go."""
        self.sync()
        self._set_reach(0, 0)
        self.sync()

    def uncertain(self) -> list[SnapshotId]:
        """Return the snapshots whose device the pool may or may not have, for a crash came in between."""
        states = {entry.id: entry.state for entry in self.entries()}
        creating = [found for found, state in states.items() if state is State.CREATING]
        groups = {SnapshotId(end - n) for end in self._reach() for n in range(1, GROUP + 1) if end > n}
        return [*creating, *sorted(groups - states.keys())]

    def _file(self) -> int:
        if self._fd < 0:
            self._fd = os.open(self._root / "ledger", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._fd

    def _extend(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        with locks.locked(self._root / "lock", _REACH, exclusive=True, what="the reach of the ledger"):
            reach, synced = self._reach()
            reach = max(reach, id + GROUP)
            self._set_reach(reach, synced)
            self.sync()
            self._set_reach(reach, reach)

    def _reach(self) -> tuple[int, int]:
        line = os.pread(self._file(), _LINE, 0)
        with suppress(ValueError):
            reach, synced = map(int, line.strip(b"\0").split() or (0, 0))
            return reach, synced
        raise Corrupt(f"the ledger's reach is damaged: {line.rstrip()!r}")

    def _set_reach(self, reach: int, synced: int) -> None:
        os.pwrite(self._file(), _line(f"{reach} {synced}"), 0)

    def _write(self, id: SnapshotId, line: bytes) -> None:  # noqa: A002  the contract's word
        os.pwrite(self._file(), line, (id + 1) * _LINE)

    def _lines(self) -> Iterator[tuple[SnapshotId, bytes]]:
        """Yield the lines that are there; most of a ledger are zeros, of snapshots that are gone."""
        place = _LINE
        while part := os.pread(self._file(), _PART, place):
            if part.count(0) < len(part):
                for start in range(0, len(part), _LINE):
                    line = part[start : start + _LINE]
                    if line[0]:
                        yield SnapshotId((place + start) // _LINE - 1), line
            place += len(part)


def _line(text: str) -> bytes:
    return text.ljust(_LINE - 1).encode("ascii") + b"\n"
