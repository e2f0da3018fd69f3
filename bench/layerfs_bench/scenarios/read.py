"""Reads: what it costs to read data of a lower layer, and how often that is kept in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from layerfs_bench import beds, caches, clock, quantities
from layerfs_bench.beds import Root
from layerfs_bench.counters import Memory
from layerfs_bench.inputs import Item
from layerfs_bench.results import CacheState, Parameters
from layerfs_bench.scenarios.base import Metric, Scale, Scenario
from layerfs_bench.scenarios.images import contents, files, files_of
from layerfs_bench.visit import Visit

_BLOCK = 128 << 10
_PAGE = 4096
_SAME = "that of the file system below; a server in user space without passthrough copies everything once more"


def _read_all(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.read(fd, _BLOCK):
            pass
    finally:
        os.close(fd)


class Sequential(Scenario):
    """Read a file of a lower layer from its beginning to its end, by 128 KiB."""

    name: ClassVar[str] = "read.sequential"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("cold", "the whole file, which is not in memory", _SAME),
        Metric("cached", "the whole file again, from memory", _SAME),
    )

    def cases(self, scale: Scale) -> Iterator[Parameters]:
        """Go by size."""
        return (Parameters(size=size) for size in scale.sizes)

    def visit(self, visit: Visit) -> None:
        """Read each file of a fresh root twice."""
        size = visit.parameters.size or 0
        visit.bed.load(files(size))
        for _ in visit.rounds():
            with visit.root(files(size), CacheState.COLD) as root:
                names = [f"{root}/{name}" for name in files_of(size)]
                with visit.traffic("cold", operations=len(names)):
                    for name in names:
                        visit.time("cold", _read_all, name)
                for name in names:
                    visit.record("cached", clock.timed(_read_all, name), state=CacheState.WARM)


class Random(Scenario):
    """Read pages of 4 KiB here and there in a file of a lower layer."""

    name: ClassVar[str] = "read.random"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("cold", "4 KiB that are not in memory, by pread", _SAME),
        Metric("cached", "4 KiB that are in memory", _SAME),
    )
    READS: ClassVar[int] = 64

    def cases(self, scale: Scale) -> Iterator[Parameters]:
        """Take the largest size only: in a small file nothing is far from anything."""
        yield Parameters(size=max(scale.sizes))

    def visit(self, visit: Visit) -> None:
        """Read the same pages of a fresh root twice, in the same random order."""
        size = visit.parameters.size or 0
        visit.bed.load(files(size))
        for _ in visit.rounds():
            places = [visit.rng.randrange(size // _PAGE) * _PAGE for _ in range(self.READS)]
            with visit.root(files(size), CacheState.COLD) as root:
                fd = os.open(root / files_of(size)[0], os.O_RDONLY | os.O_CLOEXEC)
                try:
                    for offset in places:
                        visit.time("cold", os.pread, fd, _PAGE, offset)
                    for offset in places:
                        visit.record("cached", clock.timed(os.pread, fd, _PAGE, offset), state=CacheState.WARM)
                finally:
                    os.close(fd)


class Shared(Scenario):
    """Read the same file in several clones, one after the other, and see how often it is in memory then."""

    name: ClassVar[str] = "read.shared"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("first-clone", "the whole file in the first clone, cold", _SAME),
        Metric(
            "next-clone",
            "the whole file in each further clone",
            "unions share the pages of the layer, so it is in memory; a snapshot has pages of its own for each clone",
        ),
    )
    FILE: ClassVar[str] = "data/shared"
    SIZE: ClassVar[int] = 8 << 20

    def cases(self, scale: Scale) -> Iterator[Parameters]:
        """Go by clones."""
        return (Parameters(clones=clones) for clones in scale.shared)

    def visit(self, visit: Visit) -> None:
        """Mount all clones, read, and count the page cache that was taken."""
        spec = contents("shared", [Item("data"), Item(self.FILE, self.SIZE)])
        visit.bed.load(spec)
        for _ in visit.rounds(most=8):
            roots = [visit.make(spec) for _ in range(visit.parameters.clones or 1)]
            try:
                self._read(visit, roots)
            finally:
                for root in roots:
                    root.remove()

    def _read(self, visit: Visit, roots: list[Root]) -> None:
        cold = visit.forget()
        with ExitStack() as undo:
            places = [visit.work / f"clone-{number}" for number in range(len(roots))]
            for root, place in zip(roots, places, strict=True):
                place.mkdir(exist_ok=True)
                undo.enter_context(beds.shown(root, place))
            if cold is None:
                visit.reach(CacheState.COLD)
            names = [place / self.FILE for place in places]
            before = visit.memory.read()
            visit.time("first-clone", _read_all, os.fspath(names[0]))
            for name in names[1:]:
                visit.record("next-clone", clock.timed(_read_all, os.fspath(name)), state=CacheState.WARM)
            self._count(visit, visit.memory.read() - before, names)

    def _count(self, visit: Visit, taken: Memory, names: list[Path]) -> None:
        visit.count("first-clone", quantities.PAGE_CACHE, max(0, taken.page_cache))
        if visit.memory.is_own:
            visit.count("first-clone", quantities.MEMORY_CGROUP, max(0, taken.total))
        visit.count("first-clone", quantities.RESIDENT, sum(caches.resident(name) for name in names))
