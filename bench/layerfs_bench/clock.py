"""The clock that takes the samples, and what it costs to read it.

`timed` is all that stands between an operation and its sample: two readings of the clock and one call. What they take
is measured (`overhead`), recorded with every measurement, and not subtracted: against an operation of 100 µs it is a
thousandth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ParamSpec

P = ParamSpec("P")

_READINGS = 2000
"""How often the clock is read to learn what that costs; the least of them is what no interruption touched."""


def timed(operation: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    """Call ``operation`` once and return how long that took, in seconds."""
    start = time.perf_counter()
    operation(*args, **kwargs)
    return time.perf_counter() - start


def timed_each(operation: Callable[[str], object], names: Sequence[str]) -> float:
    """Call ``operation`` with each name in turn and return how long one call took on average, in seconds."""
    start = time.perf_counter()
    for name in names:
        operation(name)
    return (time.perf_counter() - start) / len(names)


def overhead() -> float:
    """Return the seconds that `timed` adds to an operation: those of an operation that does nothing."""
    return min(timed(_nothing) for _ in range(_READINGS))


def resolution() -> float:
    """Return the smallest step of the clock, in seconds, as the system tells it."""
    return time.get_clock_info("perf_counter").resolution


def _nothing() -> None:
    """Do nothing, at the price of a call."""
