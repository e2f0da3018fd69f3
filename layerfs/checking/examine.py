"""All checks of a store together."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from layerfs.checking.deep import DeepCheck
from layerfs.checking.fast import Check
from layerfs.checking.problem import Problem
from layerfs.events import Listener, ignore
from layerfs.parts import Parts

_NANO = 1000
"""Nanoseconds of a microsecond."""


def examine(
    parts: Parts,
    clock: Callable[[], int],
    *,
    deep: bool = False,
    older_than: timedelta | None = None,
    jobs: int | None = None,
    listener: Listener = ignore,
) -> tuple[Problem, ...]:
    """Return what is wrong with a store (`layerfs.store.Store.check`)."""
    found = Check(parts).run(deep=deep)
    if not deep:
        return found
    since = clock() - older_than // timedelta(microseconds=1) * _NANO if older_than else None
    return (*found, *DeepCheck(parts, clock, since=since, jobs=jobs, listener=listener).run())
