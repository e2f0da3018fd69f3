"""The connection to the database: transactions, migrations, and the errors of the closed set."""

from __future__ import annotations

import os
import resource
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layerfs.errors import Corrupt, FailedPrecondition, LayerfsError, PermissionDenied
from layerfs.metadata import record, settings
from layerfs.metadata.database import Database
from layerfs.metadata.schema import MIGRATIONS


def test_a_new_database_has_the_newest_format_and_is_durable(tmp_path: Path) -> None:
    database = Database(tmp_path / "meta.db")
    with database.write() as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1
    database.close()


def test_every_table_is_strict(tmp_path: Path) -> None:
    database = Database(tmp_path / "meta.db")
    with database.read() as connection:
        tables = [row for row in connection.execute("PRAGMA table_list") if not row["name"].startswith("sqlite_")]
    names = "settings snapshots labels images tags layers clones seals quotas leases leased"
    assert {row["name"] for row in tables} == set(names.split())
    assert all(row["strict"] for row in tables)
    database.close()


def test_a_block_that_raises_writes_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "meta.db")

    def write_and_fail() -> None:
        with database.write() as connection:
            settings.put(connection, "a", "b")
            raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        write_and_fail()
    with database.read() as connection:
        assert settings.get(connection, "a") is None
    with database.write() as connection:
        settings.put(connection, "a", "c")
    with database.read() as connection:
        assert settings.get(connection, "a") == "c"
    database.close()


def test_two_connections_see_each_others_commits(tmp_path: Path) -> None:
    one, two = Database(tmp_path / "meta.db"), Database(tmp_path / "meta.db")
    with one.write() as connection:
        settings.put(connection, "a", "b")
    with two.read() as connection:
        assert settings.get(connection, "a") == "b"
    one.close()
    two.close()


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(FailedPrecondition, match=f"has format {len(MIGRATIONS) + 1}"):
        Database(path)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS) + 1
    connection.close()


def test_what_is_no_database_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    path.write_bytes(b"this is no database\n" * 100)
    with pytest.raises(Corrupt, match=r"meta\.db is damaged"):
        Database(path)


def test_what_cannot_be_opened_is_not_kept_open(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    path.write_bytes(b"this is no database\n" * 100)
    with pytest.raises(Corrupt) as raised:
        Database(path)
    # As long as somebody has the error, its trace holds all that the functions on the way had.
    assert raised.tb is not None
    held = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert str(path) not in held


def test_a_directory_that_is_missing_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PermissionDenied, match="cannot open"):
        Database(tmp_path / "missing" / "meta.db")


def test_threads_that_end_leave_no_descriptor(tmp_path: Path) -> None:
    database = Database(tmp_path / "meta.db")

    def read() -> None:
        with database.read() as connection:
            connection.execute("SELECT 1 FROM settings")

    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    counts: list[int] = []
    for _ in range(20):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        counts.append(opened())
    assert counts[-1] == counts[3], "SQLite keeps one at the most that it could not close at once"
    database.close()


def _recorded(database: Database) -> dict[str, str]:
    rows = record.read(database.record) or {}
    return {str(row["key"]): str(row["value"]) for row in rows["settings"].values()}


def _kept(database: Database) -> dict[str, str]:
    with database.read() as connection:
        return settings.below(connection, "")


def test_the_record_has_the_order_of_the_transactions(tmp_path: Path) -> None:
    """One writes a row and one deletes it, at the same moment: what was done last comes last in the record, too."""
    rounds = 1000
    one, two = Database(tmp_path / "meta.db"), Database(tmp_path / "meta.db")
    together = threading.Barrier(2)

    def put() -> None:
        for number in range(rounds):
            together.wait()
            with one.write(durable=False) as connection:
                settings.put(connection, "a", str(number))
            together.wait()

    thread = threading.Thread(target=put)
    thread.start()
    differing = 0
    for _ in range(rounds):
        together.wait()
        with two.write(durable=False) as connection:
            connection.execute("DELETE FROM settings WHERE key = 'a'")
        together.wait()
        differing += _recorded(two) != _kept(two)
    thread.join()
    one.close()
    two.close()
    assert differing == 0


def test_a_row_whose_deletion_was_not_committed_stays_in_the_record(tmp_path: Path) -> None:
    database = Database(tmp_path / "meta.db")
    with database.write() as connection:
        connection.execute(
            "CREATE TABLE named (key TEXT REFERENCES settings (key) DEFERRABLE INITIALLY DEFERRED) STRICT"
        )
        settings.put(connection, "a", "b")
        connection.execute("INSERT INTO named VALUES ('a')")
    with pytest.raises(LayerfsError), database.write() as connection:
        connection.execute("DELETE FROM settings WHERE key = 'a'")
    assert _recorded(database) == _kept(database) == {"a": "b"}
    database.close()


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Let this process write no file beyond so many bytes, as a disk that is full at that point."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_change_that_is_recorded_in_part_only_is_not_taken_for_recorded(tmp_path: Path) -> None:
    database = Database(tmp_path / "meta.db")
    with database.write() as connection:
        settings.put(connection, "a", "b")
    size = database.record.stat().st_size
    with no_file_beyond(size + 10), pytest.raises(OSError, match="space"):
        record.append(database.record, ['["settings",{"key":"a","value":"b"},0]'])
    database.close()
