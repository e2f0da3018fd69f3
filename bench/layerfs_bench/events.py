"""What happens during a run, as events: the runner reports them, and whoever asked draws them.

They come in the thread that runs: `RunStarted` first, `Preparing` while stores and images are made, then pairs of
`VisitStarted` and `VisitEnded`, with a `Note` between where something is to be said, and `RunEnded` last, which comes
even when the run is interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from layerfs_bench.results import Cell, Fingerprint, LeftOut, Measurement, Outcome, Parameters, Results


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Say what will be measured; ``budget`` is in seconds, ``visits`` are those planned."""

    fingerprint: Fingerprint
    cells: tuple[Cell, ...]
    scenarios: tuple[str, ...]
    visits: int
    budget: float | None
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True)
class Preparing:
    """Say what is being made before something can be measured: "the file system xfs"."""

    what: str


@dataclass(frozen=True, slots=True)
class VisitStarted:
    """Say that a scenario begins in a cell: it is the ``number``-th visit of ``total``, counted from 1."""

    scenario: str
    parameters: Parameters
    cell: Cell
    number: int
    total: int


@dataclass(frozen=True, slots=True)
class VisitEnded:
    """Say what a visit found: ``measurements`` hold its own samples alone, one for each metric.

    ``total`` can grow and shrink, as what is left of a budget is known better; ``elapsed`` are seconds since the start.
    """

    scenario: str
    parameters: Parameters
    cell: Cell
    outcome: Outcome
    measurements: tuple[Measurement, ...]
    number: int
    total: int
    took: float
    elapsed: float


@dataclass(frozen=True, slots=True)
class Note:
    """Say something that people should know: why a cell was given up, or that the machine is busy."""

    text: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """Give everything that was found."""

    results: Results


Event = RunStarted | Preparing | VisitStarted | VisitEnded | Note | RunEnded

Listener = Callable[[Event], None]
"""Receive events; it should return quickly and must not raise."""


def ignore(event: Event) -> None:
    """Drop an event: the listener of those who did not ask."""
