"""What a scenario is: a name, what it times and what theory expects of that, its cases, and the work itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from layerfs_bench.results import Parameters, Position, Unit
from layerfs_bench.visit import Visit


@dataclass(frozen=True, slots=True)
class Metric:
    """One thing that a scenario times: its name in results, what it is, and what theory expects of the drivers."""

    name: str
    measures: str
    expects: str
    unit: Unit = Unit.SECONDS


@dataclass(frozen=True, slots=True)
class Scale:
    """How far the cases of scenarios go in a profile: ``sizes`` of files in bytes, ``depths`` in layers, and so on."""

    depths: tuple[int, ...]
    sizes: tuple[int, ...]
    clones: tuple[int, ...]
    workers: tuple[int, ...]
    shared: tuple[int, ...]
    """How many clones read the same file."""
    files: int
    """How many files are made, changed or removed at a time."""


class Scenario(ABC):
    """A piece of work; subclasses are listed in `layerfs_bench.scenarios`."""

    name: ClassVar[str]
    """What it is called in results: the group, a dot, and the work."""
    metrics: ClassVar[tuple[Metric, ...]]
    positions: ClassVar[tuple[Position, ...]] = ()
    """The layers for which each metric is measured apart, in every visit; none where that means nothing."""

    @property
    def group(self) -> str:
        """Return what it belongs to: "lookup", "write", "lifecycle", "read", "build" or "mixed"."""
        return self.name.partition(".")[0]

    @property
    def summary(self) -> str:
        """Return what it does, in a sentence: the first of its docstring."""
        return (self.__doc__ or "").partition("\n")[0]

    @abstractmethod
    def cases(self, scale: Scale) -> Iterator[Parameters]:
        """Yield the parameters with which it is done."""

    @abstractmethod
    def visit(self, visit: Visit) -> None:
        """Do the work once in a cell and take the samples; raise `Unfit` where it makes no sense there."""
