"""The *record*: a second copy of what only the database knows, from which a lost or damaged one is made again.

``<store>/meta.record`` has a line for each transaction: a checksum, then the rows that it wrote or deleted as JSON. The
first line holds all rows. Nothing is synced; after another boot the file is written anew. Rows that go are written down
before the transaction ends, and those that come after it: so whenever a process dies, a row that is in the record is
in the database, or was taken from it behind its back. Seals, leases and the lists of layers are not in it: the first
are made again, and the last are in the manifests.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote
from zlib import crc32

NAME = "meta.record"
_TABLES: Mapping[str, tuple[str, ...]] = {
    "settings": ("key",),
    "images": ("digest",),
    "snapshots": ("id",),
    "labels": ("snapshot", "key"),
    "tags": ("name",),
    "clones": ("name",),
    "quotas": ("snapshot",),
}
"""The tables that are recorded, each with its key, those first that others refer to."""
_PASSING = "boot"
"""The setting that is none of the store's own."""
_LARGEST = 8 << 20
"""Bytes beyond which the file is written anew: many thousand transactions."""

_GONE = ",0]"
"""Ends the change of a row that was deleted."""

Value = None | int | float | str
Row = Mapping[str, Value]
Key = tuple[Value, ...]
Change = str
"""One row that was written or deleted, as JSON: its table, the row, and 1 if it is there now or else 0."""


# -- recording ---------------------------------------------------------------------------------------------------------


def install(connection: sqlite3.Connection, changed: Callable[[Change], None]) -> None:
    """Let a connection tell of each row that it writes or deletes, by triggers that only it has."""
    connection.create_function("layerfs_changed", 1, changed)
    for table in _TABLES:
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        for event, which, there in (("INSERT", "NEW", 1), ("UPDATE", "NEW", 1), ("DELETE", "OLD", 0)):
            pairs = ", ".join(f"'{column}', {which}.{column}" for column in columns)
            told = f"json_array('{table}', json_object({pairs}), {there})"
            passing = f"WHEN {which}.key <> '{_PASSING}'" if table == "settings" else ""
            connection.execute(
                f"CREATE TEMP TRIGGER IF NOT EXISTS recorded_{table}_{event} AFTER {event} ON main.{table} {passing} "
                f"BEGIN SELECT layerfs_changed({told}); END"
            )


def split(changes: Sequence[Change]) -> tuple[Sequence[Change], Sequence[Change]]:
    """Return the rows that a transaction deleted, and those that it wrote; of each only what it came to."""
    gone = [change for change in changes if change.endswith(_GONE)]
    if len(gone) in {0, len(changes)}:
        return gone, () if gone else changes
    last: dict[tuple[str, Key], Change] = {}
    for change in changes:
        table, row, _ = json.loads(change)
        last[table, tuple(row[name] for name in _TABLES[table])] = change
    left = last.values()
    return [one for one in left if one.endswith(_GONE)], [one for one in left if not one.endswith(_GONE)]


def append(path: Path, changes: Sequence[Change]) -> bool:
    """Write down what a transaction changed; False where there is no file yet, or it has become too long.

    Raise ``OSError`` where there is room for a part of it only, as on a full disk: the rest could come after the line
    of another process, and both would be lost.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        line = _line(f"[{','.join(changes)}]")
        if os.write(fd, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
        return os.fstat(fd).st_size <= _LARGEST
    finally:
        os.close(fd)


def rewrite(path: Path, connection: sqlite3.Connection) -> None:
    """Write the file anew with all rows, as a transaction sees them."""
    changes = [[table, row, 1] for table, row in _rows(connection)]
    new = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            data = memoryview(_line(json.dumps(changes, separators=(",", ":"))))
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[str, dict[str, Value]]]:
    for table in _TABLES:
        for row in connection.execute(f"SELECT * FROM {table}"):  # noqa: S608  constant
            found = dict(row)
            if not _is_passing(table, found):
                yield table, found


def _is_passing(table: str, row: Row) -> bool:
    return table == "settings" and row["key"] == _PASSING


def _line(document: str) -> bytes:
    text = document.encode()
    return b"%08x %s\n" % (crc32(text), text)


# -- reading -----------------------------------------------------------------------------------------------------------


Rows = dict[str, dict[Key, Row]]
"""The rows of each table by their keys, in the order of the tables."""


def read(path: Path) -> Rows | None:
    """Read a record as far as it can be read; None where there is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    found = nothing()
    for line in data.splitlines(keepends=True):
        for table, row, there in _parsed(line):
            key = tuple(row[name] for name in _TABLES[table])
            if there:
                found[table][key] = row
            else:
                found[table].pop(key, None)
    return found


def _parsed(line: bytes) -> list[tuple[str, dict[str, Value], bool]]:
    """Read one line; one that is cut off or damaged says nothing."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % crc32(text) or not line.endswith(b"\n"):
        return []
    try:
        changes = [(str(table), dict(row), bool(there)) for table, row, there in json.loads(text)]
    except (ValueError, TypeError):
        return []
    return [change for change in changes if all(name in change[1] for name in _TABLES.get(change[0], ("",)))]


def title(table: str, row: Row) -> str:
    """Return what people call the thing that a row is about."""
    return str(row["name"] if "name" in row else row[_TABLES[table][0]])


def missing(record: Rows, connection: sqlite3.Connection) -> list[tuple[str, Row]]:
    """Return the rows that a record has and a database has not, those first that others refer to."""
    return [
        (table, row)
        for table, rows in record.items()
        for key, row in rows.items()
        if not _is_there(connection, table, key)
    ]


def _is_there(connection: sqlite3.Connection, table: str, key: Key) -> bool:
    where = " AND ".join(f"{name} = ?" for name in _TABLES[table])
    return connection.execute(f"SELECT 1 FROM {table} WHERE {where}", key).fetchone() is not None  # noqa: S608


def restore(connection: sqlite3.Connection, rows: list[tuple[str, Row]]) -> list[tuple[str, Row]]:
    """Put rows back, and return those that cannot be: what they refer to, or their name, is not there to have."""
    left = rows
    while True:
        stuck = [(table, row) for table, row in left if not _put(connection, table, row)]
        if len(stuck) in {0, len(left)}:
            return stuck
        left = stuck


def _put(connection: sqlite3.Connection, table: str, row: Row) -> bool:
    columns = [found[1] for found in connection.execute(f"PRAGMA table_info({table})") if found[1] in row]
    marks = ", ".join("?" * len(columns))
    query = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608  names of its own columns
    try:
        connection.execute(query, [row[name] for name in columns])
    except sqlite3.IntegrityError:
        return False
    return True


def drop_dangling(connection: sqlite3.Connection) -> None:
    """Delete what says something of rows that are gone for good."""
    for table, column, parent, key in (
        ("seals", "snapshot", "snapshots", "id"),
        ("quotas", "snapshot", "snapshots", "id"),
        ("labels", "snapshot", "snapshots", "id"),
        ("layers", "image", "images", "digest"),
        ("leased", "lease", "leases", "id"),
    ):
        connection.execute(f"DELETE FROM {table} WHERE {column} NOT IN (SELECT {key} FROM {parent})")  # noqa: S608


def salvage(path: Path, found: Rows) -> None:
    """Add what can still be read of a damaged database, where ``found`` has nothing of it."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{quote(os.fspath(path))}?mode=ro", uri=True)) as old:
        old.row_factory = sqlite3.Row
        for table, key in _TABLES.items():
            with suppress(sqlite3.Error):
                for row in old.execute(f"SELECT * FROM {table}"):  # noqa: S608  constant
                    if not _is_passing(table, dict(row)):
                        found[table].setdefault(tuple(row[name] for name in key), dict(row))


def nothing() -> Rows:
    """Return the rows of an empty store."""
    return {table: {} for table in _TABLES}


def every(rows: Rows) -> list[tuple[str, Row]]:
    """Return all rows with their tables, those first that others refer to."""
    return [(table, row) for table, found in rows.items() for row in found.values()]
