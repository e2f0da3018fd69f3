"""The table of settings: what the store says of itself."""

from __future__ import annotations

import sqlite3


def get(connection: sqlite3.Connection, key: str) -> str | None:
    """Return a setting, or None."""
    row = connection.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row["value"])


def put(connection: sqlite3.Connection, key: str, value: str) -> None:
    """Write a setting."""
    connection.execute("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", (key, value))


def below(connection: sqlite3.Connection, prefix: str) -> dict[str, str]:
    """Return the settings whose keys start with ``prefix``, by the rest of the key."""
    query = "SELECT key, value FROM settings WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key"
    return {row["key"].removeprefix(prefix): row["value"] for row in connection.execute(query, (prefix,))}
