"""The table that people look at first: each cell beside the plain directory of its file system, a few works wide."""

from __future__ import annotations

from dataclasses import dataclass, replace

from layerfs_bench import words
from layerfs_bench.analysis import Analysis, Row, weight
from layerfs_bench.results import Cell, Key

_CHOSEN = (
    ("lookup.stat", "first", "first lookup"),
    ("lookup.stat", "cached", "cached lookup"),
    ("write.first", "first", "first write"),
    ("write.first", "second", "second write"),
    ("write.create", "", "new files"),
    ("read.sequential", "", "read"),
    ("lifecycle", "clone", "clone"),
    ("lifecycle", "commit", "commit"),
    ("lifecycle", "remove", "remove"),
    ("build.containerd", "", "build"),
    ("mixed.untar", "", "untar"),
    ("mixed.git", "", "git"),
    ("mixed.compile", "", "compile"),
    ("mixed.sqlite", "", "sqlite"),
)
"""What stands in it, where it was measured: the heaviest parameters of each; "" is whichever metric there is."""


@dataclass(frozen=True, slots=True)
class Column:
    """A work: its short name, with which parameters, and what was measured."""

    title: str
    detail: str
    key: Key


@dataclass(frozen=True, slots=True)
class Overview:
    """Rows of cells, ``rows[cell][column]``; None where nothing was measured."""

    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]
    rows: tuple[tuple[Row | None, ...], ...]


def overview(analysis: Analysis) -> Overview:
    """Choose the columns, and find their rows."""
    columns = tuple(column for chosen in _CHOSEN if (column := _column(analysis, *chosen)) is not None)
    cells = tuple(cell for cell in analysis.cells if any(analysis.find(one.key, cell) for one in columns))
    return Overview(columns, cells, tuple(tuple(analysis.find(one.key, cell) for one in columns) for cell in cells))


def _column(analysis: Analysis, scenario: str, metric: str, title: str) -> Column | None:
    keys = [key for key in analysis.keys if key.scenario == scenario and metric in {"", key.metric}]
    if not keys:
        return None
    heaviest = max(keys, key=weight)
    return Column(title, words.parameters(replace(heaviest.parameters, position=None)), heaviest)


def told(row: Row | None, *, absolute: bool) -> str:
    """Write a row as a ratio, or as a time where it is asked for or has no baseline; a doubtful figure has a "~"."""
    if row is None:
        return ""
    doubt = "~" if row.concerns else ""
    if absolute or row.ratio is None:
        return doubt + words.duration(row.summary.median)
    return doubt + words.times(row.ratio)
