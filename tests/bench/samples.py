"""Made-up results of the right form, with the shapes that drivers have, for the tests of what is made of results."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache

from layerfs.contract import CopyUnit, WritePolicy
from layerfs_bench import quantities
from layerfs_bench.analysis import Analysis, analyse
from layerfs_bench.results import (
    CacheState,
    Cell,
    Fingerprint,
    Key,
    LeftOut,
    Measurement,
    Outcome,
    Parameters,
    Place,
    Position,
    Quantity,
    Results,
    Run,
    State,
    Version,
)

_FILE, _BLOCK, _TREE = CopyUnit.FILE, CopyUnit.BLOCK, CopyUnit.TREE
_COPIES, _REDIRECTS, _IN_PLACE = WritePolicy.COPY_ON_WRITE, WritePolicy.REDIRECT_ON_WRITE, WritePolicy.IN_PLACE

CELLS = (
    Cell("plain-ext4", "plain", "ext4", reflink=False),
    Cell("plain-xfs", "plain", "xfs", reflink=True),
    Cell("plain-btrfs", "plain", "btrfs", reflink=True),
    Cell("overlay2-ext4", "overlay2", "ext4", False, (), _FILE, _COPIES),
    Cell("overlay2-xfs", "overlay2", "xfs", True, (), _FILE, _COPIES),
    Cell("btrfs", "btrfs", "btrfs", True, (), _BLOCK, _REDIRECTS),
    Cell("fuse-copy-ext4", "fuse", "ext4", False, (("write", "copy"),), _FILE, _COPIES),
    Cell("fuse-redirect-ext4", "fuse", "ext4", False, (("write", "redirect"),), _BLOCK, _REDIRECTS),
    Cell("copy-ext4", "copy", "ext4", False, (), _TREE, _IN_PLACE),
)
SIZES = (4096, 1 << 16, 1 << 20, 1 << 24, 1 << 26)

Slowed = Callable[[Key, Cell], float]
"""By what a cell is slower than it would be."""


def _as_it_is(key: Key, cell: Cell) -> float:
    del key, cell
    return 1.0


def results(seed: int = 6, *, noise: float = 0.05, slowed: Slowed = _as_it_is, visits: int = 4) -> Results:
    """Make up a whole result: every process is off by its own 1 %, every sample by ``noise``."""
    generator = random.Random(seed)
    made = tuple(_sampled(one, generator, noise, slowed, visits) for one in _measurements())
    timed_out = Key("write.first", "first", Parameters(size=1 << 30))
    failed = Measurement(timed_out, CELLS[3], Outcome.TIMED_OUT, reason="it did not end within 30 s")
    run = Run("quick", seed, datetime(2026, 11, 20, 19, 30, tzinfo=UTC), 61.5, 120, 121, "none in a sample", 60.0)
    return Results(run, FINGERPRINT, (*made, failed), (LeftOut("zfs", "the kernel has no ZFS", "install zfs-dkms"),))


@cache
def analysed() -> Analysis:
    """Give the analysis of the usual result, which takes a second."""
    return analyse(results())


FINGERPRINT = Fingerprint(
    "A processor", 2, 24 << 30, "x86_64", "6.18.44", "Debian GNU/Linux 12", "kvm", "", "root", 0.4, 1e-9, 4e-8,
    (Version("python", "3.11.2"), Version("layerfs", "0.1.0")), (Version("vm.dirty_ratio", "20"),),
    (Place("ext4", False, ("rw", "relatime"), "loop0", "a file on ext4", 4 << 30, "mke2fs 1.47.0"),),
)  # fmt: skip


def _sampled(one: Measurement, generator: random.Random, noise: float, slowed: Slowed, visits: int) -> Measurement:
    """Give a measurement samples around the one that it has."""
    centre = one.samples[0] * slowed(one.key, one.cell)
    own = [generator.gauss(1, 0.01) for _ in range(visits)]
    numbers = tuple(visit for visit in range(visits) for _ in range(10))
    samples = tuple(centre * own[visit] * generator.lognormvariate(0, noise) for visit in numbers)
    return replace(one, samples=samples, visits=numbers)


def _measurements() -> Iterator[Measurement]:
    for cell in CELLS:
        yield from _lookups(cell)
        yield from _writes(cell)
        for clones in (1, 10, 100):
            given = Parameters(clones=clones)
            yield _timed(Key("lifecycle", "clone", given), cell, {"copy": 0.09, "plain": 2e-5}.get(cell.driver, 1e-3))
            yield _timed(Key("lifecycle", "mount", given), cell, 3e-4)
            slower = 1 + clones / 50 if cell.driver == "btrfs" else 1
            yield _timed(Key("lifecycle", "remove", given), cell, 1.7e-3 * slower)
        yield _timed(Key("mixed.untar", "untar"), cell, 1.9 if cell.driver == "fuse" else 0.8)


def _lookups(cell: Cell) -> Iterator[Measurement]:
    for depth in (1, 8, 32, 128):
        for number, position in enumerate(Position):
            crossed = (1, depth / 2, depth, depth)[number]
            slope = 0.7e-6 * crossed if cell.driver == "overlay2" else 0
            given = Parameters(depth=depth, position=position)
            yield _timed(Key("lookup.stat", "first", given), cell, (15e-6 if cell.driver == "fuse" else 6e-6) + slope)
            yield _timed(Key("lookup.stat", "cached", given), cell, 2.3e-6)


def _writes(cell: Cell) -> Iterator[Measurement]:
    copied = cell.copy_unit is CopyUnit.FILE and not cell.reflink
    for size in SIZES:
        redirected = cell.write_policy is _REDIRECTS
        device = size * 1.02 + 8192 if copied else 3e5 if redirected else 9e3
        time = 6e-5 + device / 1e9 + (2e-4 if redirected else 0)
        # Device bytes are those of one write, space what a clone takes after all writes of a visit.
        beside = ((quantities.DEVICE_WRITTEN, 1), (quantities.SPACE_STATFS, 10), (quantities.SPACE_USAGE, 10))
        counted = tuple(Quantity(kind.name, kind.unit, (device * files,) * 4) for kind, files in beside)
        first = _timed(Key("write.first", "first", Parameters(size=size)), cell, time)
        yield replace(first, written=4, quantities=counted)
        yield _timed(Key("write.first", "second", Parameters(size=size)), cell, 4e-6)


def _timed(key: Key, cell: Cell, seconds: float) -> Measurement:
    reached = CacheState.WARM if key.metric == "cached" else CacheState.FIRST
    state = State(reached, reached, "remount, drop_caches=2")
    return Measurement(key, cell, Outcome.OK, (seconds,), (0,), 100, 4e-9, None, (), state, "", 1.2)
