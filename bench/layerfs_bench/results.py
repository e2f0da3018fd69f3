"""What a run of the benchmark found, as values: every other part of the benchmark makes these or reads them.

A *scenario* is a piece of work ("write.first"), its *parameters* say how much of it (a file of 64 MiB), and a *metric*
is one of the things that it times ("first", "second"). A *cell* is where it is done: a driver with its options on a
file system. A *measurement* is what came of one metric of one scenario with certain parameters in one cell: its
*samples*, in seconds for one operation, and *quantities* beside them. A *baseline* cell is a plain directory on the
same file system.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from layerfs.contract import CopyUnit, WritePolicy

PLAIN = "plain"
"""The driver's name in a baseline cell: no driver at all."""


class Unit(StrEnum):
    """What a figure counts."""

    SECONDS = "seconds"
    BYTES = "bytes"
    COUNT = "count"


class CacheState(StrEnum):
    """What the kernel knows of the files when an operation begins."""

    COLD = "cold"
    """Nothing: neither names nor data are in memory."""
    FIRST = "first"
    """No names (dentries and inodes), but the blocks of the file system may be in memory."""
    WARM = "warm"
    """Whatever the work before left in memory."""


class Outcome(StrEnum):
    """How the last visit to a cell for this measurement ended."""

    OK = "ok"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    SKIPPED = "skipped"
    """It was not tried, because it cannot work in this cell."""


class Position(StrEnum):
    """The layer in which a name lies."""

    TOP = "top"
    MIDDLE = "middle"
    BOTTOM = "bottom"
    NOWHERE = "nowhere"


@dataclass(frozen=True, slots=True)
class Cell:
    """Where something is measured: a driver with its options, the file system below it, and whether that has reflink.

    ``name`` tells cells apart for people and in files: "overlay2-ext4", "fuse-redirect-xfs", "plain-btrfs". What the
    first write to lower data copies and where it goes are the driver's traits; None for a baseline.
    """

    name: str
    driver: str
    file_system: str
    reflink: bool
    options: tuple[tuple[str, str], ...] = ()
    copy_unit: CopyUnit | None = None
    write_policy: WritePolicy | None = None

    @property
    def is_baseline(self) -> bool:
        """Tell whether this is a plain directory, by which the others on its file system are divided."""
        return self.driver == PLAIN


@dataclass(frozen=True, slots=True)
class Parameters:
    """How much of a scenario: those that it does not know are None.

    ``depth`` counts layers, ``size`` is a file's in bytes, ``clones`` are the clones that there are, ``workers`` the
    processes that work at a time, ``files`` those that are made or changed one after the other.
    """

    depth: int | None = None
    size: int | None = None
    position: Position | None = None
    clones: int | None = None
    workers: int | None = None
    files: int | None = None

    def words(self) -> tuple[str, ...]:
        """Return each parameter that is there as "name=value", in a fixed order."""
        pairs = (
            ("depth", self.depth),
            ("size", self.size),
            ("position", self.position),
            ("clones", self.clones),
            ("workers", self.workers),
            ("files", self.files),
        )
        return tuple(f"{name}={value}" for name, value in pairs if value is not None)


@dataclass(frozen=True, slots=True)
class Key:
    """What was measured, wherever: cells are compared where this is the same."""

    scenario: str
    metric: str
    parameters: Parameters = Parameters()

    def __str__(self) -> str:
        """Return it for people and for the names of benchmarks: "write.first:second[size=4096]"."""
        words = ",".join(self.parameters.words())
        return f"{self.scenario}:{self.metric}" + (f"[{words}]" if words else "")


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something that was counted beside the time: one value for each visit or each sample, in ``unit``.

    The names that the runner uses are those of `layerfs_bench.quantities`.
    """

    name: str
    unit: Unit
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class State:
    """The state of the caches that was asked for, the one that was reached, and how: "remount, drop_caches=3"."""

    asked: CacheState
    reached: CacheState
    how: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """What came of one metric in one cell.

    ``samples`` are seconds for one operation, in the order in which they were taken; ``visits`` tells for each sample
    in which visit (a process of its own, counted from 0) that was, for samples of one visit depend on each other.
    A sample is the mean of ``operations`` operations that were timed together. ``overhead`` is what the harness itself
    takes for one operation, in seconds, which is not subtracted. ``written`` are the bytes that one operation hands to
    the file system, or None where that means nothing: device bytes over these are the write amplification. ``took``
    is the time of all visits with what went before and after, in seconds.
    """

    key: Key
    cell: Cell
    outcome: Outcome
    samples: tuple[float, ...] = ()
    visits: tuple[int, ...] = ()
    operations: int = 1
    overhead: float = 0.0
    written: int | None = None
    quantities: tuple[Quantity, ...] = ()
    state: State | None = None
    reason: str = ""
    """Why it is not ok; empty if it is."""
    took: float = 0.0

    def quantity(self, name: str) -> Quantity | None:
        """Return the quantity of this name, or None if it was not counted."""
        return next((found for found in self.quantities if found.name == name), None)

    @property
    def identity(self) -> tuple[Key, str]:
        """Return what no other measurement of a run has: the key, and the name of the cell."""
        return self.key, self.cell.name


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that this machine or user could not measure, why, and what to do about it."""

    what: str
    reason: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """A file system on which cells lie: its mount options, the device below it, and what the device itself lies on.

    ``device`` is the kernel's name of it ("loop3"), ``backing`` for people ("a file on ext4 on vda, direct I/O").
    """

    file_system: str
    reflink: bool
    mount_options: tuple[str, ...]
    device: str
    backing: str
    size: int
    made_by: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    """A program or library, and its version."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The machine, as far as figures depend on it. ``memory`` is in bytes, ``load`` the load average of one minute.

    ``clock_resolution`` and ``clock_cost`` are those of the clock that takes the samples, in seconds.
    """

    cpu: str
    cores: int
    memory: int
    architecture: str
    kernel: str
    system: str
    virtualization: str
    governor: str
    user: str
    """"root", "user namespace" or "ordinary user"."""
    load: float
    clock_resolution: float
    clock_cost: float
    versions: tuple[Version, ...]
    settings: tuple[Version, ...]
    """Settings of the kernel that figures depend on: vm.dirty_ratio and others."""
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """How a run was made. ``took`` and ``budget`` are in seconds; ``visits`` are those done, of ``planned``."""

    profile: str
    seed: int
    started: datetime
    took: float
    visits: int
    planned: int
    sync_policy: str
    budget: float | None = None
    interrupted: bool = False
    command: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()
    """The names of the cells that were to be measured."""
    scenarios: tuple[str, ...] = ()
    """The names of the scenarios that were to be run."""


@dataclass(frozen=True, slots=True)
class Results:
    """All that a run found; measurements that failed or were skipped among them."""

    run: Run
    fingerprint: Fingerprint
    measurements: tuple[Measurement, ...]
    left_out: tuple[LeftOut, ...] = ()
