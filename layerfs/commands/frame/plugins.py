"""Find sub-commands by the entry points ``layerfs.commands``, at the price of a look into some directories.

A *plug-in* is a verb or group of another distribution. ``importlib.metadata`` alone takes 20 ms to import, half of what
`layerfs --help` may cost, and nearly always there is nothing to find; so it is imported only when some distribution on
the path mentions the group.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "layerfs.commands"

_OWN = "layerfs-"
"""What the metadata directory of this distribution starts with: its entry points are the built-in table."""


def find(prefix: str) -> dict[str, EntryPoint]:
    """Return the plug-ins directly below ``prefix`` ("" or "image."), by the last part of their name."""
    if not any(_mentions_group(directory) for directory in _metadata_directories()):
        return {}
    from importlib.metadata import entry_points  # noqa: PLC0415  20 ms that most calls need not pay

    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    names = (name for name in sorted(found) if name.startswith(prefix) and "." not in name[len(prefix) :])
    return {name[len(prefix) :]: found[name] for name in names}


def _metadata_directories() -> Iterator[str]:
    """List the metadata directories of other distributions on the path."""
    for place in dict.fromkeys(sys.path):
        try:
            names = os.listdir(place or ".")
        except OSError:  # a zip file, or a place that is not there: Python's own path is allowed both
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")) and not name.startswith(_OWN):
                yield os.path.join(place, name)


def _mentions_group(directory: str) -> bool:
    """Tell whether a distribution has entry points in our group."""
    try:
        with open(os.path.join(directory, "entry_points.txt"), "rb") as file:
            return f"[{GROUP}]".encode() in file.read()
    except OSError:  # most distributions have no entry points, so no such file
        return False
