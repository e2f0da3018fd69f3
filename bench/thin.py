"""Measure clones of the devicemapper driver against the bare messages and ioctls: run as root where dm-thin is.

    python bench/thin.py DIRECTORY [--rounds 60] [--many 1000]

In one interleaved run, on one pool: the driver's create and remove, and what the kernel alone takes for a thin snapshot
with its device. Printed are medians in milliseconds and their ratios, then the cost of a clone beside few and beside
many others.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from layerfs.contract import SnapshotId
from layerfs.kernel.dm import Mapper, Target
from layerfs.testing.driver_rules import active
from layerfs_backends.devicemapper import open_driver
from layerfs_backends.thin.ledger import Ledger

_DEVICE_SIZE = 1 << 30

P = ParamSpec("P")


class Bare:
    """Make thin snapshots by messages, and nothing else."""

    def __init__(self, pool: str, origin: int) -> None:
        self._mapper = Mapper()
        self._pool = pool
        found = self._mapper.find(pool)
        self._source = found.source if found else ""
        self._origin = origin

    def create(self, number: int) -> None:
        """Make a snapshot and its device."""
        self._mapper.message(self._pool, f"create_snap {number} {self._origin}")
        self._mapper.create(f"bare-{number}", Target(_DEVICE_SIZE // 512, "thin", f"{self._source} {number}"))

    def remove(self, number: int) -> None:
        """Take both away."""
        self._mapper.remove(f"bare-{number}")
        self._mapper.message(self._pool, f"delete {number}")


def timed(work: Callable[P, None], /, *arguments: P.args, **keywords: P.kwargs) -> float:
    """Return the milliseconds that a call takes."""
    start = time.perf_counter()
    work(*arguments, **keywords)
    return (time.perf_counter() - start) * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--many", type=int, default=1000)
    asked = parser.parse_args()
    options = {"size": "2G", "device-size": str(_DEVICE_SIZE)}
    root = asked.directory / "thin-bench"
    driver = open_driver(root, options)
    keeping = open_driver(root, {**options, "discard": "no"})
    driver.create(active(1))
    driver.commit(active(1))
    (pool,) = (name for name in Mapper().names() if name.startswith("layerfs-") and name.endswith("-pool"))
    bare = Bare(pool, Ledger(root).get(SnapshotId(1)).number)
    times: dict[str, list[float]] = {}
    for number in range(2, asked.rounds + 2):
        high = 10_000_000 + number
        times.setdefault("bare create", []).append(timed(bare.create, high))
        times.setdefault("create", []).append(timed(driver.create, active(number, 1)))
        times.setdefault("bare remove", []).append(timed(bare.remove, high))
        name, remover = ("remove", driver) if number % 2 else ("remove, discard=no", keeping)
        times.setdefault(name, []).append(timed(remover.remove, SnapshotId(number)))
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, median in medians.items():
        base = medians["bare create" if "create" in name else "bare remove"]
        print(f"{name:20} {median:8.2f} ms   {median / base:5.2f} of bare")
    few = [timed(driver.create, active(number, 1)) for number in range(1000, 1010 + asked.rounds)][10:]
    for number in range(2000, 2000 + asked.many):
        driver.create(active(number, 1))
    many = [timed(driver.create, active(number, 1)) for number in range(9000, 9000 + asked.rounds)]
    ratio = statistics.median(many) / statistics.median(few)
    print(f"a clone beside {asked.many}: {ratio:.2f} of one beside 10")
    for found in sorted(driver.ids(), reverse=True):
        driver.remove(found)
    driver.close()
    keeping.close()


if __name__ == "__main__":
    main()
