"""What a comparison of file systems says: medians for each unit of work, ratios to layerfs, and the bars for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from types import MappingProxyType
from typing import Any

from unions.indexes import Built
from unions.meter import Sample

OURS = "layerfs"
"""How the names of our own file systems start."""
PASSTHROUGH = "layerfs"
NO_PASSTHROUGH = "layerfs, no passthrough"
REDIRECT = "layerfs redirect"
_OTHER, _KERNEL = "fuse-overlayfs", "overlay"

_FASTER: Mapping[int, float] = MappingProxyType({1: 2.0, 8: 4.0, 32: 8.0, 128: 15.0})
"""How many times cheaper than fuse-overlayfs the first look at a name has to be, by depth."""
_LOOKS = ("stat", "walk")
_FLAT = 1.2
"""How many times the cost with 1 layer the cost with 128 may be."""
_AHEAD = 32
"""Layers from which on the first look at a name is to be cheaper than through the kernel's overlay."""
_FIRST_WRITE = 500.0
_READ = 1.1
"""How many times the cost of the kernel's overlay reading may be with passthrough."""
_MEASURES = ("cpu", "wall")


@dataclass(slots=True)
class Cell:
    """The samples of one file system at one work and depth; ``units`` is how much a run did."""

    work: str
    unit: str
    units: int
    depth: int
    peer: str
    samples: list[Sample] = field(default_factory=list[Sample])

    def of(self, what: str) -> float:
        """Return the median of a measure for each unit, in microseconds."""
        return median(float(getattr(sample, what)) for sample in self.samples) / self.units * 1e6


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar: what was reached in CPU and wall time, and what is asked; ``most`` tells that less is better."""

    what: str
    asked: float
    cpu: float
    wall: float
    most: bool = False

    def passed(self, value: float) -> bool:
        """Tell whether a value reaches the bar."""
        return value <= self.asked if self.most else value >= self.asked


@dataclass(slots=True)
class Results:
    """Everything measured, in the order in which it was."""

    cells: list[Cell] = field(default_factory=list[Cell])
    indexes: dict[int, Built] = field(default_factory=dict[int, Built])

    def cell(self, work: str, depth: int, peer: str) -> Cell | None:
        """Return what was measured, if anything."""
        found = (cell for cell in self.cells if (cell.work, cell.depth, cell.peer) == (work, depth, peer))
        return next((cell for cell in found if cell.samples), None)

    def ours(self) -> list[Cell]:
        """Return the cells of our own."""
        return [cell for cell in self.cells if cell.peer.startswith(OURS) and cell.samples]


# -- bars --------------------------------------------------------------------------------------------------------------


def bars(results: Results) -> Iterator[Bar]:
    """Yield the bars that apply to what was measured."""
    for cell in results.ours():
        where = f"{cell.work}, {cell.depth} layers, {cell.peer}"
        other = results.cell(cell.work, cell.depth, _OTHER)
        kernel = results.cell(cell.work, cell.depth, _KERNEL)
        if other:
            asked = _FASTER.get(cell.depth, 1.0) if cell.work in _LOOKS else 1.0
            yield _bar(f"{where}: times faster than {_OTHER}", asked, other, cell)
        if kernel and cell.work == "stat" and cell.depth >= _AHEAD:
            yield _bar(f"{where}: times faster than {_KERNEL}", 1.0, kernel, cell)
        if kernel and cell.work == "read" and cell.peer == PASSTHROUGH:
            yield _bar(f"{where}: times the time of {_KERNEL}", _READ, cell, kernel, most=True)
        if cell.peer == REDIRECT:
            yield from (
                _bar(f"{where}: times faster than {one.peer}", _FIRST_WRITE, one, cell)
                for one in (other, kernel)
                if one
            )
        shallow = results.cell(cell.work, 1, cell.peer)
        if shallow and cell.work in _LOOKS and cell.depth == max(_FASTER):
            yield _bar(f"{where}: times the time with 1", _FLAT, cell, shallow, most=True)


def _bar(what: str, asked: float, over: Cell, under: Cell, *, most: bool = False) -> Bar:
    cpu, wall = (over.of(measure) / under.of(measure) for measure in _MEASURES)
    return Bar(what, asked, cpu, wall, most)


# -- text --------------------------------------------------------------------------------------------------------------


def lines(results: Results) -> Iterator[str]:
    """Yield everything as text, in Markdown that also reads well as it is."""
    for depth in dict.fromkeys(cell.depth for cell in results.cells):
        for measure, title in zip(_MEASURES, ("CPU time of client and server", "wall time"), strict=True):
            yield from _table(results, depth, measure, f"### {depth} layers: {title}, µs a unit")
    for depth, index in results.indexes.items():
        built = f"{index.cpu:.2f} s of CPU for all layers, {index.last:.2f} s for the uppermost alone"
        yield f"- The index of {depth} layers: {built}; {index.size / 1e6:.1f} MB"
    yield ""
    judged = list(bars(results))
    missed = [bar for bar in judged if not bar.passed(bar.cpu) or not bar.passed(bar.wall)]
    yield f"### Bars: {len(judged) - len(missed)} of {len(judged)} passed by CPU and by wall time"
    for bar in judged:
        told = ", ".join(
            f"{name} {value:.2f} {'pass' if bar.passed(value) else 'MISS'}"
            for name, value in (("CPU", bar.cpu), ("wall", bar.wall))
        )
        yield f"- {bar.what}: {'at most' if bar.most else 'at least'} {bar.asked:g}; {told}"


def _table(results: Results, depth: int, measure: str, title: str) -> Iterator[str]:
    """Yield a table of one depth; behind each time of another stands how many times that of our first it is."""
    at_depth = [cell for cell in results.cells if cell.depth == depth and cell.samples]
    peers = list(dict.fromkeys(cell.peer for cell in at_depth))
    ours = next((peer for peer in peers if peer.startswith(OURS)), None)
    yield title
    yield f"| {'work':18} | {'unit':5} |" + "".join(f" {peer:>23} |" for peer in peers)
    yield f"|{'-' * 20}|{'-' * 7}|" + f"{'-' * 24}:|" * len(peers)
    for work in dict.fromkeys(cell.work for cell in at_depth):
        cells = {cell.peer: cell for cell in at_depth if cell.work == work}
        base = cells[ours].of(measure) if ours in cells else 0.0
        texts = (_told(cells.get(peer), measure, base if peer != ours else 0.0) for peer in peers)
        yield f"| {work:18} | {next(iter(cells.values())).unit:5} |" + "".join(f" {text:>23} |" for text in texts)
    yield ""


def _told(cell: Cell | None, measure: str, base: float) -> str:
    if cell is None:
        return ""
    value = cell.of(measure)
    digits = max(0, 2 - len(str(int(value))) + 1)
    return f"{value:,.{digits}f}" + (f" ({value / base:.2f})" if base else "")


def document(results: Results, about: dict[str, Any]) -> dict[str, Any]:
    """Return everything measured, for machines."""
    judged = [
        {**asdict(bar), "cpu_passed": bar.passed(bar.cpu), "wall_passed": bar.passed(bar.wall)} for bar in bars(results)
    ]
    indexes = {depth: {"cpu": one.cpu, "last": one.last, "size": one.size} for depth, one in results.indexes.items()}
    return {**about, "indexes": indexes, "cells": [asdict(cell) for cell in results.cells], "bars": judged}
