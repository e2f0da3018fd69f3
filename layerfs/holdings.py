"""What the driver holds: the bytes of snapshots, made, frozen and removed, with errors that say what was being done.

The snapshotter and its recovery are the two that call it; rows are theirs, bytes are its.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from layerfs import locks
from layerfs.contract import (
    Checkable,
    CommitsTogether,
    Damage,
    Driver,
    Mount,
    Quotas,
    Snapshot,
    SnapshotId,
    Usage,
)
from layerfs.errors import LayerfsError, NoSpace, OperationFailed, os_error

_GONE = "remove what stands on it, then import the image again: `layerfs rm`, `layerfs image rm`"


class LeftBytes(OperationFailed):
    """There are bytes under an id that is new: a process died when it had made them, or its commit failed."""


class Holdings:
    """The driver as the snapshotter sees it; ``lock_file`` is the file of `layerfs.locks`.

    An error of the operating system comes out as one of `layerfs.errors` that says what was being done.
    """

    def __init__(self, driver: Driver, lock_file: Path) -> None:
        self.driver = driver
        self._lock_file = lock_file

    def create(self, snapshot: Snapshot, name: str) -> None:
        """Make the bytes of a snapshot; ``name`` is what errors call it."""
        with _within_quota(snapshot, name), self._driving(f"create {name}"):
            self.driver.create(snapshot)

    def create_first(self, snapshot: Snapshot, name: str) -> None:
        """Make the bytes of a snapshot whose id is new; raise `LeftBytes` where there are some."""
        try:
            self.create(snapshot, name)
        except LayerfsError as error:
            if snapshot.id not in self.ids():
                raise
            raise LeftBytes(error.message, hint=error.hint) from error

    def create_anew(self, snapshot: Snapshot, name: str) -> None:
        """Throw away what a snapshot holds, and make it empty again."""
        self.remove(snapshot.id)
        self.create(snapshot, name)

    def mounts(self, snapshot: Snapshot, name: str) -> tuple[Mount, ...]:
        """Return how a snapshot is mounted."""
        with self._driving(f"list the mounts of {name}"):
            return tuple(self.driver.mounts(snapshot))

    def usage(self, snapshot: Snapshot, name: str) -> Usage:
        """Return what a snapshot takes without its parents, measured now."""
        with self._driving(f"measure {name}"):
            return self.driver.usage(snapshot)

    def freeze(self, snapshot: Snapshot) -> Usage:
        """Commit the bytes of a snapshot, and return what they take."""
        name = f"snapshot {snapshot.id}"
        with _within_quota(snapshot, name), self._driving(f"commit {name}"):
            usage = self.driver.usage(snapshot)
            self.driver.commit(snapshot)
            return usage

    def freeze_all(self, snapshots: Sequence[Snapshot]) -> None:
        """Commit the bytes of several snapshots, by one step where the driver has one."""
        with self._driving(f"commit {len(snapshots)} snapshots"):
            if isinstance(self.driver, CommitsTogether):
                self.driver.commit_all(snapshots)
            else:
                for snapshot in snapshots:
                    self.driver.commit(snapshot)

    def set_quota(self, snapshot: Snapshot, name: str) -> None:
        """Hold a snapshot to its quota; a driver without quotas has none to lift."""
        if isinstance(self.driver, Quotas):
            with self._driving(f"set the quota of {name}"):
                self.driver.set_quota(snapshot)

    def quota_usage(self, snapshot: Snapshot, name: str) -> Usage:
        """Return what counts against the quota of a snapshot."""
        if not isinstance(self.driver, Quotas):
            return Usage()
        with self._driving(f"read what counts against the quota of {name}"):
            return self.driver.quota_usage(snapshot)

    def remove(self, snapshot_id: SnapshotId) -> None:
        """Delete the bytes of a snapshot; what is gone already is no error."""
        place = locks.named(f"bytes/{snapshot_id}")
        with (
            locks.locked(self._lock_file, place, exclusive=True, what=f"snapshot {snapshot_id}"),
            self._driving(f"delete the bytes of snapshot {snapshot_id}"),
        ):
            self.driver.remove(snapshot_id)

    def ids(self) -> set[SnapshotId]:
        """Return the snapshots that have bytes, whether or not a row names them."""
        with self._driving("list what the driver holds"):
            return set(self.driver.ids())

    def check(self, snapshots: Sequence[Snapshot]) -> list[Damage]:
        """Return what is gone or broken of snapshots that should be there, as far as shows without reading them."""
        held = self.ids()
        damages = [Damage(it.id, "its bytes are gone", _GONE) for it in snapshots if it.id not in held]
        if isinstance(self.driver, Checkable):
            with self._driving("check the snapshots"):
                damages += self.driver.check([it for it in snapshots if it.id in held])
        return damages

    @contextmanager
    def _driving(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise os_error(f"{what} (driver {self.driver.name})", error) from error


@contextmanager
def _within_quota(snapshot: Snapshot, name: str) -> Iterator[None]:
    """Say of a snapshot with a quota what the quota is when there is no space."""
    try:
        yield
    except NoSpace as error:
        if not snapshot.quota:
            raise
        raise NoSpace(
            f"{error.message}; the quota of {name} is {snapshot.quota}",
            hint="`layerfs quota` shows what counts against it, and raises it",
        ) from error
