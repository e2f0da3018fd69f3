"""The table of seals: what committed snapshots held when they were made, and when all of it was last found whole."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seal:
    """What a snapshot held: of a layer that was unpacked the entries and bytes of its tar, and its DiffID.

    Of any other snapshot they are the files, the bytes in the regular ones, and the digest of its inventory.
    ``checked`` is in nanoseconds since 1970.
    """

    entries: int
    size: int
    digest: str
    checked: int | None = None


UNSEALED = Seal(0, 0, "")
"""Of a snapshot that was carried here from another store, until all of it is read for the first time."""


def put(connection: sqlite3.Connection, name: str, seal: Seal) -> None:
    """Seal a snapshot that is there, or seal it anew."""
    query = """
        INSERT OR REPLACE INTO seals (snapshot, entries, size, digest, checked)
        SELECT id, ?, ?, ?, ? FROM snapshots WHERE name = ?
    """
    connection.execute(query, (seal.entries, seal.size, seal.digest, seal.checked, name))


def every(connection: sqlite3.Connection) -> dict[str, Seal]:
    """Return all seals by the names of their snapshots."""
    query = "SELECT name, entries, seals.size, digest, checked FROM seals JOIN snapshots ON snapshots.id = snapshot"
    return {row[0]: Seal(*row[1:]) for row in connection.execute(query)}
