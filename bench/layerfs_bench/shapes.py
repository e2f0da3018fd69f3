"""Published findings about layered storage, and whether a result agrees with them.

A *shape* is a finding that does not depend on the machine: how something grows, or how many times one thing is of
another. Each names its source, the figure there, and within which bounds a figure here agrees. What a result has no
measurements for is *not measured*: that is no agreement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from layerfs.contract import CopyUnit, WritePolicy
from layerfs_bench import findings, quantities, words
from layerfs_bench.analysis import Analysis, Row
from layerfs_bench.figures import counted, lines
from layerfs_bench.results import Cell, Position, Unit

_MIB = 1 << 20


class Agreement(StrEnum):
    """What a result says to a finding."""

    AGREES = "agrees"
    DISAGREES = "disagrees"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure of a result that a finding is about, and in words what it is."""

    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Shape:
    """A published finding: ``low`` to ``high`` is what agrees, ``needs`` what has to be measured for it."""

    name: str
    finding: str
    published: str
    source: str
    low: float
    high: float
    needs: str
    measure: Callable[[Analysis], Measured | None]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A finding, whether the result agrees, and the figure found here in words ("" if there is none)."""

    shape: Shape
    agreement: Agreement
    here: str


def judge(analysis: Analysis) -> tuple[Judgement, ...]:
    """Hold a result against every finding."""
    return tuple(_judged(shape, shape.measure(analysis)) for shape in SHAPES)


def _judged(shape: Shape, found: Measured | None) -> Judgement:
    if found is None:
        return Judgement(shape, Agreement.NOT_MEASURED, "")
    agrees = shape.low <= found.value <= shape.high
    return Judgement(shape, Agreement.AGREES if agrees else Agreement.DISAGREES, found.text)


# -- which cells -------------------------------------------------------------------------------------------------------


def _is_overlay(cell: Cell) -> bool:
    return cell.driver == "overlay2"


def _copies_whole(cell: Cell) -> bool:
    return _is_overlay(cell) and not cell.reflink


def _reflinks(cell: Cell) -> bool:
    return cell.reflink and cell.copy_unit is CopyUnit.FILE and cell.write_policy is WritePolicy.COPY_ON_WRITE


def _redirects(cell: Cell) -> bool:
    return cell.write_policy is WritePolicy.REDIRECT_ON_WRITE


def _of(rows: Iterable[Row], cells: Callable[[Cell], bool]) -> list[Row]:
    return [row for row in rows if cells(row.cell)]


# -- lookup ------------------------------------------------------------------------------------------------------------


def _slope(analysis: Analysis) -> Measured | None:
    """Return the cost of a layer for the first lookup, in µs: the median of what overlays have."""
    rows = [row for row in analysis.select("lookup.stat", "first") if row.key.parameters.position is Position.BOTTOM]
    long = [line for line in lines(_of(rows, _is_overlay), "depth") if len(line.points) > 1]
    if not long:
        return None
    slopes = [(line.points[-1].y - line.points[0].y) / (line.points[-1].x - line.points[0].x) * 1e6 for line in long]
    return Measured(median(slopes), f"{words.figures(median(slopes))} µs a layer")


def _flat_when_cached(analysis: Analysis) -> Measured | None:
    rows = [row for row in analysis.select("lookup.stat", "cached") if row.key.parameters.position is Position.BOTTOM]
    long = [line for line in lines(_of(rows, _is_overlay), "depth") if len(line.points) > 1]
    if not long:
        return None
    factor = max(line.points[-1].y / line.points[0].y for line in long)
    ends = f"{long[0].points[0].text} to {long[0].points[-1].text}"
    return Measured(factor, f"{words.times(factor)} from {ends}")


# -- writing -----------------------------------------------------------------------------------------------------------


def _device_bytes(cells: Callable[[Cell], bool], *, over_size: bool) -> Callable[[Analysis], Measured | None]:
    """Return what takes the bytes at the device of a first write to a file of 64 MiB, the worst of these cells."""

    def measure(analysis: Analysis) -> Measured | None:
        rows = [row for row in analysis.select("write.first", "first") if row.key.parameters.size == 64 * _MIB]
        found = [(line.points[0].y, line.cell) for line in lines(_of(rows, cells), "size", _device)]
        if not found:
            return None
        value, cell = (min if over_size else max)(found, key=lambda pair: pair[0])
        text = f"{words.amount(value, Unit.BYTES)} on {cell.name}"
        return Measured(value / (64 * _MIB), text) if over_size else Measured(value, text)

    return measure


_device = counted(quantities.DEVICE_WRITTEN.name)


def _crossover(analysis: Analysis) -> Measured | None:
    """Return where a copy starts to write more than btrfs does; 0 where the lines were measured and do not cross."""
    rows = analysis.select("write.first", "first")
    drawn = lines(_of(rows, lambda cell: _copies_whole(cell) or cell.driver == "btrfs"), "size", _device)
    long = [line for line in drawn if len(line.points) > 1]
    if {line.cell.driver for line in long} != {"overlay2", "btrfs"}:
        return None
    if not (found := findings.crossings(long)):
        return Measured(0, f"no crossing from {long[0].points[0].text} to {long[0].points[-1].text}")
    return Measured(found[0].x, f"{words.amount(found[0].x, Unit.BYTES)}, {found[0].before.name} and btrfs")


def _append(analysis: Analysis) -> Measured | None:
    """Return how many times the plain directory an append to the largest lower file takes through the overlay."""
    return _worst_ratio([row for row in analysis.rows if row.key.scenario == "write.append"], _copies_whole)


def _worst_ratio(rows: Sequence[Row], cells: Callable[[Cell], bool]) -> Measured | None:
    chosen = [row for row in _of(rows, cells) if row.ratio is not None]
    if not chosen:
        return None
    largest = max(row.key.parameters.size or 0 for row in chosen)
    worst = max((row for row in chosen if (row.key.parameters.size or 0) == largest), key=lambda row: row.ratio or 0)
    return Measured(worst.ratio or 0, f"{words.times(worst.ratio or 0)} on {worst.cell.name}, {words.key(worst.key)}")


def _reads(analysis: Analysis) -> Measured | None:
    return _worst_ratio([row for row in analysis.rows if row.key.scenario == "read.sequential"], _is_overlay)


def _parallel(analysis: Analysis) -> Measured | None:
    rows = [row for row in _of(analysis.rows, _is_overlay) if row.key.scenario == "write.parallel" and row.ratio]
    if not rows:
        return None
    most = max(row.key.parameters.workers or 0 for row in rows)
    worst = max((row for row in rows if row.key.parameters.workers == most), key=lambda row: row.ratio or 0)
    return Measured(worst.ratio or 0, f"{words.times(worst.ratio or 0)} on {worst.cell.name} with {most} workers")


# -- lifecycle and whole works -----------------------------------------------------------------------------------------


def _over(analysis: Analysis, scenario: str, metric: str, over: str, under: str) -> Measured | None:
    """Return how many times as long one driver takes as another, each on its fastest file system."""
    rows = [row for row in analysis.rows if row.key.scenario == scenario and metric in {"", row.key.metric}]
    sides = [[row for row in rows if row.cell.driver == driver] for driver in (over, under)]
    shared = {row.key for row in sides[0]} & {row.key for row in sides[1]}
    if not shared:
        return None
    key = max(shared, key=str)
    slow, fast = (min((row for row in side if row.key == key), key=lambda row: row.summary.median) for side in sides)
    ratio = slow.summary.median / fast.summary.median
    times = f"{words.duration(slow.summary.median)} against {words.duration(fast.summary.median)}"
    return Measured(ratio, f"{words.times(ratio)}: {slow.cell.name} {times} on {fast.cell.name}")


def _build(analysis: Analysis) -> Measured | None:
    return _over(analysis, "build.containerd", "", "devicemapper", "overlay2")


def _destroy(analysis: Analysis) -> Measured | None:
    return _over(analysis, "lifecycle", "remove", "devicemapper", "overlay2")


def _fuse(scenario: str, metric: str = "") -> Callable[[Analysis], Measured | None]:
    """Return what takes the worst ratio of a file system in user space to the plain directory."""

    def measure(analysis: Analysis) -> Measured | None:
        rows = [row for row in analysis.rows if row.key.scenario == scenario and metric in {"", row.key.metric}]
        return _worst_ratio(rows, lambda cell: cell.driver == "fuse")

    return measure


def _nothing(analysis: Analysis) -> None:
    """Measure what no scenario can: the finding stays in the list, and is never agreed with."""
    del analysis


_HERE = "layerfs's own trials, 2026-11-20"
_KUEHL = "Kuehl 2017, on overlay2 and aufs"
_NYDUS = "Nydus, 2022, on FUSE beside ext4"

SHAPES = (
    Shape(
        "lookup-slope", "Overlay: the first lookup of a name in the lowest layer grows with each layer",
        "0.7 µs a layer", _HERE, 0.15, 3.0, "lookup.stat first at two depths on overlay2", _slope,
    ),
    Shape(
        "lookup-cached", "Overlay: a lookup that is cached does not depend on the depth",
        "1.0×", _HERE, 0.0, 1.5, "lookup.stat cached at two depths on overlay2", _flat_when_cached,
    ),
    Shape(
        "copy-up-bytes", "Overlay without reflink: four bytes into a file of 64 MiB write the whole file",
        "65.6 MB", _HERE, 1.0, 2.0, "write.first of 64 MiB on overlay2 without reflink, with device bytes",
        _device_bytes(_copies_whole, over_size=True),
    ),
    Shape(
        "reflink-bytes", "Overlay with reflink: four bytes into a file of 64 MiB write a few blocks",
        "9 KB", _HERE, 0.0, 1.0 * _MIB, "write.first of 64 MiB on overlay2 with reflink, with device bytes",
        _device_bytes(_reflinks, over_size=False),
    ),
    Shape(
        "redirect-bytes", "Redirect-on-write: four bytes into a file of 64 MiB write less than 1 MiB",
        "304 KB on btrfs", f"{_HERE}; Docker's page on btrfs calls it so", 0.0, 1.0 * _MIB,
        "write.first of 64 MiB on a driver that redirects, with device bytes",
        _device_bytes(_redirects, over_size=False),
    ),
    Shape(
        "crossover", "Overlay without reflink and btrfs write as many bytes at files of a few hundred KiB",
        "256 KiB", _HERE, 32 * 1024.0, 2.0 * _MIB,
        "write.first over several sizes on overlay2 without reflink and on btrfs, with device bytes", _crossover,
    ),
    Shape(
        "append", "Appending to a big lower file is far slower through overlay2 than without",
        "100×", _KUEHL, 10.0, 100_000.0, "write.append on overlay2 without reflink, and its plain directory", _append,
    ),
    Shape(
        "reads", "Reading lower files through overlay2 costs nothing",
        "1.0×", _KUEHL, 0.7, 1.3, "read.sequential on overlay2, and its plain directory", _reads,
    ),
    Shape(
        "parallel-copy-up", "Parallel copy-up through overlay2 is several times slower than native",
        "8.7×", _KUEHL, 2.0, 1_000.0, "write.parallel on overlay2, and its plain directory", _parallel,
    ),
    Shape(
        "build", "Sixteen layers of ten operations of 1 MiB: devicemapper takes many times as long as overlay",
        "81× (1,950 against 24 ms)", "containerd#2988, 2019", 5.0, 2_000.0,
        "build.containerd on devicemapper and on overlay2", _build,
    ),
    Shape(
        "destroy", "Containers go slower on devicemapper than on overlay2",
        "2.3× (556 against 245 s)", "LCFS, 2017, a vendor's", 1.2, 100.0,
        "lifecycle remove on devicemapper and on overlay2", _destroy,
    ),
    Shape(
        "fuse-read", "Reading through FUSE is some of the speed of ext4",
        "1.4× the time (0.7 of the speed)", _NYDUS, 0.7, 3.0, "read.sequential on fuse, and its plain directory",
        _fuse("read.sequential"),
    ),
    Shape(
        "fuse-metadata", "Looking at names through FUSE is a few times slower than ext4",
        "3×", _NYDUS, 1.2, 10.0, "lookup.walk first on fuse, and its plain directory", _fuse("lookup.walk", "first"),
    ),
    Shape(
        "fuse-compile", "Compiling through FUSE takes a little longer than on ext4",
        "1.28×", _NYDUS, 0.9, 2.0, "mixed.compile on fuse, and its plain directory", _fuse("mixed.compile"),
    ),
    Shape(
        "erofs", "`ls -lR` uncached and cached through overlay on erofs takes a few times as long as on erofs",
        "2.5× and 1.4× (651 against 264, 238 against 172 ms)", "linux-fsdevel, 2023", 1.2, 10.0,
        "a driver on erofs or composefs, which layerfs does not have", _nothing,
    ),
    Shape(
        "parallel-aufs", "Parallel copy-up is slower still through aufs",
        "32×", _KUEHL, 2.0, 1_000.0, "a driver for aufs, which layerfs does not have", _nothing,
    ),
)  # fmt: skip
"""The findings; the bounds leave room for other machines, and are so narrow that a wrong measurement misses them."""
