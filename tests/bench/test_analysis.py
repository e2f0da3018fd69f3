"""Figures, ratios, doubts and sentences, each with the case that makes it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from layerfs_bench import findings, words
from layerfs_bench.analysis import Doubt, analyse, batches
from layerfs_bench.figures import Line, Point
from layerfs_bench.looks import MARKERS, looks
from layerfs_bench.results import (
    CacheState,
    Cell,
    Key,
    Measurement,
    Outcome,
    Parameters,
    Results,
    State,
    Unit,
)
from tests.bench import samples

PLAIN, OVERLAY, BTRFS = samples.CELLS[0], samples.CELLS[3], samples.CELLS[5]
KEY = Key("write.first", "first", Parameters(size=4096))


def _result(*measurements: Measurement) -> Results:
    return replace(samples.results(), measurements=measurements)


def _steady(centre: float = 1e-3, *, count: int = 40, visits: int = 4, seed: int = 1) -> Measurement:
    generator = random.Random(seed)
    values = tuple(centre * generator.lognormvariate(0, 0.02) for _ in range(count))
    numbers = tuple(number * visits // count for number in range(count))
    return Measurement(KEY, OVERLAY, Outcome.OK, values, numbers, overhead=centre / 1000)


# --- doubts -----------------------------------------------------------------------------------------------------------


def _noisy() -> Measurement:
    values = tuple(1e-3 * 3 ** (number % 3) for number in range(12))
    return replace(_steady(), samples=values, visits=(0,) * 12)


def _apart() -> Measurement:
    steady = _steady()
    values = tuple(one * (1.3 if visit == 2 else 1) for one, visit in zip(steady.samples, steady.visits, strict=True))
    return replace(steady, samples=values)


def _drifting() -> Measurement:
    steady = _steady(visits=1)
    return replace(steady, samples=tuple(one * (1 + number / 80) for number, one in enumerate(steady.samples)))


@pytest.mark.parametrize(
    ("measurement", "doubts"),
    [
        (_steady(), set[Doubt]()),
        (_steady(count=5, visits=1), {Doubt.FEW}),
        (_noisy(), {Doubt.WIDE}),
        (_apart(), {Doubt.PROCESSES, Doubt.WIDE}),
        (_drifting(), {Doubt.DRIFT}),
        (replace(_steady(), state=State(CacheState.COLD, CacheState.WARM, "nothing")), {Doubt.CACHES}),
        (replace(_steady(), state=State(CacheState.COLD, CacheState.COLD, "remount")), set[Doubt]()),
        (replace(_steady(), overhead=5e-5), {Doubt.HARNESS}),
    ],
)
def test_doubts(measurement: Measurement, doubts: set[Doubt]) -> None:
    (row,) = analyse(_result(measurement)).rows
    assert {concern.doubt for concern in row.concerns} - {Doubt.WIDE} == doubts - {Doubt.WIDE}
    assert Doubt.WIDE not in doubts or Doubt.WIDE in {concern.doubt for concern in row.concerns}
    assert all(concern.text for concern in row.concerns)


def test_ratios_are_to_the_plain_directory_of_the_same_file_system() -> None:
    plain = replace(_steady(1e-3), cell=PLAIN)
    over = _steady(3e-3, seed=2)
    elsewhere = replace(_steady(9e-3), cell=BTRFS)
    found = analyse(_result(over, elsewhere, plain))
    ratios = {row.cell.name: row.ratio for row in found.rows}
    assert ratios["plain-ext4"] == 1.0
    assert ratios["overlay2-ext4"] == pytest.approx(3.0, rel=0.02)
    assert ratios["btrfs"] is None
    assert [cell.name for cell in found.cells] == ["plain-ext4", "btrfs", "overlay2-ext4"]


def test_samples_are_taken_apart_by_visits() -> None:
    one = replace(_steady(), samples=(1.0, 2.0, 3.0), visits=(4, 7, 4))
    assert batches(one) == ([1.0, 3.0], [2.0])
    assert batches(replace(one, visits=())) == ([1.0, 2.0, 3.0],)


# --- sentences --------------------------------------------------------------------------------------------------------


def _line(cell: Cell, *values: float, reach: float = 0.01, sure: bool = True) -> Line:
    sizes = [4096 * 16**number for number in range(len(values))]
    return Line(
        cell,
        tuple(
            Point(size, value, value * (1 - reach), value * (1 + reach), f"size {number}", sure)
            for number, (size, value) in enumerate(zip(sizes, values, strict=True))
        ),
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (_line(OVERLAY, 1.0, 4.0), "grows from size 0 to size 1 on overlay2-ext4 4.0× (1.00 s to 4.00 s)"),
        (_line(OVERLAY, 1.0, 1.1), "stays within 25 % on overlay2-ext4"),
        (_line(OVERLAY, 4.0, 1.0), "falls on overlay2-ext4"),
        (_line(OVERLAY, 1.0, 1.5, reach=0.4), "cannot be told from noise on overlay2-ext4"),
        (_line(OVERLAY, 1.0, 1.5, sure=False), "cannot be told from noise on overlay2-ext4"),
        (_line(OVERLAY, 1.0, 3.0, sure=False), "grows from size 0 to size 1"),
        (_line(OVERLAY, 1.0), "was measured at one place only"),
        (_line(PLAIN, 1.0, 4.0), "was measured at one place only"),  # baselines are not talked of
    ],
)
def test_growth(line: Line, said: str) -> None:
    assert said in findings.growth([line], "It", Unit.SECONDS)


def test_a_crossing_is_where_lines_are_equal() -> None:
    (found,) = findings.crossings([_line(OVERLAY, 1.0, 4.0, 16.0), _line(BTRFS, 2.0, 2.0, 2.0)])
    assert found.x == pytest.approx(4096 * 4)  # half way to the second size, on logarithmic axes
    assert found.y == pytest.approx(2.0)
    assert (found.before.name, found.after.name) == ("overlay2-ext4", "btrfs")


@pytest.mark.parametrize(
    ("copying", "redirecting", "said"),
    [
        (
            (1.0, 4.0),
            (2.0, 2.0),
            "btrfs redirects, and is ahead of copying (overlay2-ext4) from files of some 16.0 KiB on.",
        ),
        ((1.0, 1.5), (2.0, 2.0), "btrfs redirects, and is behind copying at every size, 4.0 KiB to 64.0 KiB."),
        ((3.0, 4.0), (2.0, 2.0), "btrfs redirects, and is ahead of copying at every size, 4.0 KiB to 64.0 KiB."),
        ((3.0, 1.0), (2.0, 2.0), "btrfs redirects, and changes places with copying, 4.0 KiB to 64.0 KiB."),
    ],
)
def test_first_writes(copying: tuple[float, ...], redirecting: tuple[float, ...], said: str) -> None:
    assert findings.first_write([_line(OVERLAY, *copying), _line(BTRFS, *redirecting)], Unit.SECONDS).startswith(said)


def test_who_is_ahead_and_who_cannot_be_told_from_them() -> None:
    third = replace(OVERLAY, name="third")
    lines = [_line(OVERLAY, 1.0), _line(BTRFS, 4.0), _line(third, 1.01), _line(PLAIN, 0.1)]
    assert findings.ranking(lines, "For this", Unit.SECONDS) == (
        "For this, size 0, overlay2-ext4 and third are ahead with 1.00 s; btrfs takes 4.0× as much (4.00 s)."
    )
    near = [_line(OVERLAY, 1.0), _line(BTRFS, 1.2)]
    assert findings.ranking(near, "For this", Unit.SECONDS).endswith("all 2 cells lie within 20 % of each other.")
    assert findings.ranking(lines[:1], "For this", Unit.SECONDS) == ""


def test_one_kind_alone_is_not_compared() -> None:
    assert "No driver that redirects was measured" in findings.first_write([_line(OVERLAY, 1.0)], Unit.SECONDS)
    assert findings.crossings([_line(OVERLAY, 1.0, 4.0)]) == ()


# --- words and looks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ns"), (1.2e-7, "120 ns"), (9.9996e-7, "1.00 µs"), (1.5, "1.50 s"), (0.03456, "34.6 ms"), (2e3, "2,000 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.15, "+15 %"), (-0.034, "−3.4 %"), (0.0, "+0 %"), (1.5, "+150 %"), (0.0999, "+10 %")]
)
def test_shifts(share: float, text: str) -> None:
    assert words.shift(share) == text


def test_every_cell_has_a_look_of_its_own() -> None:
    many = [*samples.CELLS, *(replace(OVERLAY, name=f"x{number}") for number in range(5))]
    found = looks(many)
    marks = [(one.colour, one.marker, one.dashes) for one in found.values()]
    assert len(set(marks)) == len(many)
    assert all(one.marker < len(MARKERS) for one in found.values())
    assert {found[cell.name].colour for cell in many if cell.is_baseline} == {0}
    assert found["btrfs"].dashes == "dashed"
    assert found["overlay2-ext4"].dashes == "solid"
    assert found["overlay2-ext4"].colour == found["overlay2-xfs"].colour
    assert found["overlay2-ext4"].marker == found["copy-ext4"].marker
