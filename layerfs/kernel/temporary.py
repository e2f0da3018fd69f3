"""Private directories for a while, where the system has its temporary files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerfs.errors import os_error

_log = logging.getLogger(__name__)


def directory(prefix: str) -> Path:
    """Make one, which is the caller's to `remove`; raise `NoSpace`, or what else is in the way."""
    import tempfile  # noqa: PLC0415  4 ms with what it brings, which those who name a place need not pay

    try:
        return Path(tempfile.mkdtemp(prefix=prefix))
    except OSError as error:
        raise os_error("make a temporary directory", error) from error


@contextmanager
def room(prefix: str) -> Iterator[Path]:
    """Give one for the time of the block; what is in it goes with it. Errors as for `directory`."""
    import shutil  # noqa: PLC0415  as above

    place = directory(prefix)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def remove(place: Path) -> None:
    """Remove one that is empty; that it stays undoes nothing of what was done in it, and is only logged."""
    try:
        place.rmdir()
    except OSError as error:
        _log.warning("%s stays: %s", place, error)
