"""What a snapshot may write to the file system on its thin device: a limit of the project that all files there have.

::

    <root>/counts/<id>      what the files of the committed snapshot <id> take, with all below it: bytes and inodes

The file system counts what is its image's, too, which is why the image's share is written down when it is committed.
"""

from __future__ import annotations

import os
from pathlib import Path

from layerfs.contract import NO_QUOTA, Quota, SnapshotId, Usage
from layerfs.kernel import projects
from layerfs.kernel.descriptors import opened

_PROJECT = 1
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Counts:
    """The counts of the committed snapshots below a driver's directory."""

    def __init__(self, root: Path) -> None:
        self._place = root / "counts"

    def get(self, id: SnapshotId) -> Usage:  # noqa: A002  the contract's word
        """Return what a committed snapshot takes with all below it; nothing for one that was never counted."""
        try:
            size, inodes = (self._place / str(id)).read_text(encoding="ascii").split()
        except FileNotFoundError:
            return Usage()
        return Usage(int(size), int(inodes))

    def put(self, id: SnapshotId, usage: Usage) -> None:  # noqa: A002  the contract's word
        """Write it down, on the disk."""
        self._place.mkdir(mode=0o700, exist_ok=True)
        new = self._place / f".{id}"
        with open(new, "w", encoding="ascii") as file:
            file.write(f"{usage.size} {usage.inodes}\n")
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._place / str(id))

    def drop(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Forget one."""
        (self._place / str(id)).unlink(missing_ok=True)


def begin(root: Path) -> None:
    """Give the empty file system that is mounted at ``root`` the project, which all that comes to it inherits."""
    with opened(os.open(root, _DIRECTORY)) as fd:
        projects.mark(fd, _PROJECT)


def used(root: Path) -> Usage:
    """Return what the files of the file system mounted at ``root`` take."""
    with opened(os.open(root, _DIRECTORY)) as fd:
        return projects.read(fd, _PROJECT)[1]


def limit(root: Path, quota: Quota, above: Usage) -> None:
    """Let so much be written to the file system mounted at ``root`` beyond what its parents take."""
    limits = NO_QUOTA
    if quota:
        size = None if quota.size is None else quota.size + above.size
        limits = Quota(size, None if quota.inodes is None else quota.inodes + above.inodes)
    with opened(os.open(root, _DIRECTORY)) as fd:
        projects.limit(fd, _PROJECT, limits)
