"""What a *problem* of a store is: something that is gone, broken or in the way, and what can be done about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ProblemKind(StrEnum):
    """What is broken, by which `layerfs repair` knows how to mend it."""

    SNAPSHOT = "snapshot"
    """Of a snapshot nothing is there, or its driver calls it broken."""
    CONTENT = "content"
    """A committed snapshot holds other files than it did."""
    UNCHECKED = "unchecked"
    """Something could not be looked at."""
    BLOB = "blob"
    INDEX = "index"
    """What a driver keeps beside a snapshot, and can make again."""
    ROWS = "rows"
    """The database lacks what it must have."""
    DATABASE = "database"
    DRIVER = "driver"
    """What the driver says of all of the store."""
    ORPHAN = "orphan"
    """Bytes of a snapshot that no row names."""
    LEFTOVER = "leftover"
    """What work left that ended before its time."""
    FOREIGN = "foreign"
    """A file that is none of the store's."""
    MOUNT = "mount"
    """A mount of what is gone, or whose server has ended."""
    MODE = "mode"
    """A directory of the store that others may enter or change."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is gone or broken: a snapshot, blob or path by its name, what it is, what to do, whom it hurts.

    ``hurts`` names the images and clones that cannot be used, or not as they were. The name is "" for all of the store.
    ``file`` is the path inside the snapshot, where the problem is that of one file.
    """

    name: str
    message: str
    hint: str
    hurts: tuple[str, ...]
    kind: ProblemKind = ProblemKind.SNAPSHOT
    file: str = ""
