"""Figures in words: times, ratios and shares with three figures, as people compare them."""

from __future__ import annotations

import math

from layerfs.commands.frame.units import size
from layerfs_bench.results import Key, Parameters, Unit

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def figures(value: float, count: int = 3) -> str:
    """Write a number with so many figures and no exponent: "1,234", "56.7", "0.0123"."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "∞"
    digits = count - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)  # may have one figure more: 9.996 becomes 10.0
    digits = count - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(0, digits)}f}"


def duration(seconds: float) -> str:
    """Write a time with three figures: "6.12 µs", "34.0 ms", "1.50 s"."""
    least, unit = next((pair for pair in _SECONDS if abs(seconds) >= pair[0] * 0.9995), _SECONDS[-1])
    return f"{figures(seconds / least)} {unit}"


def amount(value: float, unit: Unit) -> str:
    """Write a figure in its unit."""
    if unit is Unit.SECONDS:
        return duration(value)
    return size(round(value)) if unit is Unit.BYTES else figures(value)


def times(ratio: float) -> str:
    """Write a ratio: "1.2×", "340×"."""
    return f"{figures(ratio, 2 if ratio < 10 else 3)}×"  # noqa: PLR2004  "9.8×" and "12.3×" read alike


def percent(share: float) -> str:
    """Write a share with two figures, a whole number from 10 % on: "3.4 %", "15 %"."""
    return f"{figures(share * 100, 2)} %"


def shift(share: float) -> str:
    """Write a change with its sign: "+15 %", "−3.4 %"."""
    return f"{'+' if share >= 0 else '−'}{percent(abs(share))}"


def parameters(given: Parameters) -> str:
    """Write parameters for people: "128 layers, bottom", "64.0 MiB"."""
    words = [
        many(given.depth, "layer"),
        size(given.size) if given.size is not None else "",
        str(given.position or ""),
        many(given.clones, "clone"),
        many(given.workers, "worker"),
        many(given.files, "file"),
    ]
    return ", ".join(word for word in words if word)


def key(of: Key) -> str:
    """Write what was measured for people: "write.first first, 64.0 MiB"."""
    words = parameters(of.parameters)
    what = of.scenario if of.scenario.endswith(f".{of.metric}") else f"{of.scenario} {of.metric}"
    return what + (f", {words}" if words else "")


def many(count: int | None, noun: str) -> str:
    """Write a number of things: "1 layer", "1,000 layers"; "" for None."""
    return "" if count is None else f"{count:,} {noun}{'' if count == 1 else 's'}"
