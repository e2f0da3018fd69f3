"""The page of the report: what was found first, then each plot with its sentence and its table, the method last."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

from layerfs.commands.frame.units import size
from layerfs_bench import ratios, words
from layerfs_bench.analysis import Analysis, Row
from layerfs_bench.catalogue import figures
from layerfs_bench.figures import Figure
from layerfs_bench.looks import Look, looks
from layerfs_bench.report.appendix import doubts, everything, method
from layerfs_bench.report.elements import (
    details,
    escaped,
    hiding,
    legend,
    paragraphs,
    swatch,
    table,
)
from layerfs_bench.report.svg import draw

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"
"""Nothing is loaded, nothing runs, nothing is sent (https://www.w3.org/TR/CSP3/)."""
_HOT = 2.0
"""The ratio to the plain directory from which a figure of the overview is tinted; a tenth of it more, each stronger."""


def page(analysis: Analysis) -> str:
    """Return the whole page."""
    of_cells = looks(analysis.cells)
    drawn = figures(analysis)
    style = resources.files("layerfs_bench.report").joinpath("style.css").read_text(encoding="utf-8")
    parts = (
        _header(analysis),
        _summary(drawn),
        _overview(analysis, of_cells),
        f'<nav class="bar" aria-label="Cells"><p>Show in the plots:</p>{legend(analysis.cells, of_cells)}</nav>',
        *(_section(figure, of_cells) for figure in drawn),
        doubts(analysis),
        everything(analysis, of_cells),
        method(analysis.results),
    )
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(_title(analysis))}</title>\n<style>\n{style}{hiding(of_cells.values())}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _title(analysis: Analysis) -> str:
    run = analysis.results.run
    return f"layerfs bench, {run.started:%Y-%m-%d %H:%M}"


def _header(analysis: Analysis) -> str:
    results = analysis.results
    machine = results.fingerprint
    drivers = [cell for cell in analysis.cells if not cell.is_baseline]
    run = results.run
    line = (
        f"{len(analysis.rows):,} measurements of {len(drivers)} drivers and file systems, profile {run.profile}, "
        f"{run.started:%Y-%m-%d %H:%M %Z}, in {words.duration(run.took)}. "
        f"{machine.cores} cores of {machine.cpu}, {size(machine.memory)}, Linux {machine.kernel}."
    )
    stopped = "The run was interrupted: what follows is what had been measured until then." * run.interrupted
    return f"<header><h1>What storage costs</h1>{paragraphs(line)}{_warning(stopped)}</header>"


def _warning(text: str) -> str:
    return f'<p class="warning" role="note">{escaped(text)}</p>' if text else ""


def _summary(drawn: tuple[Figure, ...]) -> str:
    if not drawn:
        return _warning("Nothing was measured, so there is nothing to show.")
    items = "".join(
        f'<li><a href="#{one.name}">{escaped(one.title)}</a>: {escaped(one.sentence)}</li>' for one in drawn
    )
    return f'<section aria-labelledby="short"><h2 id="short">In short</h2><ul class="short">{items}</ul></section>'


# -- overview ----------------------------------------------------------------------------------------------------------


def _overview(analysis: Analysis, of_cells: Mapping[str, Look]) -> str:
    found = ratios.overview(analysis)
    if not found.columns:
        return ""
    head = "".join(
        f'<th scope="col">{escaped(one.title)}<small>{escaped(one.detail)}</small></th>' for one in found.columns
    )
    body = "".join(
        f'<tr><th scope="row">{swatch(of_cells[cell.name])}{escaped(cell.name)}</th>'
        f"{''.join(_ratio(row, absolute=cell.is_baseline) for row in rows)}</tr>"
        for cell, rows in zip(found.cells, found.rows, strict=True)
    )
    return (
        '<section aria-labelledby="overview"><h2 id="overview">Beside a plain directory</h2>'
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="overview"><table class="ratios">'
        "<caption>Medians as multiples of the plain directory on the same file system, whose own times stand in its "
        "row: 1.0× costs nothing. Each column shows the heaviest case. ~ marks what is unstable or has few "
        "samples.</caption>"
        f'<thead><tr><th scope="col">cell</th>{head}</tr></thead><tbody>{body}</tbody></table></div></section>'
    )


def _ratio(row: Row | None, *, absolute: bool) -> str:
    ratio = 1.0 if row is None or absolute or row.ratio is None else row.ratio
    heat = 0 if ratio < _HOT else 1 if ratio < _HOT * 5 else 2 if ratio < _HOT * 50 else 3
    return f'<td class="h{heat}">{escaped(ratios.told(row, absolute=absolute))}</td>'


# -- figures -----------------------------------------------------------------------------------------------------------


def _section(figure: Figure, of_cells: Mapping[str, Look]) -> str:
    """Return a plot with its sentence before it and its table behind it."""
    shown = list(dict.fromkeys(line.cell.name for panel in figure.panels for line in panel.lines))
    keys = "".join(f"<li>{swatch(of_cells[name])}{escaped(name)}</li>" for name in shown)
    label = f"Plot: {figure.title}. {figure.sentence} The figures are in the table below."
    return (
        f'<section aria-labelledby="{figure.name}"><h2 id="{figure.name}">{escaped(figure.title)}</h2>'
        f'<p class="finding">{escaped(figure.sentence)}</p>'
        f'<figure><div class="plot" role="img" aria-label="{escaped(label)}">{draw(figure, of_cells)}</div>'
        f'<ul class="legend keys" aria-hidden="true">{keys}</ul>'
        f"<figcaption>{escaped(figure.reading)}</figcaption></figure>"
        f"{details('The figures as a table', table(figure.table, figure.title, looks=of_cells))}</section>"
    )
