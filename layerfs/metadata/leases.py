"""The tables of leases and of what they name."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Leased(StrEnum):
    """What a lease can name: a blob or an image by its digest, a snapshot by its key or name."""

    BLOB = "blob"
    IMAGE = "image"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """One lease: times in nanoseconds since 1970, and the ``deadline`` in nanoseconds since the boot of this id."""

    id: str
    created: int
    expires: int
    boot: str
    deadline: int


_COLUMNS = "id, created, expires, boot, deadline"


def insert(connection: sqlite3.Connection, row: LeaseRow) -> None:
    """Record a lease of a new id."""
    values = (row.id, row.created, row.expires, row.boot, row.deadline)
    connection.execute(f"INSERT INTO leases ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", values)  # noqa: S608  constant


def renew(connection: sqlite3.Connection, row: LeaseRow) -> None:
    """Give a lease other times to end at."""
    values = (row.expires, row.boot, row.deadline, row.id)
    connection.execute("UPDATE leases SET expires = ?, boot = ?, deadline = ? WHERE id = ?", values)


def every(connection: sqlite3.Connection) -> list[LeaseRow]:
    """Return all leases, the oldest first."""
    query = f"SELECT {_COLUMNS} FROM leases ORDER BY created, id"  # noqa: S608  constant
    return [LeaseRow(**row) for row in connection.execute(query)]


def find(connection: sqlite3.Connection, lease: str) -> LeaseRow | None:
    """Return the lease of an id, or None."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM leases WHERE id = ?", (lease,)).fetchone()  # noqa: S608  constant
    return None if row is None else LeaseRow(**row)


def matching(connection: sqlite3.Connection, prefix: str) -> list[LeaseRow]:
    """Return the lease of that id alone, or those whose ids start so, two at the most."""
    query = f"""
        SELECT {_COLUMNS} FROM leases WHERE substr(id, 1, length(?1)) = ?1 ORDER BY id <> ?1, id LIMIT 2
    """  # noqa: S608  constant
    found = [LeaseRow(**row) for row in connection.execute(query, (prefix,))]
    return found[:1] if found and found[0].id == prefix else found


def delete(connection: sqlite3.Connection, lease: str) -> None:
    """Delete a lease, and what it names from the list of what is leased."""
    connection.execute("DELETE FROM leases WHERE id = ?", (lease,))


def name(connection: sqlite3.Connection, lease: str, kind: Leased, names: Iterable[str]) -> None:
    """Let a lease name things; what it names already is no error."""
    rows = [(lease, kind, each) for each in names]
    connection.executemany("INSERT OR IGNORE INTO leased (lease, kind, name) VALUES (?, ?, ?)", rows)


def named(connection: sqlite3.Connection, lease: str, kind: Leased) -> frozenset[str]:
    """Return what a lease names of one kind."""
    query = "SELECT name FROM leased WHERE lease = ? AND kind = ?"
    return frozenset(row[0] for row in connection.execute(query, (lease, kind)))
