"""Measure clones of the devicemapper driver against the bare messages and ioctls: run as root where dm-thin is.

    python bench/thin.py DIRECTORY [--rounds 60] [--many 1000]

In one interleaved run, on one pool: the driver's create and remove, and what the kernel alone takes for a thin snapshot
with its device. Which of the two comes first changes from round to round, for the kernel goes on working when a call
has returned. Printed are medians in milliseconds and their ratios; the system calls, ioctls and syncs of each (where
strace is), which no emulation bends; then the cost of a clone beside 10 and beside many others.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from layerfs.contract import Driver, Mount, SnapshotId
from layerfs.kernel import blockdevices
from layerfs.kernel.dm import DIRECTORY, Mapper, Target
from layerfs.kernel.mounting import mounted
from layerfs.testing.driver_rules import active
from layerfs_backends.devicemapper import open_driver

_DEVICE_SIZE = 1 << 30
_OPTIONS = {"size": "2G", "device-size": str(_DEVICE_SIZE)}
_BARE = 10_000_000
"""Added to the numbers of what the driver does not know."""
_MARK = "/layerfs-bench/"
_SYNCS = frozenset({"fsync", "fdatasync", "sync_file_range", "syncfs"})


class Bare:
    """Make thin snapshots by messages, and nothing else."""

    def __init__(self, origin: int) -> None:
        self._mapper = Mapper()
        (self._pool,) = (name for name in self._mapper.names() if name.startswith("layerfs-") and "-pool" in name)
        found = self._mapper.find(self._pool)
        self._source = found.source if found else ""
        self._origin = origin

    def create(self, number: int) -> None:
        """Make a snapshot and its device."""
        self._mapper.message(self._pool, f"create_snap {_BARE + number} {self._origin}")
        table = Target(_DEVICE_SIZE // 512, "thin", f"{self._source} {_BARE + number}")
        self._mapper.create(f"bare-{number}", table)

    def remove(self, number: int) -> None:
        """Take both away."""
        self._mapper.remove(f"bare-{number}")
        self._mapper.message(self._pool, f"delete {_BARE + number}")

    def remove_discarded(self, number: int) -> None:
        """Discard what it has first, which gives the space back to the disk below the pool."""
        blockdevices.discard(DIRECTORY / f"bare-{number}")
        self.remove(number)

    def mount_of(self, number: int) -> Mount:
        """Return how it is mounted."""
        return Mount("ext4", f"{DIRECTORY}/bare-{number}", ("rw",))


class Scene:
    """A pool with one layer, on which the driver and the bare messages work."""

    def __init__(self, directory: Path) -> None:
        self.driver = open_driver(directory / "thin-bench", _OPTIONS)
        self.driver.create(active(1))
        self.driver.commit(active(1))
        self.bare = Bare(origin=1)

    def close(self) -> None:
        """Remove everything."""
        for found in sorted(self.driver.ids(), reverse=True):
            self.driver.remove(found)
        self.driver.close()

    def steps(self, number: int) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
        """Yield what is compared, in this order: its name, the driver's work and the bare one."""
        driver, bare = self.driver, self.bare
        yield "create", lambda: driver.create(active(number, 1)), lambda: bare.create(number)
        yield "remove", lambda: driver.remove(SnapshotId(number)), lambda: bare.remove(number)
        number += 1
        yield "create again", lambda: driver.create(active(number, 1)), lambda: bare.create(number)
        yield "write 1 MiB", lambda: self._write(number), lambda: self._write_bare(number)
        yield "remove it", lambda: driver.remove(SnapshotId(number)), lambda: bare.remove_discarded(number)

    def _write(self, number: int) -> None:
        _write(*self.driver.mounts(active(number, 1)))

    def _write_bare(self, number: int) -> None:
        _write(self.bare.mount_of(number))


def _write(mount: Mount) -> None:
    with mounted([mount]) as root:
        (root / "file").write_bytes(os.urandom(1 << 20))


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def _compare(scene: Scene, rounds: int) -> None:
    """Print how long each takes."""
    ours: dict[str, list[float]] = {}
    bare: dict[str, list[float]] = {}
    for turn in range(rounds):
        for name, our_work, bare_work in scene.steps(2 + 2 * turn):
            sides = [(ours, our_work), (bare, bare_work)]
            for times, work in reversed(sides) if turn % 2 else sides:
                times.setdefault(name, []).append(_timed(work))
    for name, found in ours.items():
        mine, theirs = statistics.median(found), statistics.median(bare[name])
        print(f"{name:14} {mine:8.2f} ms   bare {theirs:8.2f} ms   {mine / theirs:5.2f} of bare")


def _marked(scene: Scene) -> None:
    """Do each step twice, between calls that show in a trace."""
    for number in (2, 4):
        for name, our_work, bare_work in scene.steps(number):
            for kind, work in (("ours", our_work), ("bare", bare_work), ("after", lambda: None)):
                os.path.exists(f"{_MARK}{kind}/{name}")
                work()


def _count(directory: Path) -> None:
    """Print how many system calls each makes, the second time that it is done."""
    trace = directory / "trace"
    words = (sys.executable, __file__, str(directory), "--marked")
    subprocess.run(["strace", "-o", str(trace), *words], check=True)
    counts: dict[str, Counter[str]] = {}
    current: Counter[str] = Counter()
    for line in trace.read_text(encoding="utf-8", errors="replace").splitlines():
        call, _, rest = line.partition("(")
        if _MARK in rest:
            current = counts[rest.partition(_MARK)[2].partition('"')[0]] = Counter()
        current[call] += 1
    for name in (name.removeprefix("ours/") for name in counts if name.startswith("ours/")):
        print(f"{name:14} {_summed(counts[f'ours/{name}'])}; bare {_summed(counts[f'bare/{name}'])}")


def _summed(calls: Counter[str]) -> str:
    syncs = sum(number for name, number in calls.items() if name in _SYNCS)
    return f"{calls.total() - 1} calls, {calls['ioctl']} ioctls, {syncs} syncs"


def _beside_many(driver: Driver, many: int, rounds: int) -> None:
    """Print what a clone costs beside 10 others, and beside many."""

    def costs(first: int) -> float:
        works = (partial(driver.create, active(number, 1)) for number in range(first, first + rounds))
        return statistics.median(map(_timed, works))

    for number in range(1000, 1010):
        driver.create(active(number, 1))
    few = costs(2000)
    for number in range(3000, 3000 + many):
        driver.create(active(number, 1))
    print(f"a clone beside {many}: {costs(100_000) / few:.2f} of one beside 10")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--many", type=int, default=1000, help="0 leaves that part out")
    parser.add_argument("--marked", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if not asked.marked and shutil.which("strace"):
        _count(asked.directory)
    gc.freeze()
    scene = Scene(asked.directory)
    try:
        if asked.marked:
            _marked(scene)
            return
        _compare(scene, asked.rounds)
        if asked.many:
            _beside_many(scene.driver, asked.many, asked.rounds)
    finally:
        scene.close()


if __name__ == "__main__":
    main()
