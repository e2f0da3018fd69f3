"""Statistics against published tables, against SciPy's values, and against counting by hand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from statistics import median

import pytest

from layerfs_bench.statistics import (
    Interval,
    batch_spread,
    holm,
    mann_whitney,
    median_interval,
    percentile,
    ratio_interval,
    summarize,
)

# --- percentiles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ordered", "percent", "expected"),
    [
        ([7.0], 99, 7.0),
        ([1.0, 2.0], 50, 1.5),
        ([1.0, 2.0, 3.0, 4.0], 25, 1.75),  # numpy.percentile([1, 2, 3, 4], 25)
        ([15.0, 20.0, 35.0, 40.0, 50.0], 40, 29.0),  # the linear example of NIST's handbook, 7.2.6.2, in type 7
        (list(range(101)), 99, 99.0),
        (list(range(10)), 95, 8.55),
        ([1.0, 5.0], 0, 1.0),
        ([1.0, 5.0], 100, 5.0),
    ],
)
def test_percentiles(ordered: Sequence[float], percent: float, expected: float) -> None:
    assert percentile(ordered, percent) == pytest.approx(expected)


def test_a_summary_has_every_figure() -> None:
    found = summarize([[3.0, 1.0], [2.0, 10.0]])
    assert (found.count, found.batches, found.least, found.median, found.most, found.mean) == (
        4,
        2,
        1.0,
        2.5,
        10.0,
        4.0,
    )
    assert found.p95 == pytest.approx(8.95)
    assert found.interval.low <= 2.5 <= found.interval.high


def test_a_summary_of_one_sample() -> None:
    found = summarize([[0.5]])
    assert found.median == found.p99 == found.interval.low == found.interval.high == 0.5


# --- intervals --------------------------------------------------------------------------------------------------------


def _by_resampling(values: Sequence[float], generator: random.Random, resamples: int) -> list[float]:
    return [median(generator.choices(values, k=len(values))) for _ in range(resamples)]


@pytest.mark.parametrize("count", [2, 5, 8, 21, 100])
def test_an_interval_is_what_resampling_gives(count: int) -> None:
    """The middle is drawn from beta variates; here by resampling, as every textbook does it."""
    generator = random.Random(count)
    values = [generator.lognormvariate(0, 0.1) for _ in range(count)]
    medians = sorted(_by_resampling(values, generator, 8000))
    found = median_interval([values], resamples=8000)
    for got, percent in ((found.low, 2.5), (found.high, 97.5)):
        assert percentile(medians, percent - 1.5) <= got <= percentile(medians, min(100, percent + 1.5))


def test_an_interval_holds_the_true_median_as_often_as_it_says() -> None:
    generator = random.Random(7)
    rounds = 400
    intervals = (
        median_interval([[generator.lognormvariate(0, 0.2) for _ in range(30)]], seed=number, resamples=500)
        for number in range(rounds)
    )
    assert 0.92 <= sum(one.holds(1.0) for one in intervals) / rounds <= 0.985


def test_an_interval_is_the_same_for_the_same_seed() -> None:
    values = [[1.0, 2.0, 4.0, 8.0, 16.0], [2.0, 3.0, 5.0]]
    assert median_interval(values, seed=5) == median_interval(values, seed=5)
    assert median_interval([[1.0] * 10]) == Interval(1.0, 1.0)


def test_processes_that_differ_widen_the_interval() -> None:
    """Samples of one process agree with each other; three processes that do not must not look certain."""
    generator = random.Random(3)
    batches = [[centre * generator.gauss(1, 0.001) for _ in range(100)] for centre in (1.0, 1.1, 1.2)]
    apart = median_interval(batches)
    pooled = median_interval([[value for batch in batches for value in batch]])
    assert apart.low < 1.02
    assert apart.high > 1.18
    assert apart.high - apart.low > pooled.high - pooled.low
    assert batch_spread(batches) == pytest.approx(0.2 / 1.1, rel=0.01)


def test_single_samples_of_many_processes_are_plain_samples() -> None:
    values = [float(number) for number in range(1, 30)]
    assert median_interval([[value] for value in values]) == median_interval([values])


def test_the_interval_of_a_ratio_holds_it_as_often_as_it_says() -> None:
    generator = random.Random(11)
    held = alarms = 0
    for number in range(200):
        a, same, slower = ([[generator.gauss(centre, 0.5) for _ in range(40)]] for centre in (10, 10, 11.5))
        held += ratio_interval(a, slower, seed=number, resamples=500).holds(1.15)
        alarms += not ratio_interval(a, same, seed=number, resamples=500).holds(1.0)
    assert held / 200 >= 0.9
    assert alarms / 200 <= 0.1


def test_intervals_meet() -> None:
    assert Interval(1, 2).meets(Interval(2, 3))
    assert not Interval(1, 2).meets(Interval(2.1, 3))
    assert Interval(0, 9).meets(Interval(4, 5))


# --- Mann and Whitney -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "smallest", "highest_p"),
    [
        # Critical values of U for p <= .05 and .01, two-sided, from the usual tables (Siegel 1956, table K).
        (5, 2, 0.05),
        (5, 0, 0.01),
        (8, 13, 0.05),
        (8, 7, 0.01),
        (10, 23, 0.05),
        (10, 16, 0.01),
        (15, 64, 0.05),
        (20, 127, 0.05),
        (20, 105, 0.01),
    ],
)
def test_the_critical_values_of_the_tables(count: int, smallest: int, highest_p: float) -> None:
    assert mann_whitney(*_with_u(count, smallest)).p <= highest_p
    assert mann_whitney(*_with_u(count, smallest + 1)).p > highest_p


def _with_u(count: int, wins: int) -> tuple[list[float], list[float]]:
    """Make two sides of ``count`` different values in which exactly ``wins`` pairs have the larger one in B."""
    a = [float(10 * number) for number in range(1, count + 1)]
    b: list[float] = []
    for _ in range(count):
        beaten = min(wins, count)
        b.append(10.0 * beaten + 5 + 0.01 * len(b))
        wins -= beaten
    return a, b


@pytest.mark.parametrize(
    ("a", "b", "p", "delta"),
    [
        # scipy.stats.mannwhitneyu(b, a, method="exact"), SciPy 1.17
        ([1.83, 0.50, 1.62, 2.48, 1.68, 1.88], [0.878, 0.647, 0.598, 2.05, 1.06], 0.3290043290043290, -0.4),
        ([19, 22, 16, 29, 24], [20, 11, 17, 12], 0.1111111111111111, -0.7),  # SciPy's own example, of diabetes
        ([1.0], [2.0], 1.0, 1.0),
    ],
)
def test_exact_values_without_ties(a: list[float], b: list[float], p: float, delta: float) -> None:
    found = mann_whitney(a, b)
    assert found.exact
    assert found.p == pytest.approx(p)
    assert found.delta == pytest.approx(delta)


def test_the_normal_approximation() -> None:
    generator = random.Random(1)
    a = [float(generator.randrange(10)) for _ in range(60)]
    b = [float(generator.randrange(12)) for _ in range(50)]
    found = mann_whitney(a, b)
    assert not found.exact
    # scipy.stats.mannwhitneyu(b, a, method="asymptotic"), SciPy 1.17: U 1925.5 of 3,000 pairs
    assert found.delta == pytest.approx(2 * 1925.5 / 3000 - 1)
    assert found.p == pytest.approx(0.0103578132308095)


@pytest.mark.parametrize("seed", range(12))
def test_exact_values_with_ties_are_what_counting_gives(seed: int) -> None:
    generator = random.Random(seed)
    a = [float(generator.randrange(4)) for _ in range(generator.randrange(1, 6))]
    b = [float(generator.randrange(5)) for _ in range(generator.randrange(1, 6))]
    values = [*a, *b]
    rank = {value: median(i for i, other in enumerate(sorted(values), 1) if other == value) for value in values}
    observed = sum(rank[value] for value in b)
    sums = [sum(rank[value] for value in chosen) for chosen in itertools.combinations(values, len(b))]
    tails = sum(one <= observed for one in sums), sum(one >= observed for one in sums)
    assert mann_whitney(a, b).p == pytest.approx(min(1.0, 2 * min(tails) / len(sums)))
    above = sum((y > x) - (y < x) for x in a for y in b)
    assert mann_whitney(a, b).delta == pytest.approx(above / (len(a) * len(b)))


def test_counting_and_approximation_agree_where_they_meet() -> None:
    generator = random.Random(9)
    a = [generator.gauss(0, 1) for _ in range(20)]
    b = [generator.gauss(0.6, 1) for _ in range(20)]
    counted, approximated = mann_whitney(a, b), mann_whitney(a, [*b, median(b)])
    assert counted.exact
    assert not approximated.exact
    assert counted.p == pytest.approx(approximated.p, abs=0.02)


@pytest.mark.parametrize("count", [4, 30])
def test_equal_samples_are_no_difference(count: int) -> None:
    found = mann_whitney([2.5] * count, [2.5] * count)
    assert (found.p, found.delta) == (1.0, 0.0)


def test_the_sides_may_change_places() -> None:
    a, b = [1.0, 2.0, 2.0, 5.0], [2.0, 3.0, 6.0]
    there, back = mann_whitney(a, b), mann_whitney(b, a)
    assert there.delta == -back.delta
    assert there.p == pytest.approx(back.p)


def test_under_no_difference_p_is_small_as_rarely_as_it_says() -> None:
    generator = random.Random(5)
    draws = [[generator.gauss(0, 1) for _ in range(60)] for _ in range(400)]
    alarms = sum(mann_whitney(a, b).p < 0.05 for a, b in zip(draws[::2], draws[1::2], strict=True))
    assert alarms / 200 <= 0.1


def test_holm() -> None:
    # R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
