"""Two results beside each other: what became slower or faster for certain, and what is noise.

A cell is called *slower* or *faster* only when everything agrees: a rank test (Mann-Whitney, corrected by Holm for the
number of cells), the effect size (Cliff's delta), the interval of the ratio of medians, which must not hold 1, and the
ratio itself, which must lie outside the *noise band*: what the processes of one run differ by among themselves, another
run may differ by as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain, combinations
from statistics import median

from layerfs_bench.analysis import batches
from layerfs_bench.results import Cell, Fingerprint, Key, Measurement, Outcome, Results
from layerfs_bench.statistics import FEWEST, Batches, Interval, holm, mann_whitney, median_interval, ratio_interval

ALPHA = 0.01
"""The chance of one false alarm among all cells that are compared."""
LARGE = 0.33
"""Cliff's delta from which an effect is more than small (Romano et al. 2006)."""
LEAST_BAND = 0.05
"""The noise band at least: what the environment of a program alone can make of it (Mytkowicz et al. 2009)."""


FEWEST_PROCESSES = 3
"""Processes on each side below which nothing is called slower: what one differs by cannot be told from a cause."""


class Verdict(StrEnum):
    """What became of a cell."""

    SLOWER = "slower"
    FASTER = "faster"
    SAME = "same"
    """No difference that could not be noise."""
    UNKNOWN = "too few samples"
    LOST = "only in A"
    """There is no figure for it in B: it failed, or was not measured."""
    NEW = "only in B"


@dataclass(frozen=True, slots=True)
class Change:
    """A cell in both results. ``ratio`` is B's median over A's, ``p`` is corrected, ``band`` is a share of the median.

    ``delta`` is Cliff's, of the samples or of the medians of processes, whichever says less.

    The figures are None where the verdict does not need them.
    """

    key: Key
    cell: Cell
    verdict: Verdict
    before: Measurement | None
    after: Measurement | None
    ratio: float | None = None
    interval: Interval | None = None
    p: float | None = None
    delta: float | None = None
    band: float | None = None
    agrees: bool | None = None
    """Whether the intervals of both medians have a value in common: how well a run repeats, not whether it changed."""

    @property
    def certain(self) -> bool:
        """Tell whether it changed for certain."""
        return self.verdict in {Verdict.SLOWER, Verdict.FASTER}


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cells of two results, in the order of A; ``remarks`` say in what the two runs themselves differ."""

    changes: tuple[Change, ...]
    remarks: tuple[str, ...]

    def of(self, verdict: Verdict) -> tuple[Change, ...]:
        """Return the changes with a verdict."""
        return tuple(change for change in self.changes if change.verdict is verdict)

    @property
    def agreeing(self) -> tuple[int, int]:
        """Return how many cells have medians whose intervals meet, and how many have such intervals on both sides."""
        judged = [change.agrees for change in self.changes if change.agrees is not None]
        return sum(judged), len(judged)


def compare(a: Results, b: Results, *, seed: int = 0) -> Comparison:
    """Compare two results cell by cell."""
    before, after = _measured(a), _measured(b)
    found = [_change(before.get(one), after.get(one), seed) for one in dict.fromkeys((*before, *after))]
    return Comparison(tuple(_judged(found)), tuple(_remarks(a, b)))


def _measured(results: Results) -> dict[tuple[Key, str], Measurement]:
    return {one.identity: one for one in results.measurements if one.outcome is not Outcome.SKIPPED}


def _change(before: Measurement | None, after: Measurement | None, seed: int) -> Change:
    """Work out the figures of one cell; the verdict is made when all p-values are known."""
    known = before or after
    if known is None:
        raise ValueError("a change takes a measurement")
    change = Change(known.key, known.cell, Verdict.UNKNOWN, before, after)
    if after is None or not after.samples:
        return replace(change, verdict=Verdict.LOST)
    if before is None or not before.samples:
        return replace(change, verdict=Verdict.NEW)
    if not (middle := median(before.samples)):
        return change
    change = replace(change, ratio=median(after.samples) / middle)
    if _too_few(before) or _too_few(after) or min(*before.samples, *after.samples) <= 0:
        return change
    sides, test = (batches(before), batches(after)), mann_whitney(before.samples, after.samples)
    interval, band, delta = (
        ratio_interval(*sides, seed=seed),
        noise_band(*sides),
        min(test.delta, _delta(*sides), key=abs),
    )
    agrees = median_interval(sides[0], seed=seed).meets(median_interval(sides[1], seed=seed))
    return replace(change, verdict=Verdict.SAME, interval=interval, p=test.p, delta=delta, band=band, agrees=agrees)


def _too_few(one: Measurement) -> bool:
    """Tell whether there are too few samples or, where it is known from which processes they are, too few of these."""
    return len(one.samples) < FEWEST or 0 < len(set(one.visits)) < FEWEST_PROCESSES


def _delta(a: Batches, b: Batches) -> float:
    """Return Cliff's delta of the medians of processes: a single slow one must not stand for all."""
    return mann_whitney([median(one) for one in a], [median(one) for one in b]).delta


def noise_band(*sides: Batches) -> float:
    """Return the share of the median by which a rerun may differ: what the processes of each side differ by.

    It is the largest distance of two processes' medians on either side that single samples do not explain, since the
    interval of the ratio has these already.
    """
    return max(LEAST_BAND, *(_beyond_samples(side) for side in sides))


def _beyond_samples(side: Batches) -> float:
    """Return the greatest distance of two processes that a rank test takes for more than chance, over the median."""
    middle = median(chain.from_iterable(side))
    pairs = ((one, other) for one, other in combinations(side, 2) if mann_whitney(one, other).p <= ALPHA)
    return max((abs(median(one) - median(other)) / middle for one, other in pairs), default=0.0)


def _judged(found: Sequence[Change]) -> Iterator[Change]:
    tested = [change for change in found if change.p is not None]
    corrected = iter(holm([change.p for change in tested if change.p is not None]))
    for change in found:
        yield change if change.p is None else _verdict(replace(change, p=next(corrected)))


def _verdict(change: Change) -> Change:
    if change.ratio is None or change.p is None or change.interval is None:
        return change
    if change.delta is None or change.band is None:
        return change
    if change.p > ALPHA or abs(change.delta) < LARGE:
        return change
    if change.interval.low > 1 and change.ratio > 1 + change.band:
        return replace(change, verdict=Verdict.SLOWER)
    if change.interval.high < 1 and change.ratio < 1 / (1 + change.band):
        return replace(change, verdict=Verdict.FASTER)
    return change


# -- the runs themselves -----------------------------------------------------------------------------------------------


def _remarks(a: Results, b: Results) -> Iterator[str]:
    """Yield in what the machines and runs differ: then the storage may not be what made the difference."""
    for name, before, after in _facts(a.fingerprint, b.fingerprint):
        if before != after:
            yield f"{name}: {before or 'unknown'} in A, {after or 'unknown'} in B"
    if a.run.sync_policy != b.run.sync_policy:
        yield f"sync policy: {a.run.sync_policy} in A, {b.run.sync_policy} in B"
    for name, results in (("A", a), ("B", b)):
        if results.run.interrupted:
            yield f"the run of {name} was interrupted"


def _facts(a: Fingerprint, b: Fingerprint) -> Iterator[tuple[str, str, str]]:
    for name in ("cpu", "cores", "memory", "architecture", "kernel", "system", "virtualization", "governor", "user"):
        yield name, str(getattr(a, name)), str(getattr(b, name))
    settings = [{one.name: one.version for one in side.settings} for side in (a, b)]
    for name in sorted(settings[0].keys() | settings[1].keys()):
        yield name, settings[0].get(name, ""), settings[1].get(name, "")
