"""Plots of characters, for terminals: the same panels as in the report, on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter

import click

from layerfs.commands.frame.text import printable
from layerfs_bench import words
from layerfs_bench.figures import Line, Panel
from layerfs_bench.looks import Look

COLOURS = ("bright_black", "blue", "red", "green", "magenta", "yellow", "cyan", "white")
"""The terminal's colours for those of `layerfs_bench.looks`."""
_SIGNS = "●■◆▲▼✚✖○□◇△▽★☆abcdefghijklmnopqrstuvwxyz"
"""A sign for each cell, so that they are told apart without colour."""
_PATH = "·"
_MARGIN = 10
"""Characters of the names at the y axis."""


@dataclass(slots=True)
class _Grid:
    """Characters with their colours; (0, 0) is at the lower left."""

    width: int
    height: int
    cells: dict[tuple[int, int], tuple[str, int]]

    def put(self, column: int, row: int, char: str, colour: int, *, over: bool = True) -> None:
        """Put a character somewhere; without ``over`` only where there is none."""
        if 0 <= column < self.width and 0 <= row < self.height and (over or (column, row) not in self.cells):
            self.cells[column, row] = char, colour

    def row(self, number: int) -> str:
        """Return a row with its colours."""
        chars = (self.cells.get((column, number), (" ", 0)) for column in range(self.width))
        runs = (("".join(char for char, _ in run), colour) for colour, run in groupby(chars, key=itemgetter(1)))
        return "".join(click.style(run, fg=COLOURS[colour]) if run.strip() else run for run, colour in runs).rstrip()


def plot(panel: Panel, looks: Mapping[str, Look], *, width: int = 72, height: int = 12) -> Iterator[str]:
    """Yield the lines of a plot; none for a panel over names, of which the table is the better picture."""
    if panel.x.names or not panel.lines:
        return
    grid = _Grid(max(20, width - _MARGIN - 2), height, {})
    xs = [point.x for line in panel.lines for point in line.points]
    ys = [point.y for line in panel.lines for point in line.points]
    across, up = _scale(xs, grid.width), _scale(ys, grid.height, least=4.0)
    for line in panel.lines:
        _draw(grid, line, looks[line.cell.name], across, up)
    if panel.title:
        yield " " * (_MARGIN + 2) + click.style(panel.title, bold=True)
    for row in reversed(range(height)):
        name = words.amount(up.value(row), panel.y.unit) if row % 4 == 0 or row == height - 1 else ""
        yield f"{name:>{_MARGIN}} {'┤' if name else '│'}{grid.row(row)}"
    yield " " * (_MARGIN + 1) + "└" + "─" * grid.width
    yield " " * (_MARGIN + 2) + _names(panel.lines, across, grid.width)


def legend(names: Sequence[str], looks: Mapping[str, Look]) -> str:
    """Return the signs and names of cells."""
    signs = {name: click.style(sign(looks[name]), fg=COLOURS[looks[name].colour]) for name in names}
    return "   ".join(f"{signs[name]} {printable(name)}" for name in names)


def sign(look: Look) -> str:
    """Return the character of a cell."""
    return _SIGNS[look.number % len(_SIGNS)]


@dataclass(frozen=True, slots=True)
class _Scale:
    """A logarithmic axis of so many places."""

    low: float
    high: float
    places: int

    def place(self, value: float) -> int:
        """Return the place of a value."""
        return round((math.log(value) - self.low) / (self.high - self.low) * (self.places - 1))

    def value(self, place: int) -> float:
        """Return the value of a place."""
        return math.exp(self.low + (self.high - self.low) * place / (self.places - 1))


def _scale(values: Sequence[float], places: int, *, least: float = 1.01) -> _Scale:
    """Return an axis that holds the values, and spans ``least`` times at least."""
    low, high = math.log(min(values)), math.log(max(values))
    missing = max(0.0, math.log(least) - (high - low)) / 2
    return _Scale(low - missing, high + missing, places)


def _draw(grid: _Grid, line: Line, look: Look, across: _Scale, up: _Scale) -> None:
    places = [(across.place(point.x), up.place(point.y)) for point in line.points]
    for (left, start), (right, end) in pairwise(places):
        for column in range(left + 1, right):
            share = (column - left) / (right - left)
            grid.put(column, round(start + (end - start) * share), _PATH, look.colour, over=False)
    for column, row in places:
        grid.put(column, row, sign(look), look.colour)


def _names(lines: Sequence[Line], across: _Scale, width: int) -> str:
    """Return the names of the places on the x axis, as many as find room."""
    names = {across.place(point.x): point.text for line in lines for point in line.points}
    text = ""
    for place in sorted(names):
        start = max(0, min(place - len(names[place]) // 2, width - len(names[place])))
        if not text or start > len(text):
            text = text.ljust(start) + names[place]
    return text
