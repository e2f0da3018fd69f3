"""All checks of a store together."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from layerfs.checking.deep import DeepCheck
from layerfs.checking.fast import Check
from layerfs.checking.problem import Problem
from layerfs.events import Listener, ignore
from layerfs.kernel.clock import nanoseconds
from layerfs.parts import Parts


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
    since = clock() - nanoseconds(older_than) if older_than else None
    return (*found, *DeepCheck(parts, clock, since=since, jobs=jobs, listener=listener).run())
