"""What samples say and how far they can be trusted: pure functions over times or sizes, without numpy.

A *sample* is one measured value; a *batch* holds the samples that one process took, in the order in which it took them.
An *interval* is a confidence interval of 95 %. The *shift* of B against A is ``B / A - 1`` of their medians. *Cliff's
delta* is how much more often a sample of B is above one of A than below: -1 to 1.

Sources: Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time" (ISMM 2013), on processes as a level of variance
of their own; Mann and Whitney (1947); Cliff (1993) and, for what counts as large, Romano et al. (2006); Holm (1979);
for intervals and the number of samples Le Boudec, "Performance Evaluation" (2010), chapter 2.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import NormalDist, median

CONFIDENCE = 0.95
FEWEST = 6
"""Samples below which no interval of the median has 95 %: from least to most has ``1 - 2 ** (1 - n)`` (Le Boudec)."""
RESAMPLES = 1000
EXACT_UP_TO = 40
"""Samples of both sides together up to which `mann_whitney` counts instead of approximating."""

Batches = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval; ``low`` equals ``high`` where there is but one sample."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Tell whether a value lies in it."""
        return self.low <= value <= self.high

    def meets(self, other: Interval) -> bool:
        """Tell whether two intervals have a value in common."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one cell, in the unit of its samples; ``batches`` is the number of processes."""

    count: int
    batches: int
    least: float
    median: float
    p95: float
    p99: float
    most: float
    mean: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class RankTest:
    """The result of a Mann-Whitney test of B against A: ``p`` is two-sided, ``delta`` is Cliff's."""

    p: float
    delta: float
    exact: bool


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return a percentile of sorted samples, interpolated linearly (numpy's default; Hyndman and Fan 1996, type 7)."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summarize(batches: Batches, *, seed: int = 0) -> Summary:
    """Describe the samples of one cell, of which there must be one at least."""
    ordered = sorted(chain.from_iterable(batches))
    count = len(ordered)
    return Summary(
        count=count,
        batches=sum(1 for batch in batches if batch),
        least=ordered[0],
        median=median(ordered),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99),
        most=ordered[-1],
        mean=math.fsum(ordered) / count,
        interval=median_interval(batches, seed=seed),
    )


# -- bootstrap ---------------------------------------------------------------------------------------------------------


def median_interval(batches: Batches, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Return the bootstrap interval of the median (percentile method), the same one for the same seed."""
    return _between(_medians(batches, random.Random(seed), resamples))  # noqa: S311  statistics, not secrets


def ratio_interval(a: Batches, b: Batches, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Return the bootstrap interval of the median of B over the median of A; all samples must be above 0."""
    generator = random.Random(seed)  # noqa: S311  as above
    above, below = _medians(b, generator, resamples), _medians(a, generator, resamples)
    return _between([one / other for one, other in zip(above, below, strict=True)])


def _medians(batches: Batches, generator: random.Random, resamples: int) -> list[float]:
    """Return medians of resamples in two stages: whole processes are drawn, and samples from what they hold together.

    The samples of one process are not independent, and how far processes differ is what a further run will show
    (Kalibera and Jones, section 6). Where each process has one sample, or all come from one, there is one stage.
    """
    filled = [sorted(batch) for batch in batches if batch]
    if len(filled) == 1 or all(len(batch) == 1 for batch in filled):
        ordered = sorted(chain.from_iterable(filled))
        return [_resampled_median(ordered, generator) for _ in range(resamples)]
    drawn: dict[tuple[int, ...], list[float]] = {}
    medians: list[float] = []
    for _ in range(resamples):
        which = tuple(sorted(generator.choices(range(len(filled)), k=len(filled))))
        if which not in drawn:
            drawn[which] = sorted(chain.from_iterable(filled[number] for number in which))
        medians.append(_resampled_median(drawn[which], generator))
    return medians


def _resampled_median(ordered: Sequence[float], generator: random.Random) -> float:
    """Return the median of a resample with replacement, without making it.

    The resample is ``ordered[floor(n * u)]`` for n uniform numbers u, and the middle one of these is a beta variate; of
    an even number the next one is the least of the n/2 that are uniform above it (David and Nagaraja, "Order
    Statistics", 2.1 and 2.5).
    """
    count = len(ordered)
    half = count // 2
    if count % 2:
        return ordered[_index(generator.betavariate(half + 1, half + 1), count)]
    lower = generator.betavariate(half, half + 1)
    upper = lower + (1 - lower) * generator.betavariate(1, half)
    return (ordered[_index(lower, count)] + ordered[_index(upper, count)]) / 2


def _index(uniform: float, count: int) -> int:
    return min(int(uniform * count), count - 1)


def _between(values: list[float]) -> Interval:
    values.sort()
    tail = (1 - CONFIDENCE) / 2 * 100
    return Interval(percentile(values, tail), percentile(values, 100 - tail))


# -- comparison --------------------------------------------------------------------------------------------------------


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> RankTest:
    """Test whether samples of B tend to be above or below those of A; both must have one at least.

    ``p`` is exact for small samples, with and without ties: the share of all ways to deal the ranks out. Beyond
    `EXACT_UP_TO` it is the normal approximation, corrected for ties and for continuity.
    """
    ranks, ties = _doubled_ranks([*a, *b])
    doubled = sum(ranks[len(a) :])
    above = doubled / 2 - len(b) * (len(b) + 1) / 2  # U of B: pairs in which B is the larger, ties by half
    delta = 2 * above / (len(a) * len(b)) - 1
    if len(ranks) <= EXACT_UP_TO:
        return RankTest(_exact_p(ranks, len(b), doubled), delta, exact=True)
    return RankTest(_normal_p(len(a), len(b), above, ties), delta, exact=False)


def _doubled_ranks(values: Sequence[float]) -> tuple[list[int], list[int]]:
    """Return twice the mid-rank of each value, which is a whole number, and the sizes of the groups of equal values."""
    ordered = sorted(range(len(values)), key=values.__getitem__)
    ranks, ties, start = [0] * len(values), [], 0
    while start < len(ordered):
        end = start + 1
        while end < len(ordered) and values[ordered[end]] == values[ordered[start]]:
            end += 1
        for place in ordered[start:end]:
            ranks[place] = start + 1 + end
        ties.append(end - start)
        start = end
    return ranks, ties


def _exact_p(ranks: Sequence[int], chosen: int, total: int) -> float:
    """Count the choices of ``chosen`` ranks whose sum is as far out as ``total``, at either end.

    The generating function of Streitberg and Röhmel (1986): ``ways[k]`` is a polynomial in the sum of k ranks. It is
    one integer, with a field of ``width`` bits for each coefficient, none of which exceeds 2 ** len(ranks).
    """
    width = len(ranks) + 1
    ways = [1] + [0] * chosen
    for rank in ranks:
        for number in range(chosen, 0, -1):
            ways[number] += ways[number - 1] << (rank * width)
    counts = list(_fields(ways[chosen], width))
    return min(1.0, 2 * min(sum(counts[: total + 1]), sum(counts[total:])) / sum(counts))


def _fields(packed: int, width: int) -> Iterator[int]:
    mask = (1 << width) - 1
    while packed:
        yield packed & mask
        packed >>= width


def _normal_p(count_a: int, count_b: int, above: float, ties: Iterable[int]) -> float:
    count = count_a + count_b
    tied = sum(size**3 - size for size in ties) / (count * (count - 1))
    spread = math.sqrt(count_a * count_b / 12 * (count + 1 - tied))
    if spread == 0:  # all values are equal
        return 1.0
    away = abs(above - count_a * count_b / 2) - 0.5
    return min(1.0, 2 * NormalDist().cdf(-away / spread))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for being many (Holm 1979): one false alarm in the family has the level of one test."""
    corrected, floor = [0.0] * len(p_values), 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, p_values[number] * (len(p_values) - place)))
        corrected[number] = floor
    return corrected


def batch_spread(batches: Batches) -> float:
    """Return how far the medians of processes lie apart, as a share of the median of all; 0 for a single process."""
    centres = [median(batch) for batch in batches if batch]
    middle = median(chain.from_iterable(batches))
    return (max(centres) - min(centres)) / middle if middle > 0 else 0.0
