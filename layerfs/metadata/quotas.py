"""The table of quotas: what active snapshots may take, and whether the driver has been told."""

from __future__ import annotations

import sqlite3

from layerfs.contract import NO_QUOTA, Quota, SnapshotId


def get(connection: sqlite3.Connection, snapshot_id: SnapshotId) -> Quota:
    """Return the quota of a snapshot."""
    row = connection.execute("SELECT size, inodes FROM quotas WHERE snapshot = ?", (snapshot_id,)).fetchone()
    return NO_QUOTA if row is None else Quota(row["size"], row["inodes"])


def every(connection: sqlite3.Connection) -> dict[SnapshotId, Quota]:
    """Return the quotas that there are."""
    query = "SELECT snapshot, size, inodes FROM quotas WHERE size IS NOT NULL OR inodes IS NOT NULL"
    return {SnapshotId(row["snapshot"]): Quota(row["size"], row["inodes"]) for row in connection.execute(query)}


def put(connection: sqlite3.Connection, snapshot_id: SnapshotId, quota: Quota, *, applied: bool) -> None:
    """Write the quota of an active snapshot down; nothing where it was committed or removed meanwhile.

    None at all needs a row only until the driver has lifted the one before.
    """
    if applied and not quota:
        delete(connection, snapshot_id)
        return
    query = """
        INSERT OR REPLACE INTO quotas (snapshot, size, inodes, applied)
        SELECT id, ?, ?, ? FROM snapshots WHERE id = ? AND kind = 'active'
    """
    connection.execute(query, (quota.size, quota.inodes, applied, snapshot_id))


def pending(connection: sqlite3.Connection) -> list[SnapshotId]:
    """Return the snapshots of whose quotas the driver may not have been told."""
    query = "SELECT snapshot FROM quotas WHERE applied = 0 ORDER BY snapshot"
    return [SnapshotId(row["snapshot"]) for row in connection.execute(query)]


def is_pending(connection: sqlite3.Connection, snapshot_id: SnapshotId) -> bool:
    """Tell whether the driver may not have been told of a snapshot's quota."""
    query = "SELECT 1 FROM quotas WHERE snapshot = ? AND applied = 0"
    return connection.execute(query, (snapshot_id,)).fetchone() is not None


def doubt(connection: sqlite3.Connection) -> None:
    """Have the driver told of every quota again."""
    connection.execute("UPDATE quotas SET applied = 0")


def delete(connection: sqlite3.Connection, snapshot_id: SnapshotId) -> None:
    """Forget the quota of a snapshot."""
    connection.execute("DELETE FROM quotas WHERE snapshot = ?", (snapshot_id,))
