"""The snapshotter: names, labels, kinds, parents and the state machine over any driver, as containerd defines them.

A snapshot is *active* or a *view* under a key, or *committed* under a name; keys and names are one space. Only a
committed snapshot, or nothing (""), can be a parent. The contract is containerd's ``core/snapshots/snapshotter.go``;
what it leaves open is decided here once, so that no driver can get it wrong:

- A row that names bytes exists only with the bytes. An id is reserved by a row marked *creating* before its bytes are
  made, and a commit is marked *committing*, with its new name, before the bytes are frozen. Whoever opens the store
  after a crash undoes the first and finishes the second.
- On removal the row goes first and the bytes after; `Snapshotter.cleanup` reclaims what a crash leaves between.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from layerfs import locks, rules
from layerfs.contract import CommitsTogether, Driver, Info, Kind, Mount, Snapshot, SnapshotId, Usage
from layerfs.errors import Busy, FailedPrecondition, InvalidArgument, LayerfsError, NoSpace, Unsupported, os_error
from layerfs.filters import compile_filters
from layerfs.kernel import mounting
from layerfs.metadata import settings, snapshots
from layerfs.metadata.database import Database
from layerfs.metadata.snapshots import Row, State

_T = TypeVar("_T")

Within = Callable[[sqlite3.Connection], None]
"""Further work of a caller inside a transaction of the snapshotter's."""

_log = logging.getLogger(__name__)

_NEXT = "\x00next"
"""Follows the key of a snapshot that is to take the place of the one that has the key now."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A committed snapshot that is to be made: its name, the name of its parent or "", and its labels."""

    name: str
    parent: str
    labels: Mapping[str, str]


class Snapshotter:
    """Keep snapshots on one driver; safe for many threads and processes at once.

    ``lock_file`` is the file of `layerfs.locks`; ``clock`` gives nanoseconds since 1970. Opening finishes or undoes
    what crashed processes left unfinished.
    """

    def __init__(
        self, driver: Driver, database: Database, lock_file: Path, *, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.driver = driver
        self._database = database
        self._lock_file = lock_file
        self._clock = clock
        self._owner = locks.Owner(lock_file)
        self._given_up: set[SnapshotId] = set()
        self.recover()

    @property
    def owner(self) -> int:
        """Return the token of this process, by which others can tell whether it still runs (`layerfs.locks`)."""
        return self._owner.token

    def is_alive(self, owner: int) -> bool:
        """Tell whether the process of a token still runs."""
        return self._owner.is_alive(owner)

    def prepare(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None, within: Within | None = None
    ) -> tuple[Mount, ...]:
        """Make an active (writable) snapshot ``key`` on top of ``parent`` and return its mounts.

        ``within`` is called in the transaction that makes the snapshot visible: both take place, or neither.
        Raise `AlreadyExists` for a key in use, `NotFound` for a missing parent, `InvalidArgument` for one that is not
        committed, `Unsupported` where the chain would be longer than the driver can mount.
        """
        return self._make(Kind.ACTIVE, key, parent, labels, within)

    def view(self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        """Make a read-only snapshot ``key`` of ``parent`` and return its mounts; errors as for `prepare`."""
        return self._make(Kind.VIEW, key, parent, labels, None)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """Return the mounts of an active snapshot or view, the same as when it was made."""
        snapshot = self.snapshot(key)
        if snapshot.kind is Kind.COMMITTED:
            raise FailedPrecondition(
                f"{key!r} is committed and has no mounts", hint="make a view of it (read-only) or prepare a child"
            )
        with self._driving(f"list the mounts of {key!r}"):
            return tuple(self.driver.mounts(snapshot))

    def commit(
        self, name: str, key: str, *, labels: Mapping[str, str] | None = None, parent: str | None = None
    ) -> None:
        """Turn the active snapshot ``key`` into the committed one ``name``; its own labels do not carry over.

        ``parent`` gives one that was prepared without a parent its parent now, where the driver's traits allow it.
        Raise `AlreadyExists` for a name in use, `FailedPrecondition` for a view or a committed snapshot.
        """
        labels = rules.checked_labels(labels or {})
        with self._database.write(durable=False) as connection:
            row = rules.committable(connection, key)
            if parent is not None:
                rules.rebase(connection, row, parent, self.driver)
            snapshot = self._intend_commit(connection, row, name, labels)
        try:
            usage = self._freeze(snapshot)
        except BaseException:
            self._undo(self._withdraw, row)
            raise
        with self._finishing(row) as connection:
            snapshots.set_committed(connection, row.id, usage, self._clock())

    @contextmanager
    def together(self, plans: Sequence[Planned]) -> Iterator[tuple[Snapshot, ...]]:
        """Give empty snapshots that the block fills; when it ends they are committed, all in one step.

        Each gets its parent then, which may be one that comes before it; the driver's traits must allow that (rebase).
        Nobody else sees them until then. If the block raises, and after a crash, none of them was ever there.
        Raise `AlreadyExists` for a name in use.
        """
        self.recover()
        with self._database.write(durable=False) as connection:
            made = tuple(self._reserve(connection, Kind.ACTIVE, plan.name, None) for plan in plans)
        try:
            with self._driving(f"create {len(made)} snapshots"):
                for snapshot in made:
                    self.driver.create(snapshot)
            yield made
            self._freeze_all(made)
            with self._database.write() as connection:
                for plan, snapshot in zip(plans, made, strict=True):
                    snapshots.set_parent(connection, snapshot.id, rules.parent(connection, plan.parent))
                    snapshots.set_committed(connection, snapshot.id, None, self._clock())
                    snapshots.set_labels(connection, snapshot.id, rules.checked_labels(plan.labels))
        except BaseException:
            self._given_up.update(snapshot.id for snapshot in made)  # recovery has what cannot be undone now
            self._undo(self._discard_unseen, made)
            raise

    def empty(self, snapshot: Snapshot) -> None:
        """Throw away what was written to a snapshot of `together`."""
        self._remove_bytes(snapshot.id)
        with self._driving(f"create snapshot {snapshot.id} anew"):
            self.driver.create(snapshot)

    def checkpoint(self, name: str, key: str) -> None:
        """Commit the active snapshot ``key`` as ``name`` and leave a fresh active one on top of it at ``key``.

        The key is never without a snapshot: both take place, or neither. Errors as for `commit`, and `Busy` while it
        is mounted: the mount would go on writing to what is committed.
        """
        self._check_unmounted(key)
        with self._database.write(durable=False) as connection:
            row = rules.committable(connection, key)
            snapshot = self._intend_commit(connection, row, name, {})
            following = self._reserve(connection, Kind.ACTIVE, key + _NEXT, row.id)
        try:
            with self._driving(f"create {key!r}"):
                self.driver.create(following)
            usage = self._freeze(snapshot)
        except BaseException:
            self._undo(self._discard, following.id)
            self._undo(self._withdraw, row)
            raise
        with self._finishing(row) as connection:
            self._succeed(connection, row, usage, following.id)

    def reset(self, key: str, parent: str) -> None:
        """Throw away what the active snapshot ``key`` holds and start it anew on ``parent``, or leave it as it was.

        Raise `Busy` while it is mounted, else as `prepare`.
        """
        self._check_unmounted(key)
        with self._database.write(durable=False) as connection:
            row = rules.committable(connection, key)
            base = rules.parent(connection, parent)
            following = self._reserve(connection, Kind.ACTIVE, key + _NEXT, base)
            labels = snapshots.labels(connection, row.id)
        try:
            with self._driving(f"create {key!r}"):
                self.driver.create(following)
            with self._database.write() as connection:
                rules.same(connection, key, row)
                snapshots.delete(connection, row.id)
                snapshots.rename(connection, following.id, key)
                snapshots.set_labels(connection, following.id, labels)
                snapshots.set_ready(connection, following.id)
        except BaseException:
            self._undo(self._discard, following.id)
            raise
        self._remove_bytes(row.id)

    def remove(self, key: str, *, within: Within | None = None) -> None:
        """Remove a snapshot; raise `FailedPrecondition` that lists the children of one that has some.

        ``within`` is called in the transaction that removes it.
        """
        with self._database.write() as connection:
            row = rules.ready(connection, key)
            children = snapshots.children(connection, row.id)
            if children:
                shown = ", ".join(children[:5]) + (f" and {len(children) - 5} more" if len(children) > 5 else "")  # noqa: PLR2004
                raise FailedPrecondition(f"cannot remove {key!r}: {shown} stand on it", hint="remove these first")
            snapshots.delete(connection, row.id)
            if within:
                within(connection)
        self._remove_bytes(row.id)

    def stat(self, key: str) -> Info:
        """Return what is known of a snapshot."""
        with self._database.read() as connection:
            return snapshots.info(connection, rules.present(connection, key))

    def update(self, info: Info, *fieldpaths: str) -> Info:
        """Replace the labels of ``info.name`` by those of ``info``, or only those that ``fieldpaths`` name.

        A field path is ``labels`` or ``labels.KEY``; any other raises `InvalidArgument`: nothing else can change.
        """
        for path in fieldpaths:
            if path != "labels" and not path.startswith("labels."):
                raise InvalidArgument(f"cannot update {path!r} of a snapshot", hint="only labels can be updated")
        with self._database.write() as connection:
            row = rules.present(connection, info.name)
            labels = dict(info.labels)
            if fieldpaths and "labels" not in fieldpaths:
                labels = snapshots.labels(connection, row.id)
                for path in fieldpaths:
                    name = path.removeprefix("labels.")
                    if name in info.labels:
                        labels[name] = info.labels[name]
                    else:
                        labels.pop(name, None)
            snapshots.set_labels(connection, row.id, rules.checked_labels(labels))
            snapshots.touch(connection, row.id, self._clock())
            return snapshots.info(connection, snapshots.get(connection, row.id))

    def walk(self, visit: Callable[[Info], None], *filters: str) -> None:
        """Call ``visit`` for every snapshot that passes one of the filters (see `layerfs.filters`); all, if none.

        What it sees is the state at the start; ``visit`` may call any method of the snapshotter.
        """
        for info in self.infos(*filters):
            visit(info)

    def infos(self, *filters: str, prefix: str = "") -> list[Info]:
        """Return the snapshots that pass one of the filters and whose name starts with ``prefix``, sorted by name."""
        passes = compile_filters(filters)
        with self._database.read() as connection:
            return [info for info in snapshots.infos(connection, prefix) if passes(info)]

    def usage(self, key: str) -> Usage:
        """Return what a snapshot takes without its parents: of a committed one measured once, of others now.

        That is at the commit for what `commit` and `checkpoint` make. What `together` makes is measured when somebody
        asks for the first time, as it cannot change and the walk would be a tenth of what unpacking a layer takes.
        """
        with self._database.read() as connection:
            row = rules.present(connection, key)
            snapshot = snapshots.snapshot(connection, row)
        if row.usage is not None:
            return row.usage
        with self._driving(f"measure {key!r}"):
            usage = self.driver.usage(snapshot)
        if snapshot.kind is Kind.COMMITTED:
            # What is full or busy must not keep anybody from seeing what to remove.
            with suppress(NoSpace, Busy), self._database.write(durable=False) as connection:
                snapshots.set_usage(connection, snapshot.id, usage)
        return usage

    def missing(self, names: Iterable[str]) -> set[str]:
        """Return those of the names that no snapshot has."""
        with self._database.read() as connection:
            return {name for name in names if not snapshots.is_there(connection, name)}

    def snapshot(self, key: str) -> Snapshot:
        """Return what the driver knows a snapshot by."""
        with self._database.read() as connection:
            return snapshots.snapshot(connection, rules.present(connection, key))

    def cleanup(self) -> tuple[SnapshotId, ...]:
        """Delete the bytes that no row names, and return their ids."""
        self.recover()
        return self._remove_orphans(self._held())

    def recover(self) -> None:
        """Finish or undo what dead processes left, and after a power cut what it took; called when the store opens."""
        boot = _boot_id()
        with self._database.read() as connection:
            same_boot = settings.get(connection, "boot") == boot
            abandoned = self._abandoned(snapshots.unfinished(connection))
        if same_boot and not abandoned:
            return
        with locks.locked(self._lock_file, locks.named("recovery"), exclusive=True, what="the recovery of the store"):
            # One by one: finishing the commit of one finishes the creation of the one that follows it.
            while row := self._next_abandoned():
                self._recover_row(row)
            if not same_boot:
                self._recover_boot()
                with self._database.write() as connection:
                    settings.put(connection, "boot", boot)

    def close(self) -> None:
        """Release the driver; doing it twice is no error. The database stays its owner's to close."""
        self.driver.close()
        self._owner.close()

    # Making, freezing and removing bytes

    def _make(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str] | None, within: Within | None
    ) -> tuple[Mount, ...]:
        labels = rules.checked_labels(labels or {})
        rules.check_name(key)
        with self._database.write(durable=False) as connection:
            snapshot = self._reserve(connection, kind, key, rules.parent(connection, parent))
            snapshots.set_labels(connection, snapshot.id, labels)
        try:
            with self._driving(f"create {key!r}"):
                self.driver.create(snapshot)
                mounts = tuple(self.driver.mounts(snapshot))
            with self._database.write() as connection:
                snapshots.set_ready(connection, snapshot.id)
                if within:
                    within(connection)
        except BaseException:
            self._undo(self._discard, snapshot.id)
            raise
        return mounts

    def _reserve(self, connection: sqlite3.Connection, kind: Kind, key: str, parent: SnapshotId | None) -> Snapshot:
        rules.check_free(connection, key)
        parents = snapshots.ancestors(connection, parent)
        limit = self.driver.traits.max_layers
        if limit is not None and len(parents) > limit:
            raise Unsupported(
                f"{key!r} would have {len(parents)} layers below it; the driver {self.driver.name} mounts {limit}",
                hint="commit the clone to an image of fewer layers, or use a driver without this limit (btrfs, copy)",
            )
        new = snapshots.insert(connection, key, kind, parent, owner=self._owner.token, now=self._clock())
        return Snapshot(new, kind, parents)

    def _intend_commit(
        self, connection: sqlite3.Connection, row: Row, name: str, labels: Mapping[str, str]
    ) -> Snapshot:
        rules.check_name(name)
        rules.check_free(connection, name)
        snapshots.set_committing(connection, row.id, name, labels, self._owner.token)
        return snapshots.snapshot(connection, snapshots.get(connection, row.id))

    def _freeze(self, snapshot: Snapshot) -> Usage:
        with self._driving(f"commit snapshot {snapshot.id}"):
            usage = self.driver.usage(snapshot)
            self.driver.commit(snapshot)
            return usage

    def _freeze_all(self, made: Sequence[Snapshot]) -> None:
        with self._driving(f"commit {len(made)} snapshots"):
            if isinstance(self.driver, CommitsTogether):
                self.driver.commit_all(made)
            else:
                for snapshot in made:
                    self.driver.commit(snapshot)

    @contextmanager
    def _finishing(self, row: Row) -> Iterator[sqlite3.Connection]:
        """Write that a commit took place. Its bytes are frozen: if this fails, recovery has to do it, not undo it."""
        try:
            with self._database.write() as connection:
                yield connection
        except BaseException:
            self._given_up.add(row.id)
            raise

    def _check_unmounted(self, key: str) -> None:
        used = mounting.users(self.mounts(key))
        if used:
            raise Busy(f"{key!r} is mounted at {used[0].path}", hint="unmount it first")

    def _succeed(self, connection: sqlite3.Connection, row: Row, usage: Usage, following: SnapshotId) -> None:
        """Finish a commit and let the following snapshot take over key and labels."""
        labels = snapshots.labels(connection, row.id)
        snapshots.set_committed(connection, row.id, usage, self._clock())
        snapshots.rename(connection, following, row.name)
        snapshots.set_labels(connection, following, labels)
        snapshots.set_ready(connection, following)

    def _withdraw(self, row: Row) -> None:
        """Take back the intent to commit, unless the commit was written."""
        with self._database.write() as connection:
            if snapshots.get(connection, row.id).state is State.COMMITTING:
                snapshots.set_ready(connection, row.id)
                snapshots.set_parent(connection, row.id, row.parent)

    def _undo(self, action: Callable[[_T], None], what: _T) -> None:
        """Clean up after an error without hiding it; what cannot be undone now, recovery undoes."""
        try:
            action(what)
        except LayerfsError as error:
            _log.warning("left for recovery: %s", error)

    def _discard(self, snapshot_id: SnapshotId) -> None:
        """Undo a creation: bytes first, since the row keeps the id from being forgotten."""
        self._remove_bytes(snapshot_id)
        with self._database.write() as connection:
            snapshots.delete(connection, snapshot_id)

    def _discard_unseen(self, made: Iterable[Snapshot]) -> None:
        """Undo creations unless they were written as done: an interrupt may come right after that."""
        with self._database.read() as connection:
            states = {snapshot.id: snapshots.get(connection, snapshot.id).state for snapshot in made}
        for snapshot_id, state in states.items():
            if state is State.CREATING:
                self._discard(snapshot_id)

    def _remove_bytes(self, snapshot_id: SnapshotId) -> None:
        place = locks.named(f"bytes/{snapshot_id}")
        with (
            locks.locked(self._lock_file, place, exclusive=True, what=f"snapshot {snapshot_id}"),
            self._driving(f"delete the bytes of snapshot {snapshot_id}"),
        ):
            self.driver.remove(snapshot_id)

    def _held(self) -> set[SnapshotId]:
        with self._driving("list what the driver holds"):
            return set(self.driver.ids())

    def _remove_orphans(self, held: set[SnapshotId]) -> tuple[SnapshotId, ...]:
        """Delete the bytes seen before that have no row now: a row comes before its bytes, so what is new is safe."""
        with self._database.read() as connection:
            orphans = tuple(sorted(held - snapshots.ids(connection)))
        for orphan in orphans:
            self._remove_bytes(orphan)
        return orphans

    @contextmanager
    def _driving(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise os_error(f"{what} (driver {self.driver.name})", error) from error

    # Recovery

    def _abandoned(self, rows: list[Row]) -> list[Row]:
        return [row for row in rows if row.id in self._given_up or not self._owner.is_alive(row.owner)]

    def _next_abandoned(self) -> Row | None:
        with self._database.read() as connection:
            abandoned = self._abandoned(snapshots.unfinished(connection))
        return next(iter(abandoned), None)

    def _recover_row(self, row: Row) -> None:
        _log.warning("recovering snapshot %d (%r), left %s by a process that died", row.id, row.name, row.state)
        if row.state is State.CREATING:
            self._discard(row.id)
        else:
            self._finish_commit(row)

    def _finish_commit(self, row: Row) -> None:
        with self._database.read() as connection:
            following = snapshots.find(connection, row.name + _NEXT)
            snapshot = snapshots.snapshot(connection, row)
            successor = following and snapshots.snapshot(connection, following)
        usage = self._freeze(snapshot)
        if successor:
            with self._driving(f"create {row.name!r}"):
                self.driver.remove(successor.id)
                self.driver.create(successor)
        with self._finishing(row) as connection:
            if successor:
                self._succeed(connection, row, usage, successor.id)
            else:
                snapshots.set_committed(connection, row.id, usage, self._clock())
        self._given_up.discard(row.id)

    def _recover_boot(self) -> None:
        """Give active snapshots that lost their bytes in a power cut new ones, and delete bytes that lost their row.

        Making one does not wait for the disk. If its directory did not reach it, neither did anything inside: a file
        that was synced would have brought its directories along.
        """
        held = self._held()
        with self._database.read() as connection:
            open_rows = snapshots.by_kind(connection, Kind.ACTIVE) + snapshots.by_kind(connection, Kind.VIEW)
            lost = [snapshots.snapshot(connection, row) for row in open_rows if row.id not in held]
        self._remove_orphans(held)
        for snapshot in lost:
            try:
                with self._driving(f"create snapshot {snapshot.id} anew"):
                    self.driver.create(snapshot)
            except LayerfsError as error:
                _log.error("snapshot %d lost its bytes and cannot be made anew: %s", snapshot.id, error)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
