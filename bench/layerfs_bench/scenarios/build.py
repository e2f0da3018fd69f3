"""Builds: layer upon layer, as an image is built."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from layerfs_bench import clock
from layerfs_bench.layering import Layering
from layerfs_bench.results import CacheState, Parameters
from layerfs_bench.scenarios.base import Metric, Scale, Scenario
from layerfs_bench.visit import Visit

_STEPS = ("prepare", "mount", "write", "commit")
_CHANGE_EVERY, _REMOVE_EVERY = 3, 5
"""Every so many layers, files of the layer below are changed, or removed, rather than new ones made."""


class Containerd(Scenario):
    """Build 16 layers of 10 operations of 1 MiB each through the snapshotter.

    That is the shape of containerd's benchmark of its snapshotters (core/snapshots/benchsuite): files are made, and in
    some layers those of the layer below are changed or removed. Each sample is the sum over all 16 layers.
    """

    name: ClassVar[str] = "build.containerd"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("run", "the whole build", "that of the writes, and of a sync a layer where the driver is durable"),
        Metric("prepare", "prepare of all 16 layers", "flat; a copy grows with what is there"),
        Metric("mount", "mount and unmount of all 16", "overlay syncs at each unmount"),
        Metric("write", "the 160 operations of 1 MiB", "that of the file system below; copy-up where files change"),
        Metric("commit", "commit of all 16", "that of a sync"),
    )
    LAYERS: ClassVar[int] = 16
    OPERATIONS: ClassVar[int] = 10
    SIZE: ClassVar[int] = 1 << 20

    def cases(self, scale: Scale) -> Iterator[Parameters]:  # noqa: ARG002  the same in every profile
        """Have one case."""
        yield Parameters()

    def visit(self, visit: Visit) -> None:
        """Build, and remove what was built."""
        visit.target.mkdir(exist_ok=True)
        for _ in visit.rounds(least=1):
            visit.reach(CacheState.WARM)
            chain = visit.bed.layering()
            try:
                with visit.traffic("run"):
                    layers = [self._layer(visit, chain, number) for number in range(self.LAYERS)]
            finally:
                chain.remove()
            sums = [sum(parts) for parts in zip(*layers, strict=True)]
            for metric, seconds in zip(_STEPS, sums, strict=True):
                visit.record(metric, seconds)
            visit.record("run", sum(sums), written=self.LAYERS * self.OPERATIONS * self.SIZE)

    def _layer(self, visit: Visit, chain: Layering, number: int) -> tuple[float, float, float, float]:
        """Build one layer and return the seconds of its steps."""
        prepared = clock.timed(chain.prepare)
        mounted = clock.timed(chain.mount, visit.target)
        try:
            written = clock.timed(self._operate, visit.target, number)
        finally:
            mounted += clock.timed(chain.unmount, visit.target)
        return prepared, mounted, written, clock.timed(chain.commit)

    def _operate(self, root: Path, layer: int) -> None:
        block = os.urandom(self.SIZE)
        for number in range(self.OPERATIONS):
            below = f"{root}/layer-{layer - 1}-{number}"
            if layer and layer % _REMOVE_EVERY == 0 and os.path.exists(below):
                os.unlink(below)
            elif layer and layer % _CHANGE_EVERY == 0 and os.path.exists(below):
                _write(below, block)
            else:
                _write(f"{root}/layer-{layer}-{number}", block)


def _write(path: str, block: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, block)
    finally:
        os.close(fd)
