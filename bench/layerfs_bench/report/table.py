"""The figures as comma-separated values (RFC 4180): a line a measurement, times in seconds, sizes in bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from statistics import median

from layerfs.commands.frame.text import printable
from layerfs_bench.analysis import Analysis, Row
from layerfs_bench.quantities import KINDS

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the start of a formula (OWASP, "CSV Injection")."""
_COLUMNS = (
    "scenario", "metric", "depth", "size", "position", "clones", "workers", "files",
    "cell", "driver", "file_system", "reflink", "options", "outcome",
    "samples", "processes", "median", "low", "high", "mean", "p95", "p99", "min", "max", "ratio", "doubts",
)  # fmt: skip


def text(analysis: Analysis) -> str:
    """Return the whole table, with a line of headings."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow((*_COLUMNS, *KINDS))
    writer.writerows(map(_safe, row) for row in _rows(analysis))
    return out.getvalue()


def _rows(analysis: Analysis) -> Iterator[tuple[object, ...]]:
    for row in analysis.rows:
        yield (*_what(row), *_figures(row), *_counted(row))


def _what(row: Row) -> tuple[object, ...]:
    given, cell = row.key.parameters, row.cell
    options = " ".join(f"{name}={value}" for name, value in cell.options)
    where = cell.name, cell.driver, cell.file_system, "yes" if cell.reflink else "no", options
    places = given.depth, given.size, given.position, given.clones, given.workers, given.files
    return row.key.scenario, row.key.metric, *places, *where, row.measurement.outcome


def _figures(row: Row) -> tuple[object, ...]:
    of = row.summary
    interval = of.interval.low, of.interval.high
    doubts = "; ".join(concern.text for concern in row.concerns)
    return of.count, of.batches, of.median, *interval, of.mean, of.p95, of.p99, of.least, of.most, row.ratio, doubts


def _counted(row: Row) -> Iterator[float | None]:
    """Yield the median of each quantity."""
    for name in KINDS:
        found = row.measurement.quantity(name)
        yield median(found.values) if found and found.values else None


def _safe(value: object) -> object:
    """Return a value that no spreadsheet runs: names come from strangers."""
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown
