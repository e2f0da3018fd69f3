"""What the plots show, as values: the report draws them with matplotlib, the terminal with characters.

A *line* is one cell's points, each a median with its interval. A *panel* has lines over one pair of axes, a *figure*
one panel or more, a sentence that says what is seen, and the table of the same figures. The sentences are made from the
figures (`layerfs_bench.findings`); none is known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from layerfs_bench import words
from layerfs_bench.analysis import Row
from layerfs_bench.results import Cell, Key, Parameters, Position, Unit
from layerfs_bench.statistics import FEWEST, percentile


@dataclass(frozen=True, slots=True)
class Point:
    """A median and its interval at one place of the x axis; ``text`` is that place in words.

    ``sure`` tells that there were samples enough for the interval to mean something.
    """

    x: float
    y: float
    low: float
    high: float
    text: str
    sure: bool = True


@dataclass(frozen=True, slots=True)
class Line:
    """The points of one cell, from left to right."""

    cell: Cell
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """A place to point at, with a few words."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: its title, unit, whether it is logarithmic, and names for its places where these are no numbers."""

    title: str
    unit: Unit
    logarithmic: bool = True
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines over one pair of axes. ``diagonal`` asks for the line y = x, and says what it means."""

    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    diagonal: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """The figures of a plot, in words; the first column names the cell."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot: ``name`` is short and unique, ``sentence`` says what it shows, ``reading`` how to read it."""

    name: str
    title: str
    sentence: str
    reading: str
    panels: tuple[Panel, ...]
    table: Table


Place = Literal["depth", "size", "clones", "workers", "position"]
"""The parameter that is the place on the x axis."""
Value = Callable[[Row], Point | None]
"""Make a point of a row, of which the place is filled in later."""


def timed(row: Row) -> Point:
    """Return the median time of a row."""
    interval = row.summary.interval
    return Point(0, row.summary.median, interval.low, interval.high, "", row.summary.count >= FEWEST)


def counted(name: str) -> Value:
    """Return what takes the median of a quantity, between its least and its most."""

    def value(row: Row) -> Point | None:
        found = row.measurement.quantity(name)
        if found is None or not found.values:
            return None
        return Point(0, median(found.values), min(found.values), max(found.values), "")

    return value


def shared_out(name: str) -> Value:
    """Return what takes a quantity that is counted once a visit, for each of the samples of a visit."""

    def value(row: Row) -> Point | None:
        found = counted(name)(row)
        quantity = row.measurement.quantity(name)
        if found is None or quantity is None:
            return None
        each = max(1.0, len(row.measurement.samples) / len(quantity.values))
        return replace(found, y=found.y / each, low=found.low / each, high=found.high / each)

    return value


def lines(rows: Iterable[Row], place: Place, value: Value = timed) -> tuple[Line, ...]:
    """Return a line for each cell, in the order of the rows; what is 0 has no place on a logarithmic axis."""
    points: dict[Cell, list[Point]] = {}
    for row in rows:
        where, point = _where(row.key.parameters, place), value(row)
        if where is not None and point is not None and point.y > 0:
            x, text = where
            low = max(point.low, point.y / 1e3)
            points.setdefault(row.cell, []).append(replace(point, x=x, low=low, text=text))
    return tuple(Line(cell, tuple(sorted(found, key=lambda one: one.x))) for cell, found in points.items())


def _where(parameters: Parameters, place: Place) -> tuple[float, str] | None:
    """Return a place on the x axis, and its name."""
    if place == "position":
        position = parameters.position
        return (list(Position).index(position), str(position)) if position else None
    count: int | None = getattr(parameters, place)
    if not count or count < 0:
        return None
    alone: dict[str, Any] = {place: count}
    return count, words.parameters(Parameters(**alone))


def by_key(rows: Iterable[Row], keys: Sequence[Key]) -> tuple[Line, ...]:
    """Return a line for each cell whose places are the keys."""
    points: dict[Cell, list[Point]] = {}
    for row in rows:
        middle, interval = row.summary.median, row.summary.interval
        point = Point(keys.index(row.key), middle, interval.low, interval.high, words.key(row.key))
        points.setdefault(row.cell, []).append(point)
    return tuple(Line(cell, tuple(sorted(found, key=lambda one: one.x))) for cell, found in points.items())


def distribution(row: Row) -> Line:
    """Return the share of samples up to a time, over the time."""
    ordered = sorted(row.measurement.samples)
    steps = sorted({number * (len(ordered) - 1) // 100 for number in range(101)})  # 100 steps show every percentile
    shares = ((ordered[number], (number + 1) / len(ordered)) for number in steps)
    return Line(row.cell, tuple(Point(x, y, y, y, "") for x, y in shares if x > 0))


def spread_table(panels: Sequence[tuple[str, Sequence[Row]]]) -> Table:
    """Return the percentiles of distributions."""
    headings = ("cell", "what", "samples", "least", "median", "95 %", "99 %", "most")
    return Table(headings, tuple(_spread_row(title, row) for title, rows in panels for row in rows))


def _spread_row(title: str, row: Row) -> tuple[str, ...]:
    ordered = sorted(row.measurement.samples)
    figures = (words.duration(percentile(ordered, percent)) for percent in (0, 50, 95, 99, 100))
    return (row.cell.name, title, f"{len(ordered):,}", *figures)


def table(panels: Sequence[Panel]) -> Table:
    """Return the points of panels as a table, a row for each cell and panel, a column for each place."""
    several = len(panels) > 1
    places = sorted({(point.x, point.text) for panel in panels for line in panel.lines for point in line.points})
    names = dict(places)
    columns = list(names)
    rows = [
        (line.cell.name, *([panel.title] if several else []), *_cells(line, columns, panel.y.unit))
        for panel in panels
        for line in panel.lines
    ]
    headings = ("cell", *(["what"] if several else []), *(names[x] for x in columns))
    return Table(headings, tuple(rows))


def _cells(line: Line, columns: Sequence[float], unit: Unit) -> Iterable[str]:
    points = {point.x: point for point in line.points}
    return (_interval(points[x], unit) if x in points else "" for x in columns)


def _interval(point: Point, unit: Unit) -> str:
    middle = words.amount(point.y, unit)
    low, high = words.amount(point.low, unit), words.amount(point.high, unit)
    return middle if low == middle == high else f"{middle} ({low} to {high})"
