"""The table of clones."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CloneRow:
    """One clone: its name, the digest of the image that it came from, nanoseconds since 1970."""

    name: str
    image: str
    created: int


def insert(connection: sqlite3.Connection, clone: CloneRow) -> None:
    """Record a clone."""
    values = (clone.name, clone.image, clone.created)
    connection.execute("INSERT INTO clones (name, image, created) VALUES (?, ?, ?)", values)


def every(connection: sqlite3.Connection) -> list[CloneRow]:
    """Return all clones by name."""
    return [CloneRow(**row) for row in connection.execute("SELECT name, image, created FROM clones ORDER BY name")]


def matching(connection: sqlite3.Connection, prefix: str) -> list[CloneRow]:
    """Return the clone of that name alone, or those whose names start so, two at the most."""
    query = """
        SELECT name, image, created FROM clones WHERE substr(name, 1, length(?1)) = ?1
        ORDER BY name <> ?1, name LIMIT 2
    """
    found = [CloneRow(**row) for row in connection.execute(query, (prefix,))]
    return found[:1] if found and found[0].name == prefix else found


def of_image(connection: sqlite3.Connection, digest: str) -> list[str]:
    """Return the names of the clones of an image, sorted."""
    return [
        row["name"] for row in connection.execute("SELECT name FROM clones WHERE image = ? ORDER BY name", (digest,))
    ]


def delete(connection: sqlite3.Connection, name: str) -> None:
    """Delete the record of a clone."""
    connection.execute("DELETE FROM clones WHERE name = ?", (name,))
