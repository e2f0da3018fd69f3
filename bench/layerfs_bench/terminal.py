"""A result in the terminal: the table with ratios, plots with their sentences, and what to doubt."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

import click

from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.text import GAP, printable, table, tame
from layerfs_bench import characters, ratios, words
from layerfs_bench.analysis import Analysis, Row, analyse, doubts
from layerfs_bench.catalogue import figures
from layerfs_bench.figures import Figure
from layerfs_bench.looks import looks
from layerfs_bench.results import Measurement, Outcome, Results

_PLOTTED = ("lookup-by-depth", "first-write")
"""The figures that are drawn; of the others the sentence is shown."""
_WIDEST = 100


def show(session: Session, results: Results) -> None:
    """Show a result as text or, with ``--json``, its figures as a document."""
    analysis = analyse(results)
    session.show(document(analysis), lambda: "\n".join(text(analysis)))


def text(analysis: Analysis) -> Iterator[str]:
    """Yield the lines of a result."""
    drawn = figures(analysis)
    yield from _header(analysis)
    yield from _overview(analysis)
    for figure in drawn:
        yield from _figure(figure, analysis)
    yield from _doubts(analysis)


def _header(analysis: Analysis) -> Iterator[str]:
    run, machine = analysis.results.run, analysis.results.fingerprint
    yield (
        f"{len(analysis.rows):,} measurements, profile {printable(run.profile)}, {run.started:%Y-%m-%d %H:%M}, in "
        f"{words.duration(run.took)}, on {machine.cores} cores of {printable(machine.cpu)}, "
        f"Linux {printable(machine.kernel)}"
    )
    if run.interrupted:
        yield click.style("The run was interrupted: this is what had been measured until then.", fg="yellow")


def _overview(analysis: Analysis) -> Iterator[str]:
    found = ratios.overview(analysis)
    if not found.columns:
        return
    headings = tuple(column.title.upper() for column in found.columns)
    rows = [
        tuple(ratios.told(row, absolute=cell.is_baseline) for row in rows)
        for cell, rows in zip(found.cells, found.rows, strict=True)
    ]
    lines = [tuple(column.detail for column in found.columns), *rows]
    names = ["", *(cell.name for cell in found.cells)]
    for first, last in _breaks(names, [headings, *lines]):
        yield ""
        shown = [(name, *line[first:last]) for name, line in zip(names, lines, strict=True)]
        yield table(("CELL", *headings[first:last]), shown, right=headings)
    yield "plain: medians; others: multiples of the plain directory on that file system; ~ unstable or few samples"


def _breaks(names: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[tuple[int, int]]:
    """Yield which columns, from the first to before the last, fit side by side behind the names; one at least."""
    room = _width() - max(map(len, names))
    widths = [max(map(len, column)) + len(GAP) for column in zip(*lines, strict=True)]
    first = 0
    for last in range(1, len(widths) + 1):
        if last == len(widths) or sum(widths[first : last + 1]) > room:
            yield first, last
            first = last


def _width() -> int:
    return min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)


def _figure(figure: Figure, analysis: Analysis) -> Iterator[str]:
    of_cells = looks(analysis.cells)
    width = _width()
    yield ""
    yield click.style(figure.title, bold=True)
    yield click.wrap_text(printable(figure.sentence), width, "  ", "  ")
    if figure.name in _PLOTTED:
        panel = figure.panels[0]
        yield from characters.plot(panel, of_cells, width=width)
        yield characters.legend([line.cell.name for line in panel.lines], of_cells)


def _doubts(analysis: Analysis) -> Iterator[str]:
    for sentence in doubts(analysis):
        yield ""
        yield click.style(sentence, fg="yellow")
    for (outcome, reason), ones in _alike(analysis.failures).items():
        first, *others = (f"{words.key(one.key)} on {one.cell.name}" for one in ones)
        yield tame(f"{outcome}: {first}{f' and {len(others)} more' if others else ''}: {reason}")
    for left in analysis.results.left_out:
        yield tame(f"left out: {left.what}: {left.reason}" + (f" ({left.hint})" if left.hint else ""))


def _alike(failures: Sequence[Measurement]) -> dict[tuple[Outcome, str], list[Measurement]]:
    """Put together what has the same outcome for the same reason."""
    alike: dict[tuple[Outcome, str], list[Measurement]] = {}
    for one in failures:
        alike.setdefault((one.outcome, one.reason), []).append(one)
    return alike


# -- for machines ------------------------------------------------------------------------------------------------------


def document(analysis: Analysis) -> dict[str, Json]:
    """Return the figures of a result; times are in seconds. The samples themselves are in the result file."""
    return {
        "profile": analysis.results.run.profile,
        "started": analysis.results.run.started.isoformat(),
        "interrupted": analysis.results.run.interrupted,
        "measurements": [_measurement(row) for row in analysis.rows],
        "findings": [{"figure": one.name, "text": one.sentence} for one in figures(analysis)],
        "failed": [
            {"key": str(one.key), "cell": one.cell.name, "outcome": str(one.outcome), "reason": one.reason}
            for one in analysis.failures
        ],
        "left_out": [{"what": one.what, "reason": one.reason, "hint": one.hint} for one in analysis.results.left_out],
    }


def _measurement(row: Row) -> dict[str, Json]:
    of = row.summary
    return {
        "key": str(row.key),
        "cell": row.cell.name,
        "samples": of.count,
        "processes": of.batches,
        "median": of.median,
        "interval": [of.interval.low, of.interval.high],
        "p95": of.p95,
        "p99": of.p99,
        "min": of.least,
        "max": of.most,
        "ratio": row.ratio,
        "doubts": [{"kind": str(one.doubt), "text": one.text} for one in row.concerns],
    }
