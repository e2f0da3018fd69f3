"""A place to try a driver out: one empty directory below its root, for one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PLACE = ".try"
"""The name of that place."""


@contextmanager
def scratch(root: Path, clear: Callable[[Path], None]) -> Iterator[Path]:
    """Give ``<root>/.try``, empty; ``clear`` removes it afterwards, and before, if a killed process left it."""
    place = root / PLACE
    lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        clear(place)
        place.mkdir(mode=0o700)
        try:
            yield place
        finally:
            clear(place)
    finally:
        os.close(lock)
