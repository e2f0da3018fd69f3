"""The end of the report: what to doubt, what is missing, every figure, and how it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from layerfs.commands.frame.units import size
from layerfs_bench import words
from layerfs_bench.analysis import UNSTEADY, WIDE, Analysis, Row
from layerfs_bench.analysis import doubts as told_doubts
from layerfs_bench.figures import Table
from layerfs_bench.looks import Look
from layerfs_bench.report.elements import bullets, definitions, details, paragraphs, section, table
from layerfs_bench.results import Place, Results
from layerfs_bench.statistics import FEWEST, RESAMPLES

# -- doubts ------------------------------------------------------------------------------------------------------------


def doubts(analysis: Analysis) -> str:
    """Return what was not measured, and which figures should be trusted less."""
    doubtful = [row for row in analysis.rows if row.unstable]
    calm = "Every measurement is stable." if analysis.rows and not doubtful else ""
    every = Table(("cell", "what", "why it is doubtful"), tuple(_concerns(doubtful)))
    failed = Table(
        ("cell", "what", "outcome", "why"),
        tuple((one.cell.name, words.key(one.key), str(one.outcome), one.reason) for one in analysis.failures),
    )
    left = [f"{one.what}: {one.reason}" + (f" ({one.hint})" if one.hint else "") for one in analysis.results.left_out]
    parts = (
        paragraphs(*told_doubts(analysis), calm),
        details("Unstable measurements", table(every, "Unstable measurements")) if doubtful else "",
        table(failed, "Failed, timed out or skipped") if analysis.failures else "",
        f"<h3>Left out on this machine</h3>{bullets(left)}" if left else "",
    )
    return section("doubts", "What to trust less, and what is missing", "".join(parts))


def _concerns(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        yield row.cell.name, words.key(row.key), "; ".join(concern.text for concern in row.concerns)


# -- everything, and how it was measured -------------------------------------------------------------------------------


def everything(analysis: Analysis, of_cells: Mapping[str, Look]) -> str:
    """Return every measurement in one table."""
    headings = (
        "cell",
        "what",
        "median",
        "interval of 95 %",
        "95 %",
        "99 %",
        "samples",
        "processes",
        "× plain",
        "doubts",
    )
    rows = tuple(_figures(row) for row in analysis.rows)
    inside = table(Table(headings, rows), "Every measurement", looks=of_cells)
    return section("everything", "Every measurement", details(f"{len(rows):,} measurements", inside))


def _figures(row: Row) -> tuple[str, ...]:
    of = row.summary
    interval = f"{words.duration(of.interval.low)} to {words.duration(of.interval.high)}"
    times = (words.duration(of.p95), words.duration(of.p99))
    counts = (f"{of.count:,}", f"{of.batches:,}", "" if row.ratio is None else words.times(row.ratio))
    doubts = ", ".join(concern.doubt for concern in row.concerns)
    return (row.cell.name, words.key(row.key), words.duration(of.median), interval, *times, *counts, doubts)


def method(results: Results) -> str:
    """Return how it was measured, and on what."""
    places = Table(
        ("file system", "reflink", "mounted", "device", "lies on", "size", "made by"),
        tuple(map(_place, results.fingerprint.places)),
    )
    inside = (
        paragraphs(*_how(results)),
        definitions(_facts(results)),
        table(places, "File systems") if places.rows else "",
    )
    return section("method", "How it was measured", "".join(inside))


def _place(one: Place) -> tuple[str, ...]:
    reflink, options = "yes" if one.reflink else "no", ",".join(one.mount_options)
    return one.file_system, reflink, options, one.device, one.backing, size(one.size), one.made_by


def _how(results: Results) -> tuple[str, str]:
    run = results.run
    budget = f"; budget {words.duration(run.budget)}" if run.budget is not None else ""
    order = (
        f"Cells took turns in an order drawn from the seed {run.seed}, each visit in a process of its own: "
        f"{run.visits:,} of {run.planned:,} visits planned{budget}. Sync policy: {run.sync_policy}."
    )
    reading = (
        f"Figures are medians. Intervals are of 95 %, by the bootstrap in two stages ({RESAMPLES:,} resamples): "
        f"processes, then their samples; they take {FEWEST} samples. A figure is called unstable when its interval "
        f"reaches further than {words.percent(WIDE)} from the median, when its processes or the two halves of its "
        f"samples lie {words.percent(UNSTEADY)} apart and a rank test says that it is no chance, when the caches were "
        "not in the state that was asked for, or when the harness takes more than 2 % of it."
    )
    return order, reading


def _facts(results: Results) -> tuple[tuple[str, str], ...]:
    run, machine = results.run, results.fingerprint
    return (
        ("command", " ".join(run.command)),
        ("processor", f"{machine.cores} × {machine.cpu}, {machine.architecture}"),
        ("memory", size(machine.memory)),
        ("kernel", machine.kernel),
        ("system", machine.system),
        ("virtualization", machine.virtualization),
        ("governor", machine.governor),
        ("user", machine.user),
        ("load before", words.figures(machine.load)),
        ("clock", f"{words.duration(machine.clock_resolution)} fine, {words.duration(machine.clock_cost)} to read"),
        ("versions", ", ".join(f"{one.name} {one.version}" for one in machine.versions)),
        ("settings", ", ".join(f"{one.name} {one.version}" for one in machine.settings)),
    )
