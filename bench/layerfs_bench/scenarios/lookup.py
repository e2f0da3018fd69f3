"""Lookups: what it costs to find a name, by the number of layers and by the layer in which it lies."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from layerfs.contract import CopyUnit
from layerfs.kernel.descriptors import opened
from layerfs_bench import clock
from layerfs_bench.child import Unfit
from layerfs_bench.results import CacheState, Parameters, Position
from layerfs_bench.scenarios.base import Metric, Scale, Scenario
from layerfs_bench.scenarios.images import NAMES_PER_LAYER, name_in, stack
from layerfs_bench.visit import Visit

_DEEPEST_COPY = 64
"""Layers: each layer of the copy driver holds all files of those below, which grows with the square of the depth."""
_CACHED_TURNS = 8
"""How often names that are cached are looked up for one sample."""

_FIRST = "flat for a plain directory, snapshots and an index; overlay asks each layer: some 0.7 µs for one on ext4"
_CACHED = "flat at every depth: the kernel remembers the answer"


def _names(depth: int, position: Position) -> list[str]:
    """Return the names to look for; no two positions share one, even where they are the same layer."""
    places = {Position.TOP: depth - 1, Position.MIDDLE: depth // 2, Position.BOTTOM: 0}
    share = range(list(Position).index(position), NAMES_PER_LAYER, len(places))
    if position not in places:
        return [f"absent-{number}" for number in range(NAMES_PER_LAYER // len(places))]
    return [name_in(places[position], number) for number in share]


def _check_depth(visit: Visit, depth: int) -> None:
    """Refuse a depth that the driver cannot have, or that would tell nothing and take for ever."""
    traits = visit.bed.traits
    if traits is None:
        return
    if traits.copy_unit is CopyUnit.TREE and depth > _DEEPEST_COPY:
        raise Unfit(f"each layer is a whole copy, so {depth} of them would tell nothing that {_DEEPEST_COPY} do not")
    if traits.max_layers is not None and depth > traits.max_layers:
        raise Unfit(f"the driver has {traits.max_layers} layers at the most")


class _ByDepth(Scenario):
    """Look at fresh roots of stacks of layers."""

    def cases(self, scale: Scale) -> Iterator[Parameters]:
        """Go by depth."""
        return (Parameters(depth=depth) for depth in scale.depths)

    def visit(self, visit: Visit) -> None:
        """Look at one root after the other."""
        depth = visit.parameters.depth or 1
        _check_depth(visit, depth)
        visit.bed.load(stack(depth))
        for _ in visit.rounds():
            with visit.root(stack(depth)) as root:
                self.look(visit, depth, root)

    @abstractmethod
    def look(self, visit: Visit, depth: int, root: Path) -> None:
        """Take the samples of one root."""


class _ByName(_ByDepth):
    """Look names up one by one in a directory that all layers have a part in."""

    positions: ClassVar[tuple[Position, ...]] = tuple(Position)

    def look(self, visit: Visit, depth: int, root: Path) -> None:
        """Look up each name once, in a random order, then all again, while the kernel remembers them."""
        with opened(os.open(root / "names", os.O_RDONLY)) as directory:
            self._measure(visit, depth, self.operation(directory))

    def _measure(self, visit: Visit, depth: int, operation: Callable[[str], object]) -> None:
        named = [(position, name) for position in Position for name in _names(depth, position)]
        visit.rng.shuffle(named)
        for position, name in named:
            visit.record("first", clock.timed(operation, name), position=position)
        for position in Position:
            names = _names(depth, position) * _CACHED_TURNS
            seconds = clock.timed_each(operation, names)
            visit.record("cached", seconds, operations=len(names), position=position, state=CacheState.WARM)

    @abstractmethod
    def operation(self, directory: int) -> Callable[[str], object]:
        """Return what is done with a name of the directory."""


class Stat(_ByName):
    """Ask for the attributes of a name in a directory that all layers have a part in (stat)."""

    name: ClassVar[str] = "lookup.stat"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("first", "stat of a name that the kernel does not know yet", _FIRST),
        Metric("cached", "stat of a name that it knows", _CACHED),
    )

    def operation(self, directory: int) -> Callable[[str], object]:
        """Return stat(2), below the directory, of what may be missing."""

        def look(name: str) -> None:
            try:
                os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                return

        return look


class Open(_ByName):
    """Open and close a file in a directory that all layers have a part in."""

    name: ClassVar[str] = "lookup.open"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("first", "open and close of a file that the kernel does not know yet", _FIRST),
        Metric("cached", "open and close of a file that it knows", _CACHED + "; overlay opens two files for one"),
    )

    def operation(self, directory: int) -> Callable[[str], object]:
        """Return open(2) and close(2), below the directory, of what may be missing."""

        def look(name: str) -> None:
            try:
                os.close(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory))
            except FileNotFoundError:
                return

        return look


class _Whole(_ByDepth):
    """Look at whole directories."""

    def look(self, visit: Visit, depth: int, root: Path) -> None:  # noqa: ARG002  the same at every depth
        """Do it once, then again."""
        place = os.fspath(root)
        visit.time("first", self.operation, place)
        visit.record("cached", clock.timed(self.operation, place), state=CacheState.WARM)

    @abstractmethod
    def operation(self, root: str) -> None:
        """Do the work below a root."""


class Readdir(_Whole):
    """List a directory of 128 files, of which each layer brings one anew."""

    name: ClassVar[str] = "lookup.readdir"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("first", "the names of a directory that was not read yet", "grows with the layers that overlay merges"),
        Metric("cached", "the names of a directory that was just read", "flat; overlay keeps what it merged"),
    )

    def operation(self, root: str) -> None:
        """Read all names."""
        os.listdir(f"{root}/list")


class Walk(_Whole):
    """Walk a tree of 8 directories and 64 files and ask for the attributes of each."""

    name: ClassVar[str] = "lookup.walk"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("first", "names and attributes of a whole tree", "grows with the layers in overlay; an index is flat"),
        Metric("cached", "the same again", _CACHED),
    )

    def operation(self, root: str) -> None:
        """Walk with a stat each, as `ls -lR` does."""
        pending = [f"{root}/tree"]
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
