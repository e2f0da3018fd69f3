"""The quotas of active snapshots: written down first, then told to the driver.

What a crash leaves between the two, whoever opens the store next tells the driver; after another boot, of all of them.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from pathlib import Path

from layerfs import locks, rules
from layerfs.contract import Quota, Snapshot, SnapshotId, Usage
from layerfs.errors import LayerfsError
from layerfs.holdings import Holdings
from layerfs.metadata import quotas, snapshots
from layerfs.metadata.database import Database

_log = logging.getLogger(__name__)


class QuotaKeeper:
    """Set and read the quotas of one store's snapshots; ``lock_file`` is the file of `layerfs.locks`."""

    def __init__(self, database: Database, holdings: Holdings, lock_file: Path) -> None:
        self._database = database
        self._holdings = holdings
        self._lock_file = lock_file

    def get(self, key: str) -> Quota:
        """Return the quota of a snapshot."""
        return self._snapshot(key).quota

    def usage(self, key: str) -> Usage:
        """Return what counts against the quota of an active snapshot now; raise `Unsupported`."""
        rules.check_quotas(self._holdings.driver)
        return self._holdings.quota_usage(self._snapshot(key), repr(key))

    def set(self, key: str, quota: Quota) -> None:
        """Hold an active snapshot to a quota; where the driver refuses, all is as it was. Raise `Unsupported`, `Busy`.

        Setting the one that it has tells the driver again.
        """
        rules.check_quota(self._holdings.driver, quota)
        own = self._snapshot(key).id
        with self._holding(own):
            with self._database.write() as connection:
                row = rules.committable(connection, key)
                before = quotas.get(connection, row.id)
                quotas.put(connection, row.id, quota, applied=False)
            try:
                self._tell(row.id)
            except BaseException:
                self._go_back(row.id, before)
                raise

    def recover(self) -> None:
        """Tell the driver of the quotas that it may not know."""
        with self._database.read() as connection:
            pending = quotas.pending(connection)
        for snapshot_id in pending:
            try:
                with self._holding(snapshot_id):  # by somebody who is setting it, perhaps
                    self._tell(snapshot_id)
            except LayerfsError as error:
                _log.warning("the quota of snapshot %d does not hold: %s", snapshot_id, error)

    def _tell(self, snapshot_id: SnapshotId) -> None:
        with self._database.read() as connection:
            if not quotas.is_pending(connection, snapshot_id):
                return
            row = snapshots.get(connection, snapshot_id)
            snapshot = snapshots.snapshot(connection, row)
        self._holdings.set_quota(snapshot, repr(row.name))
        with self._database.write() as connection:
            quotas.put(connection, snapshot_id, snapshot.quota, applied=True)

    def _go_back(self, snapshot_id: SnapshotId, before: Quota) -> None:
        """Write down what was before, and tell the driver; what it does not do now, the next recovery tells it."""
        with self._database.write() as connection:
            quotas.put(connection, snapshot_id, before, applied=False)
        try:
            self._tell(snapshot_id)
        except LayerfsError as error:
            _log.warning("left for recovery: %s", error)

    def _snapshot(self, key: str) -> Snapshot:
        with self._database.read() as connection:
            return snapshots.snapshot(connection, rules.present(connection, key))

    def _holding(self, snapshot_id: SnapshotId) -> AbstractContextManager[None]:
        place, what = locks.named(f"quota/{snapshot_id}"), f"the quota of snapshot {snapshot_id}"
        return locks.locked(self._lock_file, place, exclusive=True, what=what)
