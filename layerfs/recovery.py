"""What a process that died or a power cut left unfinished: the next that opens the store finishes or undoes it.

A row marked *creating* is undone; one marked *committing* is finished, and with it the creation of the snapshot that is
to follow it at its key (`SUCCESSOR`). The same serves what a process of its own could not undo after an error.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from layerfs import locks
from layerfs.contract import Kind, Snapshot, SnapshotId, Usage
from layerfs.errors import LayerfsError, NoSpace
from layerfs.holdings import Holdings
from layerfs.kernel.clock import boot_id
from layerfs.metadata import quotas, settings, snapshots
from layerfs.metadata.database import Database
from layerfs.metadata.snapshots import Row, State
from layerfs.quotas import QuotaKeeper

SUCCESSOR = "\x00next"
"""Follows the key of a snapshot that is to take the place of the one that has the key now."""

_log = logging.getLogger(__name__)


class Recovery:
    """Undo and finish the steps of the snapshotter; ``clock`` gives nanoseconds since 1970."""

    def __init__(
        self,
        database: Database,
        holdings: Holdings,
        keeper: QuotaKeeper,
        lock_file: Path,
        owner: locks.Owner,
        clock: Callable[[], int],
    ) -> None:
        self._database = database
        self._holdings = holdings
        self._keeper = keeper
        self._lock_file = lock_file
        self._owner = owner
        self._clock = clock
        self._given_up: set[SnapshotId] = set()

    def run(self) -> None:
        """Finish or undo what is unfinished and nobody's; after another boot also see which bytes and rows are left."""
        boot = boot_id()
        with self._database.read() as connection:
            same_boot = settings.get(connection, "boot") == boot
            unfinished = self._abandoned(snapshots.unfinished(connection)) or quotas.pending(connection)
        if same_boot and not unfinished:
            return
        with locks.locked(self._lock_file, locks.named("recovery"), exclusive=True, what="the recovery of the store"):
            # One by one: finishing the commit of one finishes the creation of the one that follows it.
            postponed: set[str] = set()
            while row := self._next_abandoned(postponed):
                try:
                    self._recover_row(row)
                except NoSpace as error:  # what is full must open, so that somebody can remove something
                    postponed |= {row.name, row.name + SUCCESSOR}
                    _log.warning("left for a later recovery: %s", error)
            if not same_boot:
                self._recover_boot()
                with self._database.write(frees=True) as connection:
                    quotas.doubt(connection)
                    settings.put(connection, "boot", boot)
                self._database.rewrite_record()  # of which a power cut may have taken more, or less
            self._keeper.recover()

    def undo_creation(self, snapshot_id: SnapshotId) -> None:
        """Undo what was not finished."""
        with _or_later():
            self._discard(snapshot_id)

    def undo_creations(self, made: Sequence[Snapshot]) -> None:
        """Undo creations unless they were written as done: an interrupt may come right after that."""
        self._given_up.update(snapshot.id for snapshot in made)
        with _or_later():
            with self._database.read() as connection:
                states = {snapshot.id: snapshots.get(connection, snapshot.id).state for snapshot in made}
            for snapshot_id, state in states.items():
                if state is State.CREATING:
                    self._discard(snapshot_id)

    def undo_commit(self, row: Row) -> None:
        """Take back the intent to commit, unless the commit was written."""
        with _or_later(), self._giving_up(row), self._database.write(frees=True) as connection:
            if snapshots.get(connection, row.id).state is State.COMMITTING:
                snapshots.set_ready(connection, row.id)
                snapshots.set_parent(connection, row.id, row.parent)

    @contextmanager
    def finishing(self, row: Row) -> Iterator[sqlite3.Connection]:
        """Write that a commit took place. Its bytes are frozen: if this fails, recovery has to do it, not undo it."""
        with self._giving_up(row), self._database.write(frees=True) as connection:
            yield connection

    @contextmanager
    def _giving_up(self, row: Row) -> Iterator[None]:
        """Leave a row to the next recovery, of this process too, if the block raises."""
        try:
            yield
        except BaseException:
            self._given_up.add(row.id)
            raise

    def succeed(self, connection: sqlite3.Connection, row: Row, usage: Usage, following: SnapshotId) -> None:
        """Finish a commit and let the following snapshot take over key and labels."""
        labels = snapshots.labels(connection, row.id)
        snapshots.set_committed(connection, row.id, usage, self._clock())
        snapshots.rename(connection, following, row.name)
        snapshots.set_labels(connection, following, labels)
        snapshots.set_ready(connection, following)

    def remove_unnamed(self, snapshot_id: SnapshotId) -> None:
        """Delete bytes that were made in a transaction, unless it took place: an interrupt may come right after."""
        with _or_later():
            with self._database.write(frees=True) as connection:
                if snapshots.is_named(connection, snapshot_id):
                    return
                snapshots.pass_over(connection, snapshot_id)
            self._holdings.remove(snapshot_id)

    def remove_orphans(self, held: set[SnapshotId]) -> tuple[SnapshotId, ...]:
        """Delete the bytes seen before that have no row now.

        A row comes before its bytes, or in the transaction that made these and has ended by now. The ids of what is
        being deleted are not given away again.
        """
        with self._database.write(frees=True) as connection:
            orphans = tuple(sorted(held - snapshots.ids(connection)))
            if orphans:
                snapshots.pass_over(connection, orphans[-1])
        for orphan in orphans:
            self._holdings.remove(orphan)
        return orphans

    def _discard(self, snapshot_id: SnapshotId) -> None:
        """Undo a creation: bytes first, since the row keeps the id from being forgotten."""
        self._database.settle()
        self._holdings.remove(snapshot_id)
        with self._database.write(frees=True) as connection:
            snapshots.delete(connection, snapshot_id)

    def _abandoned(self, rows: list[Row]) -> list[Row]:
        return [row for row in rows if row.id in self._given_up or not self._owner.is_alive(row.owner)]

    def _next_abandoned(self, postponed: set[str]) -> Row | None:
        with self._database.read() as connection:
            abandoned = self._abandoned(snapshots.unfinished(connection))
        return next((row for row in abandoned if row.name not in postponed), None)

    def _recover_row(self, row: Row) -> None:
        _log.warning("recovering snapshot %d (%r), left %s by a process that died", row.id, row.name, row.state)
        if row.state is State.CREATING:
            self._discard(row.id)
        else:
            self._finish_commit(row)

    def _finish_commit(self, row: Row) -> None:
        with self._database.read() as connection:
            following = snapshots.find(connection, row.name + SUCCESSOR)
            snapshot = snapshots.snapshot(connection, row)
            successor = following and snapshots.snapshot(connection, following)
        usage = self._holdings.freeze(snapshot)
        if successor:
            self._holdings.create_anew(successor, repr(row.name))
        with self.finishing(row) as connection:
            if successor:
                self.succeed(connection, row, usage, successor.id)
            else:
                snapshots.set_committed(connection, row.id, usage, self._clock())
        self._given_up.discard(row.id)

    def _recover_boot(self) -> None:
        """Give active snapshots that lost their bytes in a power cut new ones, and delete bytes that lost their row.

        Making one does not wait for the disk. If its directory did not reach it, neither did anything inside: a file
        that was synced would have brought its directories along.
        """
        held = self._holdings.ids()
        with self._database.read() as connection:
            open_rows = snapshots.by_kind(connection, Kind.ACTIVE) + snapshots.by_kind(connection, Kind.VIEW)
            lost = [snapshots.snapshot(connection, row) for row in open_rows if row.id not in held]
        with self._database.write(frees=True) as connection:
            # The row of an id that has bytes may be lost, but not the id.
            snapshots.pass_over(connection, max(held, default=SnapshotId(0)))
        self.remove_orphans(held)
        for snapshot in lost:
            try:
                self._holdings.create(snapshot, f"snapshot {snapshot.id} anew")
            except LayerfsError as error:
                _log.error("snapshot %d lost its bytes and cannot be made anew: %s", snapshot.id, error)


@contextmanager
def _or_later() -> Iterator[None]:
    """Clean up after an error without hiding it; what cannot be undone now, the next recovery undoes."""
    try:
        yield
    except LayerfsError as error:
        _log.warning("left for recovery: %s", error)
