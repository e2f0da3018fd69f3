"""The scenarios: small classes, each of which says what it measures and what theory expects.

`every` lists them in the order in which reports show them. Other packages bring theirs by entry points of the group
``layerfs.scenarios``; docs/how-to/add-a-scenario.md shows how to write one.
"""

from __future__ import annotations

from collections.abc import Sequence

from layerfs import entrypoints
from layerfs.errors import InvalidArgument
from layerfs_bench.scenarios import build, lifecycle, lookup, mixed, read, write
from layerfs_bench.scenarios.base import Metric, Scale, Scenario

__all__ = ["Metric", "Scale", "Scenario", "every", "matching"]


_GROUP = "layerfs.scenarios"
"""The entry points by which other packages bring scenarios: each names a subclass of `Scenario`."""


def every() -> tuple[Scenario, ...]:
    """Return one of each scenario, our own and then those of other packages."""
    return (*builtin(), *(found.load()() for _, found in sorted(entrypoints.find(_GROUP).items())))


def builtin() -> tuple[Scenario, ...]:
    """Return one of each scenario of our own."""
    return (
        lookup.Stat(),
        lookup.Open(),
        lookup.Readdir(),
        lookup.Walk(),
        write.First(),
        write.Append(),
        write.Overwrite(),
        write.Create(),
        write.Chmod(),
        write.Rename(),
        write.Unlink(),
        write.Parallel(),
        lifecycle.Lifecycle(),
        lifecycle.Apply(),
        read.Sequential(),
        read.Random(),
        read.Shared(),
        build.Containerd(),
        mixed.Untar(),
        mixed.Git(),
        mixed.Compile(),
        mixed.Sqlite(),
    )


def matching(words: Sequence[str]) -> tuple[Scenario, ...]:
    """Return the scenarios that words name, or that belong to the group that a word is if it names none.

    Raise `InvalidArgument` for a word that is neither.
    """
    known = every()
    for word in words:
        if not any(word in (one.name, one.group) for one in known):
            names = ", ".join(one.name for one in known)
            raise InvalidArgument(f"there is no scenario {word!r}", hint=f"one of {names}, or a group of them")
    groups = set(words) - {one.name for one in known}
    return tuple(one for one in known if one.name in words or one.group in groups)
