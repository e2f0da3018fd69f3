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

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from layerfs import locks, rules
from layerfs.contract import NO_QUOTA, Damage, Driver, Info, Kind, Mount, Quota, Snapshot, SnapshotId, Usage
from layerfs.errors import Busy, FailedPrecondition, InvalidArgument, NoSpace, Unsupported
from layerfs.holdings import Holdings, LeftBytes
from layerfs.kernel import mounting
from layerfs.metadata import quotas, snapshots
from layerfs.metadata.database import Database
from layerfs.metadata.snapshots import Row, State
from layerfs.quotas import QuotaKeeper
from layerfs.recovery import SUCCESSOR, Recovery

Within = Callable[[sqlite3.Connection], None]
"""Further work of a caller inside a transaction of the snapshotter's."""


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
        self.holdings = Holdings(driver, lock_file)
        self._database = database
        self._clock = clock
        self._owner = locks.Owner(lock_file)
        self.quotas = QuotaKeeper(database, self.holdings, lock_file)
        self._recovery = Recovery(database, self.holdings, self.quotas, lock_file, self._owner, clock)
        self.recover()

    @property
    def driver(self) -> Driver:
        """Return the driver that keeps the bytes."""
        return self.holdings.driver

    @property
    def owner(self) -> int:
        """Return the token of this process, by which others can tell whether it still runs (`layerfs.locks`)."""
        return self._owner.token

    def is_alive(self, owner: int) -> bool:
        """Tell whether the process of a token still runs."""
        return self._owner.is_alive(owner)

    def prepare(
        self,
        key: str,
        parent: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        quota: Quota = NO_QUOTA,
        within: Within | None = None,
    ) -> tuple[Mount, ...]:
        """Make an active (writable) snapshot ``key`` on top of ``parent`` and return its mounts.

        ``within`` is called in the transaction that makes the snapshot visible: both take place, or neither.
        Raise `AlreadyExists` for a key in use, `NotFound` for a missing parent, `InvalidArgument` for one that is not
        committed, `Unsupported` where the chain would be longer than the driver can mount or a quota cannot be held.
        """
        rules.check_quota(self.driver, quota)
        return self._make(Kind.ACTIVE, key, parent, labels, within, quota)

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
        return self.holdings.mounts(snapshot, repr(key))

    def commit(
        self, name: str, key: str, *, labels: Mapping[str, str] | None = None, parent: str | None = None
    ) -> None:
        """Turn the active snapshot ``key`` into the committed one ``name``; its own labels do not carry over.

        ``parent`` gives one that was prepared without a parent its parent now, where the driver's traits allow it.
        Raise `AlreadyExists` for a name in use, `FailedPrecondition` for a view or a committed snapshot.
        """
        labels = rules.checked_labels(labels or {})
        if self.driver.traits.light and parent is None:
            self._commit_at_once(name, key, labels)
            return
        with self._database.write(durable=False) as connection:
            row = rules.committable(connection, key)
            if parent is not None:
                rules.rebase(connection, row, parent, self.driver)
            snapshot = self._intend_commit(connection, row, name, labels)
        try:
            usage = self.holdings.freeze(snapshot)
        except BaseException:
            self._recovery.undo_commit(row)
            raise
        with self._recovery.finishing(row) as connection:
            snapshots.set_committed(connection, row.id, usage, self._clock())

    @contextmanager
    def together(self, plans: Sequence[Planned], *, within: Within | None = None) -> Iterator[tuple[Snapshot, ...]]:
        """Give empty snapshots that the block fills; when it ends they are committed, all in one step.

        Each gets its parent then, which may be one that comes before it; the driver's traits must allow that (rebase).
        Nobody else sees them until then. ``within`` is called in the transaction that commits them. If the block
        raises, and after a crash, none of them was ever there.
        Raise `AlreadyExists` for a name in use.
        """
        self.recover()
        with self._database.write(durable=False) as connection:
            made = tuple(self._reserve(connection, Kind.ACTIVE, plan.name, None) for plan in plans)
        try:
            for snapshot, plan in zip(made, plans, strict=True):
                self.holdings.create(snapshot, repr(plan.name))
            yield made
            self.holdings.freeze_all(self._stacked(plans, made))
            with self._database.write() as connection:
                for plan, snapshot in zip(plans, made, strict=True):
                    parent = rules.parent(connection, plan.parent)
                    labels = rules.checked_labels(plan.labels)
                    snapshots.set_committed_on(connection, snapshot.id, parent, labels, self._clock())
                if within:
                    within(connection)
        except BaseException:
            self._recovery.undo_creations(made)
            raise

    def _stacked(self, plans: Sequence[Planned], made: Sequence[Snapshot]) -> list[Snapshot]:
        """Return new snapshots with the parents that they are about to get: what is kept of a stack is of all of it."""
        chains: dict[str, tuple[SnapshotId, ...]] = {}
        with self._database.read() as connection:
            for plan, snapshot in zip(plans, made, strict=True):
                below = chains.get(plan.parent)
                if below is None:
                    below = snapshots.ancestors(connection, rules.parent(connection, plan.parent))
                chains[plan.name] = (snapshot.id, *below)
        return [replace(each, parents=chains[plan.name][1:]) for plan, each in zip(plans, made, strict=True)]

    def empty(self, snapshot: Snapshot) -> None:
        """Throw away what was written to a snapshot of `together`."""
        self.holdings.create_anew(snapshot, f"snapshot {snapshot.id}")

    def checkpoint(self, name: str, key: str) -> None:
        """Commit the active snapshot ``key`` as ``name`` and leave a fresh active one on top of it at ``key``.

        The key is never without a snapshot: both take place, or neither. Errors as for `commit`, and `Busy` while it
        is mounted: the mount would go on writing to what is committed.
        """
        self._check_unmounted(key)
        with self._database.write(durable=False) as connection:
            row = rules.committable(connection, key)
            snapshot = self._intend_commit(connection, row, name, {})
            following = self._reserve(connection, Kind.ACTIVE, key + SUCCESSOR, row.id, snapshot.quota)
        try:
            self.holdings.create(following, repr(key))
            usage = self.holdings.freeze(snapshot)
        except BaseException:
            self._recovery.undo_creation(following.id)
            self._recovery.undo_commit(row)
            raise
        with self._recovery.finishing(row) as connection:
            self._recovery.succeed(connection, row, usage, following.id)

    def reset(self, key: str, parent: str) -> None:
        """Throw away what the active snapshot ``key`` holds and start it anew on ``parent``, or leave it as it was.

        Raise `Busy` while it is mounted, else as `prepare`.
        """
        self._check_unmounted(key)
        with self._database.write(durable=False) as connection:
            row = rules.committable(connection, key)
            base = rules.parent(connection, parent)
            following = self._reserve(connection, Kind.ACTIVE, key + SUCCESSOR, base, quotas.get(connection, row.id))
            labels = snapshots.labels(connection, row.id)
        try:
            self.holdings.create(following, repr(key))
            with self._database.write() as connection:
                rules.same(connection, key, row)
                snapshots.delete(connection, row.id)
                snapshots.rename(connection, following.id, key)
                snapshots.set_labels(connection, following.id, labels)
                snapshots.set_ready(connection, following.id)
        except BaseException:
            self._recovery.undo_creation(following.id)
            raise
        self.holdings.remove(row.id)

    def remove(self, key: str, *, within: Within | None = None) -> None:
        """Remove a snapshot; raise `FailedPrecondition` that lists the children of one that has some.

        ``within`` is called in the transaction that removes it.
        """
        with self._database.write(frees=True) as connection:
            row = rules.ready(connection, key)
            children = snapshots.children(connection, row.id)
            if children:
                shown = ", ".join(children[:5]) + (f" and {len(children) - 5} more" if len(children) > 5 else "")  # noqa: PLR2004
                raise FailedPrecondition(f"cannot remove {key!r}: {shown} stand on it", hint="remove these first")
            snapshots.delete(connection, row.id)
            if within:
                within(connection)
        self.holdings.remove(row.id)

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
        from layerfs.filters import compile_filters  # noqa: PLC0415  a parser that only those who list need

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
        usage = self.holdings.usage(snapshot, repr(key))
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

    def check(self) -> list[tuple[str, Damage]]:
        """Return the snapshots of which the bytes are gone or broken, as far as the driver knows without reading them.

        The name is "" for what concerns all of them.
        """
        with self._database.read() as connection:
            wanted = [snapshots.snapshot(connection, row) for row in snapshots.ready(connection)]
        damages = self.holdings.check(wanted)
        with self._database.read() as connection:  # what was removed meanwhile is not damaged
            names = {row.id: row.name for row in snapshots.ready(connection)}
        return [
            (names[damage.id] if damage.id is not None else "", damage)
            for damage in damages
            if damage.id is None or damage.id in names
        ]

    def cleanup(self) -> tuple[SnapshotId, ...]:
        """Delete the bytes that no row names, and return their ids."""
        self.recover()
        return self._recovery.remove_orphans(self.holdings.ids())

    def recover(self) -> None:
        """Finish or undo what dead processes left, and after a power cut what it took; called when the store opens."""
        self._recovery.run()

    def close(self) -> None:
        """Release the driver; doing it twice is no error. The database stays its owner's to close."""
        self.driver.close()
        self._owner.close()

    def _make(
        self,
        kind: Kind,
        key: str,
        parent: str,
        labels: Mapping[str, str] | None,
        within: Within | None,
        quota: Quota = NO_QUOTA,
    ) -> tuple[Mount, ...]:
        labels = rules.checked_labels(labels or {})
        rules.check_name(key)
        if self.driver.traits.light:
            try:
                return self._make_at_once(kind, key, parent, labels, within, quota)
            except LeftBytes:  # its id has been passed over
                return self._make_at_once(kind, key, parent, labels, within, quota)
        with self._database.write(durable=False) as connection:
            snapshot = self._reserve(connection, kind, key, rules.parent(connection, parent), quota)
            snapshots.add_labels(connection, snapshot.id, labels)
        try:
            self.holdings.create(snapshot, repr(key))
            mounts = self.holdings.mounts(snapshot, repr(key))
            with self._database.write() as connection:
                snapshots.set_ready(connection, snapshot.id)
                if within:
                    within(connection)
        except BaseException:
            self._recovery.undo_creation(snapshot.id)
            raise
        return mounts

    def _make_at_once(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str], within: Within | None, quota: Quota
    ) -> tuple[Mount, ...]:
        """Make a snapshot and its bytes in one transaction, which spares the second where bytes take no time.

        Nobody takes the bytes for an orphan's meanwhile: who looks for these does so in a transaction (`Recovery`).
        Bytes that are there already are not deleted in it, for the commit that failed to name them may still come back
        by a crash: after a transaction that passes over their id it cannot.
        """
        made: Snapshot | None = None
        try:
            with self._database.write() as connection:
                made = self._reserve(connection, kind, key, rules.parent(connection, parent), quota, State.READY)
                snapshots.add_labels(connection, made.id, labels)
                self.holdings.create_first(made, repr(key))
                mounts = self.holdings.mounts(made, repr(key))
                if within:
                    within(connection)
        except BaseException:
            if made is not None:
                self._recovery.remove_unnamed(made.id)
            raise
        return mounts

    def _commit_at_once(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        """Commit without a word before: what is frozen and then not written down is as it was."""
        rules.check_name(name)
        with self._database.read() as connection:
            row = rules.committable(connection, key)
            rules.check_free(connection, name)
            snapshot = snapshots.snapshot(connection, row)
        usage = self.holdings.freeze(snapshot)
        with self._database.write() as connection:
            rules.same(connection, key, row)
            rules.check_free(connection, name)
            snapshots.set_committed_as(connection, row.id, name, labels, usage, self._clock())

    def _reserve(
        self,
        connection: sqlite3.Connection,
        kind: Kind,
        key: str,
        parent: SnapshotId | None,
        quota: Quota = NO_QUOTA,
        state: State = State.CREATING,
    ) -> Snapshot:
        rules.check_free(connection, key)
        parents = snapshots.ancestors(connection, parent)
        limit = self.driver.traits.max_layers
        if limit is not None and len(parents) > limit:
            raise Unsupported(
                f"{key!r} would have {len(parents)} layers below it; the driver {self.driver.name} mounts {limit}",
                hint="commit the clone to an image of fewer layers, or use a driver without this limit (btrfs, copy)",
            )
        new = snapshots.insert(connection, key, kind, parent, state=state, owner=self._owner.token, now=self._clock())
        if quota:
            quotas.put(connection, new, quota, applied=True)  # by `Driver.create`
        return Snapshot(new, kind, parents, quota)

    def _intend_commit(
        self, connection: sqlite3.Connection, row: Row, name: str, labels: Mapping[str, str]
    ) -> Snapshot:
        rules.check_name(name)
        rules.check_free(connection, name)
        snapshots.set_committing(connection, row.id, name, labels, self._owner.token)
        return snapshots.snapshot(connection, snapshots.get(connection, row.id))

    def _check_unmounted(self, key: str) -> None:
        used = mounting.users(self.mounts(key))
        if used:
            raise Busy(f"{key!r} is mounted at {used[0].path}", hint="unmount it first")
