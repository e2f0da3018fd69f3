"""Where the ticks of an axis stand, and what they are called."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from layerfs.commands.frame.units import size
from layerfs_bench import words
from layerfs_bench.figures import Axis
from layerfs_bench.results import Unit

_MOST = 7
"""Ticks on an axis, more or less."""
_NARROWEST, _ROOM = 8.0, 1.15
"""The ratio of the ends of a logarithmic axis at least, and the factor of room at each end."""


def ticks(axis: Axis, values: Sequence[float], *, exactly: bool = False) -> list[float]:
    """Return the places of ticks for values; ``exactly`` puts them where values are, leaving out what is too close."""
    if not axis.logarithmic:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    low, high = min(values), max(values)
    if exactly:
        return _apart(sorted(set(values), reverse=True), math.log(high / low) / (_MOST - 2))
    return _powers(low, high, 4) if axis.unit is Unit.BYTES else _decades(low, high)


def widened(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of a logarithmic axis: some room around the values, and so wide that noise does not fill it."""
    low, high = min(values), max(values)
    missing = max(1.0, math.sqrt(_NARROWEST / (high / low)))
    return low / missing / _ROOM, high * missing * _ROOM


def _apart(places: Iterable[float], gap: float) -> list[float]:
    """Leave out what is closer than ``gap`` (a logarithm) to the one before; the first, from the right, is kept."""
    kept: list[float] = []
    for place in places:
        if not kept or math.log(kept[-1] / place) >= gap:
            kept.append(place)
    return kept


def _powers(low: float, high: float, base: int) -> list[float]:
    """Return powers of a base, every so many of them that there are not too many."""
    first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
    step = max(1, -(-(last - first) // _MOST))
    return [float(base) ** power for power in range(first, last + 1, step)]


def _decades(low: float, high: float) -> list[float]:
    """Return powers of ten; between them also 2 and 5 where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if math.log10(high / low) > 2.5:  # noqa: PLR2004  three decades have ticks enough
        step = max(1, -(-(last - first) // _MOST))
        return [10.0**power for power in range(first, last + 1, step)]
    every = (digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5))
    return [place for place in every if low / 2.5 <= place <= high * 2.5]


def label(value: float, axis: Axis) -> str:
    """Write the name of a tick."""
    if axis.unit is Unit.BYTES:
        return size(round(value)).replace(".0 ", " ")
    if axis.unit is Unit.SECONDS:
        return words.duration(value).replace(".00 ", " ").replace(".0 ", " ")
    return f"{value:,.0f}" if axis.logarithmic else f"{value:.0%}".replace("%", " %")
