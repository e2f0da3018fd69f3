"""What a result says, cell by cell: figures, ratios to the plain directory, and what speaks against trusting them.

A *row* is a measurement with its figures. A *concern* is a reason to doubt one: the cell is then *unstable*.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import median

from layerfs_bench.results import Cell, Key, Measurement, Outcome, Position, Results
from layerfs_bench.statistics import FEWEST, Batches, Summary, batch_spread, mann_whitney, summarize
from layerfs_bench.words import duration, percent

WIDE = 0.25
"""How far an interval may reach from the median: no sentence of a report speaks of less growth than this."""
UNSTEADY = 0.10
"""How far processes, or the halves of the samples, may lie apart; pyperf's check of benchmarks has this figure too."""
_DRIFT_P, _APART_P = 0.001, 0.01
"""The p-values from which drift and processes apart are believed: every cell is tested, so few may cry wolf."""
_HARNESS = 0.02
"""The share of an operation that the harness itself may take."""


class Doubt(StrEnum):
    """Why a figure should be trusted less."""

    FEW = "few samples"
    WIDE = "wide interval"
    PROCESSES = "processes disagree"
    DRIFT = "drift"
    CACHES = "caches"
    HARNESS = "harness"


@dataclass(frozen=True, slots=True)
class Concern:
    """A reason for doubt, in a sentence with its figures."""

    doubt: Doubt
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """A measurement and its figures, in seconds; ``ratio`` is its median over that of the plain directory, if any."""

    measurement: Measurement
    summary: Summary
    ratio: float | None
    concerns: tuple[Concern, ...]

    @property
    def key(self) -> Key:
        """Return what was measured."""
        return self.measurement.key

    @property
    def cell(self) -> Cell:
        """Return where it was measured."""
        return self.measurement.cell

    @property
    def unstable(self) -> bool:
        """Tell whether its samples contradict each other; that they are few is another thing."""
        return any(concern.doubt is not Doubt.FEW for concern in self.concerns)


@dataclass(frozen=True, slots=True)
class Analysis:
    """A result with its figures; ``rows`` are sorted by what was measured, then by cell, ``failures`` have no samples.

    A run visits cells in an order drawn by lot, so the order of the file says nothing.
    """

    results: Results
    rows: tuple[Row, ...]
    failures: tuple[Measurement, ...]

    def find(self, key: Key, cell: Cell) -> Row | None:
        """Return the row of a key in a cell."""
        return next((row for row in self.rows if row.key == key and row.cell.name == cell.name), None)

    def select(self, scenario: str, metric: str) -> tuple[Row, ...]:
        """Return the rows of a metric, whatever its parameters."""
        return tuple(row for row in self.rows if (row.key.scenario, row.key.metric) == (scenario, metric))

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Return the cells, baselines first."""
        return tuple(sorted({one.cell.name: one.cell for one in self.results.measurements}.values(), key=_cell_order))

    @property
    def keys(self) -> tuple[Key, ...]:
        """Return what was measured anywhere, parameters from light to heavy."""
        return tuple(dict.fromkeys(row.key for row in self.rows))


def analyse(results: Results) -> Analysis:
    """Work out the figures of every measurement that has samples."""
    measured = [one for one in results.measurements if one.samples]
    rows = [Row(one, summary := summarize(batches(one)), None, concerns(one, summary)) for one in measured]
    plain = {(row.key, row.cell.file_system): row.summary.median for row in rows if row.cell.is_baseline}
    compared = (replace(row, ratio=_over(row, plain.get((row.key, row.cell.file_system)))) for row in rows)
    failures = (one for one in results.measurements if one.outcome is not Outcome.OK)
    ordered = sorted(compared, key=lambda row: (_key_order(row.key), _cell_order(row.cell)))
    return Analysis(results, tuple(ordered), tuple(sorted(failures, key=lambda one: _key_order(one.key))))


_METRICS = ("first", "cached", "second", "clone", "mount", "unmount-clean", "unmount-dirty", "diff", "commit", "apply")
"""In which order metrics come that are not sorted well by their names; the others come behind."""


def _key_order(key: Key) -> tuple[object, ...]:
    metric = _METRICS.index(key.metric) if key.metric in _METRICS else len(_METRICS)
    return key.scenario, metric, key.metric, weight(key)


def _cell_order(cell: Cell) -> tuple[object, ...]:
    return not cell.is_baseline, cell.driver, cell.file_system, cell.name


def weight(key: Key) -> tuple[int, ...]:
    """Return what orders keys of one metric from light to heavy."""
    given = key.parameters
    where = (Position.TOP, Position.NOWHERE, Position.MIDDLE, Position.BOTTOM)
    place = where.index(given.position) if given.position else 0
    return given.depth or 0, given.size or 0, given.clones or 0, given.workers or 0, given.files or 0, place


def _over(row: Row, baseline: float | None) -> float | None:
    return row.summary.median / baseline if baseline else None


def batches(measurement: Measurement) -> Batches:
    """Return the samples of each visit apart, in the order in which they were taken."""
    visits = measurement.visits or (0,) * len(measurement.samples)
    apart: dict[int, list[float]] = {}
    for visit, sample in zip(visits, measurement.samples, strict=True):
        apart.setdefault(visit, []).append(sample)
    return tuple(apart.values())


def doubts(analysis: Analysis) -> tuple[str, ...]:
    """Return sentences that say how many figures are unstable and why, and how many have few samples."""
    found = Counter(one.doubt for row in analysis.rows for one in row.concerns if one.doubt is not Doubt.FEW)
    unstable = sum(row.unstable for row in analysis.rows)
    few = sum(row.summary.count < FEWEST for row in analysis.rows)
    told = ", ".join(f"{doubt} {count:,}" for doubt, count in found.most_common())
    sentences: list[str] = []
    if unstable:
        sentences.append(f"{unstable:,} of {len(analysis.rows):,} measurements are unstable: {told}.")
    if few:
        sentences.append(
            f"{few:,} have fewer than {FEWEST} samples, too few for an interval: take figures to cite from a longer "
            "run; `layerfs bench list profiles` has them."
        )
    return tuple(sentences)


# -- concerns ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sampled:
    """What the checks look at."""

    measurement: Measurement
    summary: Summary


def concerns(measurement: Measurement, summary: Summary) -> tuple[Concern, ...]:
    """Return what speaks against the figures of a measurement; a cell is unstable when anything does."""
    sampled = _Sampled(measurement, summary)
    return tuple(Concern(doubt, text) for doubt, check in _CHECKS if (text := check(sampled)))


def _few(one: _Sampled) -> str:
    many = "is one sample" if one.summary.count == 1 else f"are {one.summary.count} samples"
    return f"there {many}; an interval of 95 % takes {FEWEST}" if one.summary.count < FEWEST else ""


def _wide(one: _Sampled) -> str:
    if one.summary.count < FEWEST:  # then an interval means nothing, and that is said already
        return ""
    middle, interval = one.summary.median, one.summary.interval
    reach = max(interval.high - middle, middle - interval.low) / middle if middle else 0.0
    return f"the interval reaches {percent(reach)} from the median" if reach > WIDE else ""


def _processes(one: _Sampled) -> str:
    """Compare the slowest process with the fastest: few samples of each lie apart by chance."""
    apart = sorted(batches(one.measurement), key=median)
    spread = batch_spread(apart)
    if spread <= UNSTEADY or mann_whitney(apart[0], apart[-1]).p > _APART_P:
        return ""
    return f"the medians of its processes lie {percent(spread)} apart"


def _drift(one: _Sampled) -> str:
    """Compare the earlier half of the samples with the later one."""
    half = one.summary.count // 2
    if half < FEWEST:
        return ""
    early, late = one.measurement.samples[:half], one.measurement.samples[half:]
    shift = median(late) / median(early) - 1 if median(early) else 0.0
    if abs(shift) <= UNSTEADY or mann_whitney(early, late).p > _DRIFT_P:
        return ""
    return f"the later half is {percent(abs(shift))} {'slower' if shift > 0 else 'faster'} than the earlier one"


def _caches(one: _Sampled) -> str:
    state = one.measurement.state
    if state is None or state.asked is state.reached:
        return ""
    return f"the caches were to be {state.asked}, and were {state.reached} ({state.how})"


def _harness(one: _Sampled) -> str:
    share = one.measurement.overhead / one.summary.median if one.summary.median else 0.0
    if share <= _HARNESS:
        return ""
    return f"the harness takes {duration(one.measurement.overhead)}, {percent(share)} of an operation"


_CHECKS: tuple[tuple[Doubt, Callable[[_Sampled], str]], ...] = (
    (Doubt.FEW, _few),
    (Doubt.WIDE, _wide),
    (Doubt.PROCESSES, _processes),
    (Doubt.DRIFT, _drift),
    (Doubt.CACHES, _caches),
    (Doubt.HARNESS, _harness),
)
