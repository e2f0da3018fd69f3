"""Plots as SVG that lives inside a page: its colours are the page's, its text is the page's, its names are its own.

Matplotlib wants colours that are numbers. It is given numbers that nothing else has, and in what it writes they become
variables of the page's style sheet, so that the same plot is readable on light and on dark. Nothing global is touched:
no pyplot, no setting outlives the drawing.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from layerfs.commands.frame.text import printable
from layerfs_bench.figures import Axis, Figure, Line, Panel
from layerfs_bench.looks import MARKERS, Look
from layerfs_bench.report.ticks import label, ticks, widened

_INK, _LINE, _FAINT, _CARD = "#fe0001", "#fe0002", "#fe0003", "#fe0004"
_SERIES = "#fe01{:02x}"
_VARIABLES = {_INK: "var(--ink)", _LINE: "var(--line)", _FAINT: "var(--faint)", _CARD: "var(--card)"}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read, searched and zoomed
    "svg.hashsalt": "layerfs",  # the same figures make the same file
    "text.parse_math": False,  # a "$" in somebody's name is no formula
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10.5,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _FAINT,
    "grid.linewidth": 0.7,
}
_LONGEST = 44
"""Characters of a name in a plot; the page has them whole."""
_COLUMNS = 2
_HEIGHT, _WIDTH = 3.5, 4.7
"""Inches of a panel."""


def draw(figure: Figure, looks: Mapping[str, Look]) -> str:
    """Return a figure as the text of an ``<svg>`` element."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcParams.update(_SETTINGS)
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the page's fonts may have it
        return _own(_written(_canvas(figure, looks)), figure.name)


def _canvas(figure: Figure, looks: Mapping[str, Look]) -> Canvas:
    columns = min(len(figure.panels), _COLUMNS)
    rows = -(-len(figure.panels) // columns)
    single = len(figure.panels) == 1
    tall = max(_HEIGHT, 0.55 * len(figure.panels[0].x.names) + 1.2)
    canvas = Canvas(
        figsize=(9.4 if single else _WIDTH * columns, tall if single else _HEIGHT * rows), layout="constrained"
    )
    grid = canvas.subplots(rows, columns, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number < len(figure.panels):
            _draw_panel(axes, figure.panels[number], looks)
        else:
            axes.set_visible(False)
    return canvas


def _written(canvas: Canvas) -> str:
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    canvas.savefig(out, format="svg", transparent=True, metadata=nothing)
    return out.getvalue()


def _own(text: str, name: str) -> str:
    """Make a document into an element of a page: no head, colours by variables, ids that no other plot has."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)  # that style is everybody's
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', _root, text, count=1)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r"#fe01([0-9a-f]{2})", lambda found: f"var(--c{int(found[1], 16)})", text)
    text = re.sub(r'id="series-(\d+)"', r'class="s\1"', text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace("font: 10px 'sans-serif'", "font: 10px sans-serif").strip()


def _root(found: re.Match[str]) -> str:
    return f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{found[1]}" aria-hidden="true" focusable="false">'


# -- panels ------------------------------------------------------------------------------------------------------------


def _draw_panel(axes: Axes, panel: Panel, looks: Mapping[str, Look]) -> None:
    if panel.title:
        axes.set_title(_short(panel.title), loc="left")
    if panel.x.names:
        _draw_categories(axes, panel, looks)
        return
    share = not panel.y.logarithmic
    for number, line in enumerate(panel.lines):
        width = 1.5 + 1.7 * (1 - number / len(panel.lines))  # of lines that lie upon each other the lower ones are seen
        _draw_line(axes, line, looks[line.cell.name], width, steps=share)
    places = [point.x for line in panel.lines for point in line.points]
    values = [] if share else [edge for line in panel.lines for one in line.points for edge in (one.low, one.high)]
    if panel.diagonal:
        ends = [min(places), max(places)]
        axes.plot(ends, ends, color=_LINE, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        upper = ends[0] ** 0.3 * ends[1] ** 0.7
        _say(axes, panel.diagonal, upper, upper, (34, -16))
        values += ends
    for mark in panel.marks:
        axes.plot([mark.x], [mark.y], marker="x", markersize=11, markeredgewidth=2.5, color=_INK, zorder=5)
        _say(axes, mark.text, mark.x, mark.y, (0, 14))
    if share:
        _scale(axes, "x", panel.x, ticks(panel.x, widened(places)), widened(places))
        _scale(axes, "y", panel.y, ticks(panel.y, ()))
    else:
        _scale(axes, "x", panel.x, ticks(panel.x, places, exactly=True))
        _scale(axes, "y", panel.y, ticks(panel.y, widened(values)), widened(values))
    axes.grid(visible=True, which="major")


def _say(axes: Axes, text: str, x: float, y: float, away: tuple[int, int]) -> None:
    """Write words so many points away from a place, on a ground of their own."""
    ground = {"facecolor": _CARD, "edgecolor": "none", "pad": 1.5, "alpha": 0.85}
    axes.annotate(text, (x, y), away, textcoords="offset points", ha="center", color=_INK, bbox=ground, zorder=6)


def _draw_line(axes: Axes, line: Line, look: Look, width: float, *, steps: bool) -> None:
    colour, name = _SERIES.format(look.colour), f"series-{look.number}"
    xs, ys = [point.x for point in line.points], [point.y for point in line.points]
    dashes = {"solid": "-", "dashed": (0, (5, 2)), "dotted": (0, (1, 1.6))}[look.dashes]
    if steps:
        axes.step(xs, ys, where="post", color=colour, linestyle=dashes, linewidth=width, gid=name)
        middle = len(xs) // 2
        axes.plot(xs[middle], ys[middle], MARKERS[look.marker], color=colour, markersize=6, gid=name)
        return
    axes.vlines(
        xs, [one.low for one in line.points], [one.high for one in line.points], colors=colour, linewidth=1.2, gid=name
    )
    axes.plot(
        xs, ys, color=colour, linestyle=dashes, linewidth=1.8, marker=MARKERS[look.marker], markersize=6, gid=name
    )


def _draw_categories(axes: Axes, panel: Panel, looks: Mapping[str, Look]) -> None:
    """Draw names from top to bottom, and the cells of each a little below each other."""
    count = max(len(panel.lines), 1)
    for number, line in enumerate(panel.lines):
        look = looks[line.cell.name]
        colour, name = _SERIES.format(look.colour), f"series-{look.number}"
        ys = [point.x + 0.7 * ((number + 0.5) / count - 0.5) for point in line.points]
        axes.hlines(
            ys,
            [one.low for one in line.points],
            [one.high for one in line.points],
            colors=colour,
            linewidth=1.4,
            gid=name,
        )
        axes.plot([one.y for one in line.points], ys, MARKERS[look.marker], color=colour, markersize=6, gid=name)
    values = [edge for line in panel.lines for one in line.points for edge in (one.low, one.high)]
    _scale(axes, "x", panel.y, ticks(panel.y, widened(values)), widened(values))
    axes.set_yticks(range(len(panel.x.names)), [_short(name) for name in panel.x.names])
    axes.set_ylim(len(panel.x.names) - 0.5, -0.5)
    axes.set_ylabel(panel.x.title)
    axes.grid(visible=True, which="major", axis="x")
    axes.hlines(
        [number - 0.5 for number in range(1, len(panel.x.names))], *axes.get_xlim(), colors=_FAINT, linewidth=0.7
    )


def _scale(
    axes: Axes, which: str, axis: Axis, places: Sequence[float], limits: tuple[float, float] | None = None
) -> None:
    """Set up one of both axes with these ticks, and with these limits if there are any."""
    one = axes.xaxis if which == "x" else axes.yaxis
    if axis.logarithmic:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    if limits:
        (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)
    one.set_major_locator(FixedLocator(list(places)))
    one.set_minor_locator(NullLocator())
    one.set_major_formatter(FuncFormatter(lambda value, _: label(value, axis)))
    one.set_minor_formatter(NullFormatter())
    one.set_label_text(axis.title)


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
