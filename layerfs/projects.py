"""The projects of one store, on a file system that limits some: one for the directory of each active snapshot.

::

    <root>/projects       the number that is added to a snapshot's id

A store takes 16,777,216 numbers from there on, of which nobody has used one when it is opened for the first time:
others may have projects on the file system, too.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from layerfs.contract import Quota, Snapshot, SnapshotId, Usage
from layerfs.errors import FailedPrecondition, NoSpace, Unsupported
from layerfs.kernel import projects, syscalls
from layerfs.kernel.descriptors import opened

RECORD = "projects"
"""The file in a driver's directory."""
_RANGE = 1 << 24
_RANGES = 255
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Projects:
    """The projects of the directories below ``root``; without a ``base`` there are none, and nothing can be limited."""

    def __init__(self, root: Path, base: int | None) -> None:
        self._root = root
        self._base = base

    @classmethod
    def find(cls, root: Path) -> Projects:
        """Look whether there are some here; the first time numbers are chosen."""
        with opened(os.open(root, _DIRECTORY)) as directory:
            if not projects.are_enforced(directory):
                return cls(root, None)
            return cls(root, _recorded(root) or _begin(root, directory))

    def mark(self, snapshot: Snapshot, *directories: str | Path) -> None:
        """Let what is made in these new directories of a writable snapshot count."""
        number = self._number(snapshot.id)
        if number is None or not snapshot.writable:
            return
        for directory in directories:
            with opened(os.open(directory, _DIRECTORY)) as fd:
                projects.mark(fd, number)

    def limit(self, snapshot: Snapshot, directory: Path) -> None:
        """Hold a snapshot, of which this directory counts, to its quota (`layerfs.contract.Quotas`)."""
        number = self._number(snapshot.id)
        if number is None:
            if snapshot.quota:
                raise self._unsupported()
            return
        with opened(os.open(directory, _DIRECTORY)) as fd:
            if projects.project_of(fd) != number and snapshot.quota:
                raise FailedPrecondition(
                    f"snapshot {snapshot.id} was made before {self._root} had project quotas",
                    hint="`layerfs snapshot` of the clone makes a directory that can be limited",
                )
            projects.limit(fd, number, snapshot.quota)

    def usage(self, id: SnapshotId) -> Usage:  # noqa: A002  the contract's word
        """Return what counts for a snapshot."""
        number = self._number(id)
        if number is None:
            return Usage()
        with opened(os.open(self._root, _DIRECTORY)) as fd:
            return projects.read(fd, number)[1]

    def check(self, snapshot: Snapshot) -> None:
        """Raise `NoSpace` for a snapshot that takes more than its quota: on ext4, root may pass it."""
        used, quota = self.usage(snapshot.id), snapshot.quota
        if used.size > (quota.size or used.size) or used.inodes > (quota.inodes or used.inodes):
            raise NoSpace(f"snapshot {snapshot.id} takes {used.size} bytes and {used.inodes} inodes already")

    def free(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Forget the limits of a snapshot that is removed."""
        number = self._number(id)
        if number is None:
            return
        with opened(os.open(self._root, _DIRECTORY)) as fd:
            if projects.read(fd, number)[0]:
                projects.limit(fd, number, Quota())

    def _number(self, id: SnapshotId) -> int | None:  # noqa: A002  the contract's word
        return None if self._base is None or id >= _RANGE else self._base + id

    def _unsupported(self) -> Unsupported:
        magic = syscalls.file_system_magic(os.fsencode(self._root))
        hint = "use the fuse driver, which counts by itself"
        if magic == syscalls.EXT_MAGIC:
            hint = f"as root on Linux 5.14 or later: tune2fs -O quota,project DEVICE, mount -o prjquota; or {hint}"
        elif magic == syscalls.XFS_MAGIC:
            hint = f"as root on Linux 5.14 or later: mount it with the option prjquota; or {hint}"
        return Unsupported(f"the file system of {self._root} has no project quotas that we may set", hint=hint)


def _recorded(root: Path) -> int | None:
    try:
        return int((root / RECORD).read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


def _begin(root: Path, directory: int) -> int:
    """Choose numbers that nobody has used, and write them down; who comes second takes those of the first."""
    first = int.from_bytes(os.urandom(8), "little")
    candidates = ((1 + (first + number) % _RANGES) * _RANGE for number in range(_RANGES))
    base = next((base for base in candidates if _is_free(directory, base)), None)
    if base is None:
        raise Unsupported(f"all projects of the file system of {root} are taken", hint="use the fuse driver")
    new = root / f".{RECORD}.{os.urandom(8).hex()}"
    with open(new, "w", encoding="ascii") as file:
        file.write(f"{base}\n")
        file.flush()
        os.fsync(file.fileno())
    with suppress(FileExistsError):
        os.link(new, root / RECORD)
    new.unlink()
    return _recorded(root) or base


def _is_free(directory: int, base: int) -> bool:
    known = projects.next_known(directory, base)
    return known is None or known >= base + _RANGE
