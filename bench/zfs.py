"""Measure clones of the zfs driver against the bare calls of libzfs_core: run as root where ZFS is.

    python bench/zfs.py DIRECTORY [--dataset POOL/PATH] [--rounds 60] [--few 10] [--many 1000]

In one interleaved run, on one pool: the driver's create and remove, and ``lzc_clone`` and ``lzc_destroy`` bare. Printed
are medians in milliseconds and their ratios, then the cost of a clone beside many other datasets against that beside
few. DIRECTORY lies on ZFS, or the dataset is named.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec

from layerfs.contract import SnapshotId
from layerfs.testing.driver_rules import active
from layerfs_backends.zfs.datasets import ZfsDriver
from layerfs_backends.zfs.driver import open_driver

P = ParamSpec("P")


def timed(work: Callable[P, None], /, *arguments: P.args, **keywords: P.kwargs) -> float:
    """Return the milliseconds that a call takes."""
    start = time.perf_counter()
    work(*arguments, **keywords)
    return (time.perf_counter() - start) * 1000


def measure(driver: ZfsDriver, place: str, first: int, rounds: int) -> dict[str, float]:
    """Return the medians of clone and remove, through the driver and bare, in turns."""
    zfs: Any = import_module("libzfs_core")  # the driver has found it
    origin = f"{place}/1@layer".encode()
    samples = {name: list[float]() for name in ("clone", "lzc_clone", "remove", "lzc_destroy")}
    for number in range(first, first + rounds):
        bare = f"{place}/bare-{number}".encode()
        steps: dict[str, Callable[[], None]] = {
            "clone": partial(driver.create, active(number, 1)),
            "lzc_clone": partial(zfs.lzc_clone, bare, origin),
            "remove": partial(driver.remove, SnapshotId(number)),
            "lzc_destroy": partial(zfs.lzc_destroy, bare),
        }
        turns = ("clone", "lzc_clone", "remove", "lzc_destroy")
        for name in turns if number % 2 else ("lzc_clone", "clone", "lzc_destroy", "remove"):
            samples[name].append(timed(steps[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--dataset")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--few", type=int, default=10)
    parser.add_argument("--many", type=int, default=1000)
    arguments = parser.parse_args()
    driver = open_driver(arguments.directory, {"dataset": arguments.dataset} if arguments.dataset else {})
    if not isinstance(driver, ZfsDriver):
        raise SystemExit("this is another driver")
    driver.create(active(1))
    driver.commit(active(1))
    place = driver.mounts(active(1))[0].source.rpartition("/")[0]
    for number in range(2, arguments.few + 1):
        driver.create(active(number, 1))
    few = measure(driver, place, 10_000, arguments.rounds)
    for name, bare in (("clone", "lzc_clone"), ("remove", "lzc_destroy")):
        print(f"{name}: {few[name]:.2f} ms, {bare} {few[bare]:.2f} ms, ratio {few[name] / few[bare]:.2f}", flush=True)
    for number in range(arguments.few + 1, arguments.many + 1):
        driver.create(active(number, 1))
    many = measure(driver, place, 20_000, arguments.rounds)
    for name in few:
        print(
            f"{name} beside {arguments.many} datasets: {many[name]:.2f} ms, {many[name] / few[name]:.2f} times",
            flush=True,
        )
    start = time.perf_counter()
    held = len(list(driver.ids()))
    print(f"list of {held} ids: {(time.perf_counter() - start) * 1000:.0f} ms", flush=True)
    for number in range(arguments.many, 0, -1):
        driver.remove(SnapshotId(number))


if __name__ == "__main__":
    main()
