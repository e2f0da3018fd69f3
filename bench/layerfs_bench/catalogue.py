"""The figures of a report: which measurements go into which plot, and the sentence above it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from layerfs_bench import findings, quantities, words
from layerfs_bench.analysis import Analysis, Row, weight
from layerfs_bench.figures import (
    Axis,
    Figure,
    Line,
    Mark,
    Panel,
    Place,
    Value,
    by_key,
    counted,
    distribution,
    lines,
    shared_out,
    spread_table,
    table,
    timed,
)
from layerfs_bench.results import Key, Parameters, Position, Unit

_TIME = Axis("time of one operation", Unit.SECONDS)
_BYTES = Axis("bytes", Unit.BYTES)
_DEPTH = Axis("layers", Unit.COUNT)
_SIZE = Axis("size of the file", Unit.BYTES)
_CLONES = Axis("clones that there are", Unit.COUNT)
_INTERVALS = (
    "Points are medians, bars their intervals of 95 %. Both axes are logarithmic: equal steps are equal ratios."
)


def figures(analysis: Analysis) -> tuple[Figure, ...]:
    """Return the figures for which there are measurements."""
    makers: Sequence[Callable[[Analysis], Iterator[Figure]]] = (
        _lookup_by_depth,
        _lookup_by_position,
        _first_write,
        _write_amplification,
        _space,
        _lifecycle,
        _parallel,
        _shared,
        _mixed,
        _distributions,
    )
    return tuple(figure for make in makers for figure in make(analysis))


def _at(rows: Iterable[Row], position: Position) -> list[Row]:
    return [row for row in rows if row.key.parameters.position is position]


def _panel(title: str, x: Axis, rows: Iterable[Row], place: Place, y: Axis = _TIME, value: Value = timed) -> Panel:
    return Panel(title, x, y, lines(rows, place, value))


def _filled(panels: Iterable[Panel]) -> tuple[Panel, ...]:
    return tuple(panel for panel in panels if panel.lines)


# -- lookup ------------------------------------------------------------------------------------------------------------


def _lookup_by_depth(analysis: Analysis) -> Iterator[Figure]:
    first, cached = (_at(analysis.select("lookup.stat", which), Position.BOTTOM) for which in ("first", "cached"))
    panels = _filled(
        (_panel("first lookup", _DEPTH, first, "depth"), _panel("once it is cached", _DEPTH, cached, "depth"))
    )
    if not panels:
        return
    named = {
        "first lookup": "The first lookup of a name in the lowest layer",
        "once it is cached": "A lookup that is cached",
    }
    sentences = (findings.growth(panel.lines, named[panel.title], Unit.SECONDS, per="layer") for panel in panels)
    yield Figure(
        "lookup-by-depth", "Lookup by depth", " ".join(sentences),
        f"stat(2) of a name that the lowest layer holds. {_INTERVALS}", panels, table(panels),
    )  # fmt: skip


def _lookup_by_position(analysis: Analysis) -> Iterator[Figure]:
    """Show the first lookup at the greatest depth, by the layer in which the name lies."""
    rows = analysis.select("lookup.stat", "first")
    deepest = max((row.key.parameters.depth or 0 for row in rows), default=0)
    here = [row for row in rows if row.key.parameters.depth == deepest and row.key.parameters.position]
    where = tuple(Position)
    axis = Axis("where the name lies", Unit.COUNT, logarithmic=False, names=tuple(map(str, where)))
    panels = _filled([_panel("", axis, here, "position")])
    if not panels or len({row.key.parameters.position for row in here}) == 1:
        return
    what = f"With {words.parameters(Parameters(depth=deepest))} the first lookup"
    yield Figure(
        "lookup-by-layer", "Lookup by the layer of the name",
        findings.contrast(panels[0].lines, what, Unit.SECONDS),
        "stat(2) of a name in the uppermost layer, in the middle, in the lowest, and of one that no layer has. "
        "Points are medians, bars their intervals of 95 %.", panels, table(panels),
    )  # fmt: skip


# -- writing -----------------------------------------------------------------------------------------------------------


def _first_write(analysis: Analysis) -> Iterator[Figure]:
    titles = {"first": "first 4 bytes", "second": "second write"}
    panels = _filled(
        _marked(_panel(title, _SIZE, analysis.select("write.first", which), "size")) for which, title in titles.items()
    )
    if not panels:
        return
    yield Figure(
        "first-write", "First write by size", findings.first_write(panels[0].lines, Unit.SECONDS),
        "Four bytes are written in the middle of a file that a lower layer holds: the first write pays for the copy, "
        f"the second shows what is left of it. {_INTERVALS}{_crosses(panels)}",
        panels, table(panels),
    )  # fmt: skip


def _marked(panel: Panel) -> Panel:
    """Mark where redirecting gets ahead of copying."""
    found = findings.crossings(panel.lines) if panel.title.startswith("first") else ()
    marks = (Mark(one.x, one.y, f"crossover: {words.amount(one.x, panel.x.unit)}") for one in found)
    return replace(panel, marks=tuple(marks))


def _crosses(panels: Sequence[Panel]) -> str:
    marked = any(panel.marks for panel in panels)
    return " A cross marks where a driver that redirects gets ahead of the best that copies." if marked else ""


def _write_amplification(analysis: Analysis) -> Iterator[Figure]:
    rows = analysis.select("write.first", "first")
    axis = Axis("bytes at the device", Unit.BYTES)
    found = lines(rows, "size", counted(quantities.DEVICE_WRITTEN.name))
    if not found:
        return
    panel = _marked(Panel("first write: bytes at the device", _SIZE, axis, found, (), "the file itself"))
    written = next((row.measurement.written for row in rows if row.measurement.written), None)
    sentence = findings.first_write(found, Unit.BYTES)
    yield Figure(
        "write-amplification", "Write amplification", f"{sentence} {_amplified(found, written)}".strip(),
        "What reached the device from before the first write until a syncfs after it; points are medians, bars reach "
        "from the least to the most. On the dashed line a write costs as many bytes as the file has."
        + _crosses((panel,)),
        (panel,), table((panel,)),
    )  # fmt: skip


def _amplified(found: Sequence[Line], written: int | None) -> str:
    """Say what the bytes are as multiples of what was written."""
    if not written:
        return ""
    ordered = sorted(findings.drivers(found), key=lambda line: line.points[-1].y)
    if not ordered:
        return ""
    least, most = ordered[0], ordered[-1]
    low, high = (line.points[-1].y / written for line in (least, most))
    return (
        f"For each byte written {words.figures(low)} reach the device on {least.cell.name}, "
        f"{words.figures(high)} on {most.cell.name}."
    )


def _space(analysis: Analysis) -> Iterator[Figure]:
    rows = [row for row in analysis.select("write.first", "first") if not row.cell.is_baseline]
    kinds = (
        (quantities.SPACE_STATFS, "by the file system's free space"),
        (quantities.SPACE_USAGE, "as the driver says"),
    )
    panels = _filled(
        Panel(title, _SIZE, _BYTES, lines(rows, "size", shared_out(kind.name)), (), "the file itself")
        for kind, title in kinds
    )
    if not panels:
        return
    yield Figure(
        "space-amplification", "Space amplification",
        findings.ranking(panels[0].lines, "For a file of which four bytes were written", Unit.BYTES)
        or "Too few cells were measured to compare what they take.",
        "What a clone takes for each file in which four bytes were written. On the dashed line, the whole file.",
        panels, table(panels),
    )  # fmt: skip


# -- lifecycle ---------------------------------------------------------------------------------------------------------


def _lifecycle(analysis: Analysis) -> Iterator[Figure]:
    metrics = list(dict.fromkeys(key.metric for key in analysis.keys if key.scenario == "lifecycle"))
    panels = _filled(_panel(which, _CLONES, analysis.select("lifecycle", which), "clones") for which in metrics)
    if not panels:
        return
    ranked = (findings.ranking(one.lines, f"For a {one.title}", Unit.SECONDS) for one in panels if one.title == "clone")
    sentence = " ".join([*ranked, findings.growths(panels, "The time of", Unit.SECONDS)])
    yield Figure(
        "lifecycle", "Lifecycle as clones pile up", sentence,
        f"Each operation while there are so many clones already. {_INTERVALS}", panels, table(panels),
    )  # fmt: skip


def _parallel(analysis: Analysis) -> Iterator[Figure]:
    keys = [key for key in analysis.keys if key.scenario == "write.parallel"]
    axis = Axis("workers at a time", Unit.COUNT)
    panels = _filled(
        _panel(which, axis, analysis.select("write.parallel", which), "workers")
        for which in dict.fromkeys(key.metric for key in keys)
    )
    if not panels:
        return
    yield Figure(
        "parallel-copy-up", "Parallel copy-up",
        findings.growth(panels[0].lines, "A first write", Unit.SECONDS),
        f"Several processes make first writes in one clone. {_INTERVALS}", panels, table(panels),
    )  # fmt: skip


def _shared(analysis: Analysis) -> Iterator[Figure]:
    rows = [row for row in analysis.rows if row.key.scenario == "read.shared"]
    axis = Axis("page cache", Unit.BYTES)
    kinds = ((quantities.RESIDENT, "the file, in all clones"), (quantities.PAGE_CACHE, "the whole machine"))
    panels = _filled(Panel(title, _CLONES, axis, lines(rows, "clones", counted(kind.name))) for kind, title in kinds)
    if not panels:
        return
    yield Figure(
        "page-cache", "Page cache of one file in many clones",
        findings.growth(panels[0].lines, "The page cache that one file takes", Unit.BYTES, per="clone"),
        "The same lower file is read in each clone. A flat line means that clones share the memory.",
        panels, table(panels),
    )  # fmt: skip


# -- whole works -------------------------------------------------------------------------------------------------------


def _mixed(analysis: Analysis) -> Iterator[Figure]:
    """Show whole works side by side, as multiples of the plain directory where there is one."""
    keys = tuple(
        key
        for key in analysis.keys
        if key.scenario.partition(".")[0] in {"mixed", "build", "read"} and key.scenario != "read.shared"
    )
    rows = [row for row in analysis.rows if row.key in keys]
    if not rows:
        return
    names = tuple(words.key(key) for key in keys)
    panel = Panel("", Axis("", Unit.COUNT, logarithmic=False, names=names), _TIME, by_key(rows, keys))
    apart = (_one_work(analysis, key) for key in keys)
    yield Figure(
        "works", "Whole works", " ".join(sentence for sentence in apart if sentence),
        "Points are medians, bars their intervals of 95 %; the axis is logarithmic.",
        (panel,), table((panel,)),
    )  # fmt: skip


def _one_work(analysis: Analysis, key: Key) -> str:
    rows = [row for row in analysis.rows if row.key == key]
    return findings.ranking(by_key(rows, (key,)), f"In {words.key(key)}", Unit.SECONDS)


_SPREAD = (("lookup.stat", "first"), ("write.first", "first"), ("lifecycle", "clone"))
"""What the distributions are shown of: the hardest of each, the one with the largest parameters."""


def _distributions(analysis: Analysis) -> Iterator[Figure]:
    chosen = [(key, [row for row in analysis.rows if row.key == key]) for key in _hardest(analysis)]
    if not chosen:
        return
    time, share = Axis("time of one operation", Unit.SECONDS), Axis("share of samples", Unit.COUNT, logarithmic=False)
    panels = tuple(Panel(words.key(key), time, share, tuple(distribution(row) for row in rows)) for key, rows in chosen)
    tails = " ".join(_tail(words.key(key), rows) for key, rows in chosen)
    yield Figure(
        "distributions", "Latency distributions", tails,
        "The share of samples that took at most a time: a steep line is a steady one, a long way to the upper right a "
        "slow tail.", panels, spread_table([(words.key(key), rows) for key, rows in chosen]),
    )  # fmt: skip


def _hardest(analysis: Analysis) -> Iterator[Key]:
    for scenario, metric in _SPREAD:
        keys = [key for key in analysis.keys if (key.scenario, key.metric) == (scenario, metric)]
        if keys:
            yield max(keys, key=weight)


def _tail(what: str, rows: Sequence[Row]) -> str:
    """Say on which cell the slowest samples are farthest from the median."""
    drivers = [row for row in rows if not row.cell.is_baseline and row.summary.median > 0]
    if not drivers:
        return ""
    worst = max(drivers, key=lambda row: row.summary.p99 / row.summary.median)
    of = worst.summary
    hundred = of.count >= 100  # noqa: PLR2004  with fewer samples there is no slowest of a hundred
    slow, who = (of.p99, "the slowest of a hundred") if hundred else (of.most, f"the slowest of {of.count} samples")
    return f"Of {what}, {who} took {words.times(slow / of.median)} the median on {worst.cell.name}, the longest tail."
