"""A visit: a scenario at work in one cell, in a process of its own, and all that it may ask for.

It takes samples by `time`, counts beside them by `count` and `traffic`, and gives back `Measurement`s. How often it
repeats itself is the visit's matter (`rounds`): at least so often, then as long as its slice of time lasts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ParamSpec

from layerfs import tree
from layerfs_bench import beds, caches, clock, counters, quantities
from layerfs_bench.beds import Bed, Root
from layerfs_bench.counters import MemoryMeter
from layerfs_bench.inputs import ImageSpec
from layerfs_bench.places import Ground
from layerfs_bench.quantities import Kind
from layerfs_bench.results import (
    CacheState,
    Key,
    Measurement,
    Outcome,
    Parameters,
    Position,
    Quantity,
    State,
)

P = ParamSpec("P")


@dataclass(slots=True)
class _Series:
    """What was found of one metric so far."""

    samples: list[float] = field(default_factory=list[float])
    operations: int = 1
    written: int | None = None
    state: State | None = None
    counted: dict[str, tuple[Kind, list[float]]] = field(default_factory=dict[str, tuple[Kind, list[float]]])


@dataclass(frozen=True, slots=True)
class Found:
    """What a visit found: its measurements, one for each metric."""

    measurements: tuple[Measurement, ...]


class Visit:
    """What a scenario works with.

    ``target`` is an empty directory to mount at, ``work`` one for other things, both gone afterwards. ``least`` and
    ``slice_`` are the profile's rounds and seconds, and ``rng`` is for all that is chosen by chance.
    """

    def __init__(
        self,
        scenario: str,
        parameters: Parameters,
        bed: Bed,
        ground: Ground,
        work: Path,
        *,
        least: int,
        slice_: float,
        rng: random.Random,
        memory: MemoryMeter,
    ) -> None:
        self.parameters = parameters
        self.bed = bed
        self.rng = rng
        self.memory = memory
        self.work = work
        self._scenario = scenario
        self._ground = ground
        self._least = least
        self._slice = slice_
        self._series: dict[Key, _Series] = {}
        self._state: State | None = None
        self._made = 0
        self._overhead = clock.overhead()

    # Samples

    def rounds(self, *, least: int | None = None, most: int = 1000) -> Iterator[int]:
        """Count rounds from 0: at least ``least``, or as the profile says, then until the slice of time is over."""
        least = self._least if least is None else least
        until = time.monotonic() + self._slice
        for number in range(most):
            if number >= least and time.monotonic() >= until:
                return
            yield number

    def time(self, metric: str, operation: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
        """Take one sample of a metric: call the operation once; return the seconds."""
        seconds = clock.timed(operation, *args, **kwargs)
        self.record(metric, seconds)
        return seconds

    def record(
        self,
        metric: str,
        seconds: float,
        *,
        operations: int = 1,
        position: Position | None = None,
        written: int | None = None,
        state: CacheState | None = None,
    ) -> None:
        """Keep a sample that was taken otherwise: the mean of ``operations`` operations.

        ``written`` are the bytes that one operation writes; ``state`` is that of the root unless it is given.
        """
        series = self._of(metric, position)
        series.samples.append(seconds)
        series.operations = operations
        series.written = written if written is not None else series.written
        series.state = State(state, state, "as the work before left it") if state else self._state

    def count(self, metric: str, kind: Kind, value: float, *, position: Position | None = None) -> None:
        """Keep what was counted beside the samples of a metric."""
        self._of(metric, position).counted.setdefault(kind.name, (kind, []))[1].append(value)

    @contextmanager
    def traffic(self, metric: str, *, operations: int = 1) -> Iterator[None]:
        """Count the bytes at the device that the block causes, the sync after it among them, for one operation each.

        Everything is synced before, so that nothing older is counted.
        """
        self.sync()
        before = self._ground.traffic()
        yield
        self.count(metric, quantities.SYNC, clock.timed(self.sync) / operations)
        after = self._ground.traffic()
        if before and after:
            caused = after - before
            self.count(metric, quantities.DEVICE_WRITTEN, caused.written / operations)
            self.count(metric, quantities.DEVICE_READ, caused.read / operations)

    def sync(self) -> None:
        """Write what is dirty to the device: of the root where it has a file system of its own, then of the place."""
        if self.target.is_mount():
            tree.syncfs(self.target)
        tree.syncfs(self._ground.path)

    # Roots

    @property
    def target(self) -> Path:
        """Return the directory at which roots are shown."""
        return self.work / "root"

    def make(self, spec: ImageSpec, *, bare: bool = False) -> Root:
        """Make a root of an image; a ``bare`` one of the baseline has no files."""
        self._made += 1
        return self.bed.root(spec, f"{self._scenario.replace('.', '-')}-{self._made}", bare=bare)

    @contextmanager
    def root(self, spec: ImageSpec, state: CacheState = CacheState.FIRST) -> Iterator[Path]:
        """Give a fresh root of an image, mounted, with the caches in a state; afterwards it is removed.

        The place is that of the next root too: nothing may stay open in it.
        """
        root = self.make(spec)
        try:
            with self.shown(root, state) as path:
                yield path
        finally:
            root.remove()

    @contextmanager
    def shown(self, root: Root, state: CacheState, target: Path | None = None) -> Iterator[Path]:
        """Mount a root at `target`, or elsewhere, for the time of the block, the caches being in a state."""
        target = target or self.target
        target.mkdir(exist_ok=True)
        cold = self.forget() if state is CacheState.COLD else None
        with beds.shown(root, target) as path:
            if cold is None:
                self.reach(state)
            yield path

    def forget(self) -> State | None:
        """Make the kernel forget the whole place, where that can be; nothing may be mounted from it."""
        self._state = caches.forget(self.bed, self._ground)
        return self._state

    def reach(self, state: CacheState) -> None:
        """Bring the caches into a state; samples from now on are of what was reached."""
        self._state = caches.reach(state, self.target if self.target.is_mount() else None, self._ground.path)

    def space(self, metric: str, root: Root, free_before: int, *, operations: int = 1) -> None:
        """Count what a root takes, by the driver and by the free space that went since ``free_before``.

        Where it was changed by several operations it is the share of one.
        """
        self.sync()
        usage = root.usage()
        self.count(metric, quantities.SPACE_USAGE, usage.size / operations)
        self.count(metric, quantities.INODES, usage.inodes / operations)
        self.count(metric, quantities.SPACE_STATFS, max(0, free_before - self.free()) / operations)

    def free(self) -> int:
        """Return the free bytes of the place."""
        return counters.free_bytes(self._ground.path)

    # Results

    def found(self) -> Found:
        """Return what was measured."""
        return Found(tuple(self._measurement(key, series) for key, series in self._series.items()))

    def _measurement(self, key: Key, series: _Series) -> Measurement:
        counted = tuple(Quantity(kind.name, kind.unit, tuple(values)) for kind, values in series.counted.values())
        return Measurement(
            key,
            self.bed.cell,
            Outcome.OK,
            tuple(series.samples),
            (0,) * len(series.samples),
            series.operations,
            self._overhead / series.operations,
            series.written,
            counted,
            series.state,
        )

    def _of(self, metric: str, position: Position | None = None) -> _Series:
        parameters = replace(self.parameters, position=position) if position else self.parameters
        return self._series.setdefault(Key(self._scenario, metric, parameters), _Series())
