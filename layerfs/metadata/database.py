"""The connection to ``meta.db``: WAL, one connection a thread, transactions, migrations, errors of the closed set.

Source: https://www.sqlite.org/wal.html, https://www.sqlite.org/pragma.html#pragma_synchronous.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from layerfs import locks
from layerfs.errors import Busy, Corrupt, FailedPrecondition, LayerfsError, NoSpace, OperationFailed, PermissionDenied
from layerfs.metadata import record
from layerfs.metadata.reserve import HINT, Reserve, allocate, has_small_blocks, is_full, make_in_place
from layerfs.metadata.schema import MIGRATIONS

_log = logging.getLogger(__name__)

NAME = "meta.db"
LOCK = "lock"
"""The files in a store's directory: the database, and the one of `layerfs.locks`."""

_UNEXPLAINED = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR})
"""What SQLite says of a file that it could not make, write to or sync, for whatever reason."""

_INDEX = 32 << 10
"""Bytes of the log's index for the first 4,062 pages of the log, which is written back after 1,000."""

_WAIT = 60.0
"""Seconds that a writer waits for the others before it gives up."""


class _Held(NamedTuple):
    """A connection, with the process and the thread that alone use it."""

    pid: int
    thread: threading.Thread
    connection: sqlite3.Connection


class Database:
    """A store's metadata, shared by any number of threads and processes.

    ``create`` makes a new one where there is none. Raise `FailedPrecondition` for a format that is newer than this
    layerfs, and `Corrupt` for what is no database of ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path.with_name(record.NAME)
        self._lock_file = path.with_name(LOCK)
        self._local = threading.local()
        self._connections: list[_Held] = []
        self._guard = threading.Lock()
        self._pid = os.getpid()
        self.reserve = Reserve(path.parent / "reserve")
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close every thread's connection; doing it twice is no error."""
        if os.getpid() != self._pid:
            return
        with self._guard:
            for held in self._connections:
                held.connection.close()
            self._connections.clear()
        self._local = threading.local()
        self.reserve.take_back()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Give a connection whose reads all see one state of the database."""
        with self._transaction("BEGIN DEFERRED") as connection:
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True, frees: bool = False) -> Iterator[sqlite3.Connection]:
        """Give a connection inside a write transaction, which is rolled back if the block raises.

        ``durable=False`` does not wait for the disk: the next durable commit brings it along, a power cut may lose it.
        ``frees`` says that room becomes free by it, so that it may use the reserve on a full disk.
        """
        if frees:
            self.reserve.give_up_if_full()
        connection = self._connection()
        if self._local.durable is not durable:
            with _translated(self.path):
                connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._local.durable = durable
        changes = self._recorded(connection)
        gone: Sequence[record.Change] = ()
        try:
            with ExitStack() as ordered:
                with self._transaction("BEGIN IMMEDIATE"):
                    yield connection
                    gone, there = record.split(changes)
                    if changes:
                        ordered.enter_context(self._recording())
                    self._record(gone)
                kept = self._record(there)
        except BaseException:
            if gone:  # but they are still there
                self.rewrite_record()
            raise
        if not kept:
            self.rewrite_record()

    def rewrite_record(self) -> None:
        """Write the record anew (`layerfs.metadata.record`), as the database is now; none is left where that fails."""
        try:
            # Nobody else may end a transaction meanwhile: its line would be lost with the file that is replaced.
            with self._transaction("BEGIN IMMEDIATE") as connection, self._recording():
                record.rewrite(self.record, connection)
        except (OSError, LayerfsError) as error:
            self._forget_record(error)

    def _recorded(self, connection: sqlite3.Connection) -> list[record.Change]:
        """Return the list to which this thread's connection adds the rows that change, empty."""
        changes: list[record.Change] | None = getattr(self._local, "changes", None)
        if changes is None or self._local.recorded is not connection:
            changes = self._local.changes = []
            self._local.recorded = connection
            with _translated(self.path):
                record.install(connection, changes.append)
        changes.clear()
        return changes

    def _recording(self) -> AbstractContextManager[None]:
        """Hold the record from inside a transaction until its lines are written: those of the next one come after.

        The next one may begin as soon as this one has ended, which is before all of its lines are there.
        """
        return locks.locked(self._lock_file, locks.RECORD, exclusive=True, what="the record")

    def _record(self, changes: Sequence[record.Change]) -> bool:
        """Write down what a transaction changed; False where the record must be written anew."""
        try:
            return not changes or record.append(self.record, changes)
        except OSError as error:
            self._forget_record(error)
            return True

    def _forget_record(self, error: OSError | LayerfsError) -> None:
        """Let no record stay that would say too little: on a full disk there is none until there is room for it."""
        _log.warning("the record of %s is not kept: %s", self.path, error)
        with suppress(OSError):
            self.record.unlink(missing_ok=True)

    def problems(self, *, deep: bool) -> list[str]:
        """Return what SQLite finds wrong with it, indexes compared with their tables too if ``deep``."""
        with self.read() as connection:
            check = "integrity_check" if deep else "quick_check"
            return [str(row[0]) for row in connection.execute(f"PRAGMA {check}") if row[0] != "ok"]

    def dangling(self) -> list[tuple[str, str]]:
        """Return the tables with rows that refer to others that are gone, each with the table of those."""
        with self.read() as connection:
            found = [(row[0], row[2]) for row in connection.execute("PRAGMA foreign_key_check")]
        return list(dict.fromkeys(found))

    def settle(self) -> None:
        """Make sure that no commit that failed takes place later: to be called before bytes are deleted.

        One that fails, here or in any process, may have written all its pages to the log, and only the sync or a later
        step failed. It is rolled back, but whoever reads the log anew, after a crash say, finds it whole and takes it
        for committed. What is written next takes its place there, so a transaction that writes needs no such call.
        Raise `NoSpace` or another error as long as nothing can be written.
        """
        with self.write(frees=True) as connection:
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")  # what it is: a page is written

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        with _translated(self.path):
            connection.execute(begin)
        try:
            with _translated(self.path):
                yield connection
                connection.execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise

    def _connection(self) -> sqlite3.Connection:
        held: _Held | None = getattr(self._local, "held", None)
        if held is not None and held.pid == os.getpid():
            return held.connection
        # A connection must not be used, nor closed, in a child of the process that made it (sqlite.org/howtocorrupt).
        held = _Held(os.getpid(), threading.current_thread(), self._connect())
        self._local.held = held
        self._local.durable = None
        with self._guard:
            self._close_unused()
            self._connections.append(held)
        return held.connection

    def _close_unused(self) -> None:
        """Close the connections of threads that have ended: a service has new threads for each of its clients."""
        unused = [held for held in self._connections if held.pid == os.getpid() and not held.thread.is_alive()]
        for held in unused:
            held.connection.close()
            self._connections.remove(held)

    def _connect(self) -> sqlite3.Connection:
        if has_small_blocks(self.path.parent) and not self._index.exists() and is_full(self.path.parent):
            raise NoSpace(f"no space to work with {self.path}", hint=HINT)
        with _translated(self.path):
            connection = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
            try:
                connection.row_factory = sqlite3.Row
                make_in_place(self._index, self.path)  # SQLite takes what is there
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute("PRAGMA trusted_schema = OFF")
                self._allocate_index(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _allocate_index(self, connection: sqlite3.Connection) -> None:
        """Let the log's index have all its blocks, lest a full disk end this process by SIGBUS.

        SQLite maps it and writes but the last byte of each page before: of smaller blocks, the others are allocated
        when they are touched.
        """
        if has_small_blocks(self.path.parent):
            connection.execute("PRAGMA user_version").fetchone()  # makes the index
            allocate(self._index, _INDEX)

    @property
    def _index(self) -> Path:
        return self.path.with_name(f"{self.path.name}-shm")

    def _open(self) -> None:
        try:
            self._migrate()
        except NoSpace:  # a full disk must not keep anybody from removing something
            self.reserve.give_up_for(self._migrate)
            self.reserve.take_back()  # what is left, for it is kept for removing

    def _migrate(self) -> None:
        if self._version() == len(MIGRATIONS):
            return
        with self._transaction("BEGIN IMMEDIATE") as connection:
            # Another process may have done it meanwhile: the version is read again under the lock.
            version = self._version()
            if version > len(MIGRATIONS):
                raise FailedPrecondition(
                    f"{self.path} has format {version}; this layerfs knows formats up to {len(MIGRATIONS)}",
                    hint="use the newer layerfs that made this store; nothing was changed",
                )
            for script in MIGRATIONS[version:]:
                for statement in _statements(script):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _version(self) -> int:
        with _translated(self.path):
            return int(self._connection().execute("PRAGMA user_version").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    """Split a script, since ``executescript`` would commit the transaction that it runs in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:  # some errors have done it
        connection.execute("ROLLBACK")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _translate(path, error) from error


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code (https://www.sqlite.org/rescode.html)."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _translate(path: Path, error: sqlite3.Error) -> LayerfsError:
    code = _code(error)
    if code in _UNEXPLAINED and is_full(path.parent):
        code = sqlite3.SQLITE_FULL
    match code:
        case sqlite3.SQLITE_FULL:
            return NoSpace(f"no space to write {path}", hint=HINT)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Busy(f"{path} was locked by another process for {_WAIT:.0f} s", hint="try again")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return Corrupt(
                f"{path} is damaged or is no layerfs database: {error}",
                hint="`layerfs repair --force` makes a new one of what is left",
            )
        case sqlite3.SQLITE_CANTOPEN if os.access(path, os.R_OK | os.W_OK):
            return OperationFailed(f"cannot write beside {path}: {error}", hint="look for errors of the disk: dmesg")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_AUTH:
            return PermissionDenied(f"cannot open {path} for writing: {error}", hint="run it as the store's owner")
        case _:
            return OperationFailed(f"{path}: {error}")
