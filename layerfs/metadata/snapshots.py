"""The tables of snapshots and their labels."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from layerfs.contract import NO_QUOTA, Info, Kind, Snapshot, SnapshotId, Usage
from layerfs.metadata import quotas


class State(StrEnum):
    """Whether a snapshot's bytes are all there (see the schema)."""

    CREATING = "creating"
    READY = "ready"
    COMMITTING = "committing"


@dataclass(frozen=True, slots=True)
class Row:
    """One snapshot as the database has it; ``target`` and its labels are what a commit under way will give it."""

    id: SnapshotId
    name: str
    kind: Kind
    parent: SnapshotId | None
    state: State
    owner: int
    target: str | None
    target_labels: Mapping[str, str]
    usage: Usage | None
    created: int
    updated: int


_COLUMNS = "id, name, kind, parent, state, owner, target, target_labels, size, inodes, created, updated"


def find(connection: sqlite3.Connection, name: str) -> Row | None:
    """Return the snapshot of a key or name, in whatever state, or None."""
    found = connection.execute(f"SELECT {_COLUMNS} FROM snapshots WHERE name = ?", (name,)).fetchone()  # noqa: S608  constant
    return None if found is None else _row(found)


def is_there(connection: sqlite3.Connection, name: str) -> bool:
    """Tell whether there is a snapshot of this key or name, with all its bytes."""
    query = "SELECT 1 FROM snapshots WHERE name = ? AND state <> 'creating'"
    return connection.execute(query, (name,)).fetchone() is not None


def is_taken(connection: sqlite3.Connection, name: str) -> bool:
    """Tell whether a snapshot has this key or name, or will have it when its commit ends."""
    query = "SELECT 1 FROM snapshots WHERE name = ?1 OR target = ?1 LIMIT 1"
    return connection.execute(query, (name,)).fetchone() is not None


def get(connection: sqlite3.Connection, snapshot_id: SnapshotId) -> Row:
    """Return the snapshot of an id that is known to be there."""
    return _row(connection.execute(f"SELECT {_COLUMNS} FROM snapshots WHERE id = ?", (snapshot_id,)).fetchone())  # noqa: S608


def unfinished(connection: sqlite3.Connection) -> list[Row]:
    """Return the snapshots whose state is not ready."""
    query = f"SELECT {_COLUMNS} FROM snapshots WHERE state <> 'ready' ORDER BY id"  # noqa: S608  constant
    return [_row(row) for row in connection.execute(query)]


def ready(connection: sqlite3.Connection) -> list[Row]:
    """Return the snapshots with which nothing is under way."""
    query = f"SELECT {_COLUMNS} FROM snapshots WHERE state = 'ready' ORDER BY id"  # noqa: S608  constant
    return [_row(row) for row in connection.execute(query)]


def by_kind(connection: sqlite3.Connection, kind: Kind) -> list[Row]:
    """Return the ready snapshots of a kind."""
    query = f"SELECT {_COLUMNS} FROM snapshots WHERE state = 'ready' AND kind = ?"  # noqa: S608  constant
    return [_row(row) for row in connection.execute(query, (kind,))]


def ids(connection: sqlite3.Connection) -> set[SnapshotId]:
    """Return every id that has a row."""
    return {SnapshotId(row[0]) for row in connection.execute("SELECT id FROM snapshots")}


def children(connection: sqlite3.Connection, snapshot_id: SnapshotId) -> list[str]:
    """Return the keys and names of the snapshots right above one, sorted."""
    query = "SELECT name FROM snapshots WHERE parent = ? ORDER BY name"
    return [row[0] for row in connection.execute(query, (snapshot_id,))]


def ancestors(connection: sqlite3.Connection, parent: SnapshotId | None) -> tuple[SnapshotId, ...]:
    """Return ``parent`` and all below it, the nearest first."""
    if parent is None:
        return ()
    query = """
        WITH RECURSIVE chain (id, parent, depth) AS (
            SELECT id, parent, 0 FROM snapshots WHERE id = ?
            UNION ALL
            SELECT snapshots.id, snapshots.parent, depth + 1 FROM snapshots JOIN chain ON snapshots.id = chain.parent
        )
        SELECT id FROM chain ORDER BY depth
    """
    return tuple(SnapshotId(row[0]) for row in connection.execute(query, (parent,)))


def ancestor_names(connection: sqlite3.Connection, name: str) -> list[str]:
    """Return the names of the committed snapshots below one, the nearest first."""
    row = find(connection, name)
    return [get(connection, found).name for found in ancestors(connection, row.parent)] if row else []


def descendant_names(connection: sqlite3.Connection, snapshot_id: SnapshotId) -> list[str]:
    """Return the names of a snapshot and of all that stand on it, each after its parent."""
    query = """
        WITH RECURSIVE above (id, name, depth) AS (
            SELECT id, name, 0 FROM snapshots WHERE id = ?
            UNION ALL
            SELECT snapshots.id, snapshots.name, depth + 1 FROM snapshots JOIN above ON snapshots.parent = above.id
        )
        SELECT name FROM above ORDER BY depth, name
    """
    return [row[0] for row in connection.execute(query, (snapshot_id,))]


def snapshot(connection: sqlite3.Connection, row: Row) -> Snapshot:
    """Return what the driver is told of a row."""
    quota = quotas.get(connection, row.id) if row.kind is Kind.ACTIVE else NO_QUOTA
    return Snapshot(row.id, row.kind, ancestors(connection, row.parent), quota)


def insert(
    connection: sqlite3.Connection,
    name: str,
    kind: Kind,
    parent: SnapshotId | None,
    *,
    state: State = State.CREATING,
    owner: int,
    now: int,
) -> SnapshotId:
    """Reserve an id for a snapshot whose bytes are still to be made, by the end of this transaction if it is ready."""
    done = connection.execute(
        "INSERT INTO snapshots (name, kind, parent, state, owner, created, updated) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (name, kind, parent, state, owner, now, now),
    )
    return SnapshotId(int(done.lastrowid or 0))


def pass_over(connection: sqlite3.Connection, snapshot_id: SnapshotId) -> None:
    """Never give away an id up to this one."""
    query = "SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'"
    last = connection.execute(query).fetchone()
    if last is None:
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('snapshots', ?)", (snapshot_id,))
    elif last[0] < snapshot_id:
        connection.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'snapshots'", (snapshot_id,))


def is_named(connection: sqlite3.Connection, snapshot_id: SnapshotId) -> bool:
    """Tell whether an id has a row."""
    return connection.execute("SELECT 1 FROM snapshots WHERE id = ?", (snapshot_id,)).fetchone() is not None


def set_ready(connection: sqlite3.Connection, snapshot_id: SnapshotId) -> None:
    """Record that nothing is under way with a snapshot: its bytes are there."""
    query = "UPDATE snapshots SET state = 'ready', target = NULL, target_labels = NULL WHERE id = ?"
    connection.execute(query, (snapshot_id,))


def set_committing(
    connection: sqlite3.Connection, snapshot_id: SnapshotId, target: str, labels: Mapping[str, str], owner: int
) -> None:
    """Record the intent to commit a snapshot under the name ``target`` with ``labels``."""
    query = "UPDATE snapshots SET state = 'committing', target = ?, target_labels = ?, owner = ? WHERE id = ?"
    connection.execute(query, (target, json.dumps(dict(labels)), owner, snapshot_id))


def set_committed(connection: sqlite3.Connection, snapshot_id: SnapshotId, usage: Usage | None, now: int) -> None:
    """Turn an active snapshot into the committed one that the intent says; without one it keeps its name."""
    row = get(connection, snapshot_id)
    connection.execute(
        "UPDATE snapshots SET name = coalesce(target, name), kind = 'committed', created = ?, updated = ? WHERE id = ?",
        (now, now, snapshot_id),
    )
    if usage is not None:
        set_usage(connection, snapshot_id, usage)
    set_labels(connection, snapshot_id, row.target_labels)
    quotas.delete(connection, snapshot_id)
    set_ready(connection, snapshot_id)


def set_committed_on(
    connection: sqlite3.Connection,
    snapshot_id: SnapshotId,
    parent: SnapshotId | None,
    labels: Mapping[str, str],
    now: int,
) -> None:
    """Turn a new snapshot without a parent and without labels into a committed one with both."""
    query = (
        "UPDATE snapshots SET parent = ?, kind = 'committed', state = 'ready', created = ?, updated = ? WHERE id = ?"
    )
    connection.execute(query, (parent, now, now, snapshot_id))
    add_labels(connection, snapshot_id, labels)


def set_committed_as(
    connection: sqlite3.Connection,
    snapshot_id: SnapshotId,
    name: str,
    labels: Mapping[str, str],
    usage: Usage,
    now: int,
) -> None:
    """Turn an active snapshot into a committed one under a name, with labels of its own."""
    query = """
        UPDATE snapshots SET name = ?, kind = 'committed', size = ?, inodes = ?, created = ?, updated = ? WHERE id = ?
    """
    connection.execute(query, (name, usage.size, usage.inodes, now, now, snapshot_id))
    set_labels(connection, snapshot_id, labels)
    quotas.delete(connection, snapshot_id)


def set_usage(connection: sqlite3.Connection, snapshot_id: SnapshotId, usage: Usage) -> None:
    """Record what a snapshot takes, which does not change any more."""
    values = (usage.size, usage.inodes, snapshot_id)
    connection.execute("UPDATE snapshots SET size = ?, inodes = ? WHERE id = ?", values)


def set_parent(connection: sqlite3.Connection, snapshot_id: SnapshotId, parent: SnapshotId | None) -> None:
    """Give a snapshot another parent."""
    connection.execute("UPDATE snapshots SET parent = ? WHERE id = ?", (parent, snapshot_id))


def hand_over(connection: sqlite3.Connection, old: SnapshotId, new: SnapshotId) -> None:
    """Make all that stands right on one snapshot stand on another."""
    connection.execute("UPDATE snapshots SET parent = ? WHERE parent = ?", (new, old))


def rename(connection: sqlite3.Connection, snapshot_id: SnapshotId, name: str) -> None:
    """Give a snapshot another key."""
    connection.execute("UPDATE snapshots SET name = ? WHERE id = ?", (name, snapshot_id))


def rename_committed(connection: sqlite3.Connection, old: str, new: str) -> None:
    """Give a committed snapshot another name, by which leases know it too."""
    connection.execute("UPDATE snapshots SET name = ? WHERE name = ?", (new, old))
    connection.execute("UPDATE leased SET name = ? WHERE kind = 'snapshot' AND name = ?", (new, old))


def set_times(connection: sqlite3.Connection, snapshot_id: SnapshotId, created: int, updated: int) -> None:
    """Say when a snapshot was made and changed, in nanoseconds since 1970."""
    connection.execute("UPDATE snapshots SET created = ?, updated = ? WHERE id = ?", (created, updated, snapshot_id))


def delete(connection: sqlite3.Connection, snapshot_id: SnapshotId) -> None:
    """Delete a row and its labels."""
    connection.execute("DELETE FROM snapshots WHERE id = ?", (snapshot_id,))


def labels(connection: sqlite3.Connection, snapshot_id: SnapshotId) -> dict[str, str]:
    """Return the labels of a snapshot, sorted by key."""
    query = "SELECT key, value FROM labels WHERE snapshot = ? ORDER BY key"
    return {row["key"]: row["value"] for row in connection.execute(query, (snapshot_id,))}


def with_label(connection: sqlite3.Connection, key: str) -> set[SnapshotId]:
    """Return the snapshots that have a label, whatever its value."""
    return {SnapshotId(row[0]) for row in connection.execute("SELECT snapshot FROM labels WHERE key = ?", (key,))}


def set_labels(connection: sqlite3.Connection, snapshot_id: SnapshotId, values: Mapping[str, str]) -> None:
    """Replace the labels of a snapshot."""
    connection.execute("DELETE FROM labels WHERE snapshot = ?", (snapshot_id,))
    add_labels(connection, snapshot_id, values)


def add_labels(connection: sqlite3.Connection, snapshot_id: SnapshotId, values: Mapping[str, str]) -> None:
    """Give labels to a snapshot that has none."""
    rows = [(snapshot_id, key, value) for key, value in values.items()]
    connection.executemany("INSERT INTO labels (snapshot, key, value) VALUES (?, ?, ?)", rows)


def touch(connection: sqlite3.Connection, snapshot_id: SnapshotId, now: int) -> None:
    """Record that a snapshot was updated."""
    connection.execute("UPDATE snapshots SET updated = ? WHERE id = ?", (now, snapshot_id))


def info(connection: sqlite3.Connection, row: Row) -> Info:
    """Return what a caller is told of a row."""
    parent = "" if row.parent is None else get(connection, row.parent).name
    return Info(row.name, row.kind, parent, moment(row.created), moment(row.updated), labels(connection, row.id))


def names(connection: sqlite3.Connection, prefix: str) -> list[str]:
    """Return the names of the ready rows that start so, sorted, by the index that the names have."""
    query = """
        SELECT name FROM snapshots WHERE name >= ?1 AND name < ?1 || char(0x10FFFF) AND state = 'ready' ORDER BY name
    """
    return [name for (name,) in connection.execute(query, (prefix,))]


def infos(connection: sqlite3.Connection, prefix: str = "") -> Iterator[Info]:
    """Return what a caller is told of every ready row whose name starts so, in three queries however many they are."""
    labelled: dict[int, dict[str, str]] = {}
    for row in connection.execute("SELECT snapshot, key, value FROM labels ORDER BY snapshot, key"):
        snapshot_id, key, value = row
        labelled.setdefault(snapshot_id, {})[key] = value
    query = """
        SELECT child.id, child.name, child.kind, coalesce(parent.name, '') AS parent, child.created, child.updated
        FROM snapshots AS child LEFT JOIN snapshots AS parent ON parent.id = child.parent
        WHERE child.state = 'ready' AND substr(child.name, 1, length(?1)) = ?1 ORDER BY child.name
    """
    for id_, name, kind, parent, created, updated in connection.execute(query, (prefix,)):
        made = moment(created)
        changed = made if updated == created else moment(updated)
        yield Info(name, _KINDS[kind], parent, made, changed, labelled.get(id_, {}))


_KINDS = {kind.value: kind for kind in Kind}


def moment(nanoseconds: int) -> datetime:
    """Turn nanoseconds since 1970 into a time in UTC."""
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)


def _row(row: sqlite3.Row) -> Row:
    usage = None if row["size"] is None else Usage(row["size"], row["inodes"])
    parent = None if row["parent"] is None else SnapshotId(row["parent"])
    return Row(
        SnapshotId(row["id"]),
        row["name"],
        Kind(row["kind"]),
        parent,
        State(row["state"]),
        row["owner"],
        row["target"],
        json.loads(row["target_labels"] or "{}"),
        usage,
        row["created"],
        row["updated"],
    )
