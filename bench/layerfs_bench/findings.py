"""Sentences about lines, made from their figures alone: what grows, what stays flat, where lines cross."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from layerfs.commands.frame.units import size
from layerfs.contract import CopyUnit, WritePolicy
from layerfs_bench import words
from layerfs_bench.analysis import WIDE
from layerfs_bench.figures import Line, Panel
from layerfs_bench.results import Cell, Unit

FLAT = 1 + WIDE
"""How many times the first value the last one of a line may be that is called flat."""
_FEW = 2.0
"""The same where there are so few samples that their interval means nothing."""
_NAMED = 4
"""How many cells a sentence names before it counts them."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where two lines cross: below ``x`` the cell ``before`` is ahead, from there on ``after``."""

    x: float
    y: float
    before: Cell
    after: Cell


def listed(names: Sequence[str]) -> str:
    """Join names as a sentence does; of many only the first are named."""
    if len(names) > _NAMED:
        names = [*names[: _NAMED - 1], f"{len(names) - _NAMED + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def drivers(lines: Iterable[Line]) -> list[Line]:
    """Return the lines of drivers: baselines are no competitors, and no sentence names them."""
    return [line for line in lines if not line.cell.is_baseline]


def growth(lines: Sequence[Line], what: str, unit: Unit, *, per: str = "") -> str:
    """Say on which cells ``what`` ("The first lookup") grows from the first place to the last, and on which not.

    ``per`` names the step of which the slope is told ("layer"); with "" only factors are.
    """
    long = [line for line in drivers(lines) if len(line.points) > 1]
    if not long:
        return f"{what} was measured at one place only, so nothing can be said of its growth."
    growing = sorted((line for line in long if _grows(line)), key=_factor, reverse=True)
    falling = [line for line in long if _falls(line)]
    still = [line for line in long if line not in growing and line not in falling]
    flat = [line for line in still if 1 / FLAT <= _factor(line) <= FLAT]
    unclear = [line for line in still if line not in flat]
    ends = f"from {long[0].points[0].text} to {long[0].points[-1].text}"
    parts = [
        f"grows {ends} on {listed([_grown(line, unit, per) for line in growing])}" if growing else "",
        f"stays within {words.percent(FLAT - 1)} on {_cells(flat)}" if flat else "",
        f"falls on {_cells(falling)}" if falling else "",
        f"cannot be told from noise on {_cells(unclear)}" if unclear else "",
    ]
    return f"{what} {'; it '.join(part for part in parts if part)}."


def _grows(line: Line) -> bool:
    """Tell whether a line ends higher than it starts, by more than a step that noise takes."""
    first, last = line.points[0], line.points[-1]
    return _factor(line) > _least(line) and last.low > first.high


def _falls(line: Line) -> bool:
    first, last = line.points[0], line.points[-1]
    return _factor(line) < 1 / _least(line) and last.high < first.low


def _least(line: Line) -> float:
    return FLAT if line.points[0].sure and line.points[-1].sure else _FEW


def growths(panels: Sequence[Panel], what: str, unit: Unit) -> str:
    """Say of several panels on which cells they grow, and of all others that they do not."""
    told: list[str] = []
    for panel in panels:
        growing = sorted((line for line in drivers(panel.lines) if _grows(line)), key=_factor, reverse=True)
        if growing:
            told.append(f"{what} {panel.title} grows on {listed([_grown(line, unit, '') for line in growing])}.")
    many = any(len(line.points) > 1 for panel in panels for line in drivers(panel.lines))
    rest = "Nothing else grows" if told else "Nothing grows"
    return " ".join([*told, f"{rest} beyond {words.percent(FLAT - 1)} and its noise." if many else ""]).strip()


def contrast(lines: Sequence[Line], what: str, unit: Unit) -> str:
    """Say on which cells ``what`` depends on the place, and between which two places it differs most."""
    differing = sorted((line for line in drivers(lines) if _contrast(line) > FLAT), key=_contrast, reverse=True)
    alike = [line for line in drivers(lines) if _contrast(line) <= FLAT]
    parts = [
        f"differs most on {listed([_extremes(line, unit) for line in differing])}" if differing else "",
        f"is the same within {words.percent(FLAT - 1)} on {_cells(alike)}" if alike else "",
    ]
    return f"{what} {'; it '.join(part for part in parts if part)}."


def _contrast(line: Line) -> float:
    return max(point.y for point in line.points) / min(point.y for point in line.points)


def _extremes(line: Line, unit: Unit) -> str:
    ordered = sorted(line.points, key=lambda point: point.y)
    ends = (f"{words.amount(point.y, unit)} {point.text}" for point in (ordered[0], ordered[-1]))
    return f"{line.cell.name} ({', '.join(ends)})"


def _factor(line: Line) -> float:
    return line.points[-1].y / line.points[0].y


def _grown(line: Line, unit: Unit, per: str) -> str:
    first, last = line.points[0], line.points[-1]
    slope = f", {words.amount((last.y - first.y) / (last.x - first.x), unit)} a {per}" if per else ""
    ends = f"{words.amount(first.y, unit)} to {words.amount(last.y, unit)}"
    return f"{line.cell.name} {words.times(_factor(line))} ({ends}{slope})"


def _cells(lines: Iterable[Line]) -> str:
    return listed([line.cell.name for line in lines])


# -- who is ahead ------------------------------------------------------------------------------------------------------


def ranking(lines: Sequence[Line], what: str, unit: Unit) -> str:
    """Say who is cheapest and dearest at the last place that several cells have."""
    rivals = drivers(lines)
    if not rivals:
        return ""
    shared = [line for line in rivals if line.points[-1].x == max(one.points[-1].x for one in rivals)]
    if len(shared) < 2:  # noqa: PLR2004  a comparison takes two
        return ""
    best, worst = (choose(shared, key=lambda line: line.points[-1].y) for choose in (min, max))
    ratio = worst.points[-1].y / best.points[-1].y
    where = f", {best.points[-1].text}" if best.points[-1].text not in {"", what.removeprefix("In ")} else ""
    if ratio <= FLAT:
        return f"{what}{where}, all {len(shared)} cells lie within {words.percent(ratio - 1)} of each other."
    level = [line.cell.name for line in shared if line is not best and line.points[-1].low <= best.points[-1].high]
    names = f"{listed([best.cell.name, *level])} {'are' if level else 'is'}"
    return (
        f"{what}{where}, {names} ahead with {words.amount(best.points[-1].y, unit)}; "
        f"{worst.cell.name} takes {words.times(ratio)} as much ({words.amount(worst.points[-1].y, unit)})."
    )


# -- copy-on-write and redirect-on-write -------------------------------------------------------------------------------


def copies(cell: Cell) -> bool:
    """Tell whether a first write copies the whole file's data: copy-on-write by files, where there is no reflink."""
    return cell.write_policy is WritePolicy.COPY_ON_WRITE and cell.copy_unit is CopyUnit.FILE and not cell.reflink


def redirects(cell: Cell) -> bool:
    """Tell whether a first write goes elsewhere and copies a block at most."""
    return cell.write_policy is WritePolicy.REDIRECT_ON_WRITE


def crossings(lines: Sequence[Line]) -> tuple[Crossing, ...]:
    """Return for each cell that redirects where the cheapest that copies stops being ahead of it, if it does.

    Between two places that were measured lines are straight on logarithmic axes, as the plot draws them.
    """
    copying = _cheapest([line for line in lines if copies(line.cell)])
    found = (_crossing(copying, line) for line in lines if redirects(line.cell))
    return tuple(one for one in found if one is not None)


def _crossing(copying: Mapping[float, tuple[float, Cell]], line: Line) -> Crossing | None:
    shared = [point for point in line.points if point.x in copying]
    ahead = [math.log(copying[point.x][0] / point.y) for point in shared]
    for number in range(1, len(shared)):
        left, right = ahead[number - 1], ahead[number]
        if left <= 0 < right:
            start, end = shared[number - 1], shared[number]
            share = -left / (right - left)
            return Crossing(
                _between(start.x, end.x, share), _between(start.y, end.y, share), copying[start.x][1], line.cell
            )
    return None


def _cheapest(lines: Sequence[Line]) -> dict[float, tuple[float, Cell]]:
    cheapest: dict[float, tuple[float, Cell]] = {}
    for line in lines:
        for point in line.points:
            if point.x not in cheapest or point.y < cheapest[point.x][0]:
                cheapest[point.x] = point.y, line.cell
    return cheapest


def _between(low: float, high: float, share: float) -> float:
    return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))


def first_write(lines: Sequence[Line], unit: Unit) -> str:
    """Say from which size on redirect-on-write is ahead of copy-on-write, and by how much at the largest."""
    copying = [line for line in lines if copies(line.cell)]
    redirecting = [line for line in lines if redirects(line.cell)]
    if not copying or not redirecting:
        absent = "copies a file at its first write" if not copying else "redirects"
        return f"No driver that {absent} was measured, so copy-on-write and redirect-on-write cannot be compared."
    lead = " ".join(_versus(_cheapest(copying), line) for line in redirecting)
    return f"{lead} {_at_the_largest(copying, redirecting, unit)}".strip()


def _versus(copying: Mapping[float, tuple[float, Cell]], line: Line) -> str:
    """Say from which size on a cell that redirects is ahead of the cheapest that copies."""
    shared = [point for point in line.points if point.x in copying]
    name = line.cell.name
    if not shared:
        return f"{name} was measured at no size at which copying was."
    found = _crossing(copying, line)
    if found is not None:
        here = size(round(found.x))
        return f"{name} redirects, and is ahead of copying ({found.before.name}) from files of some {here} on."
    ahead = [point.y < copying[point.x][0] for point in shared]
    ends = f"{size(round(shared[0].x))} to {size(round(shared[-1].x))}"
    if all(ahead):
        return f"{name} redirects, and is ahead of copying at every size, {ends}."
    return (
        f"{name} redirects, and "
        + ("is behind copying at every size, " if not any(ahead) else "changes places with copying, ")
        + f"{ends}."
    )


def _at_the_largest(copying: Sequence[Line], redirecting: Sequence[Line], unit: Unit) -> str:
    first, second = _cheapest(copying), _cheapest(redirecting)
    shared = first.keys() & second.keys()
    if not shared:
        return ""
    x = max(shared)
    (dear, copier), (cheap, redirector) = first[x], second[x]
    return (
        f"At {size(round(x))} {copier.name} takes {words.amount(dear, unit)}, {redirector.name} "
        f"{words.amount(cheap, unit)}: {words.times(dear / cheap)}."
    )
