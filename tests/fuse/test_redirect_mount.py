"""Redirected files through a mount: random writes, sqlite, and a server that is killed."""

from __future__ import annotations

import mmap
import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from layerfs.contract import WritePolicy
from layerfs.errors import FailedPrecondition
from layerfs.layerdirs import own_whiteouts
from layerfs_fuse import daemon, mounting
from layerfs_fuse.daemon import Ready
from layerfs_fuse.index.builder import build
from layerfs_fuse.index.reader import Index
from layerfs_fuse.mounting import Attachment
from layerfs_fuse.redirect.flatten import flatten_tree, has_redirects
from layerfs_fuse.session import Wishes
from layerfs_fuse.union import Options, Union, Upper
from tests.fuse.redirect_scene import BLOCK, pattern
from tests.fuse.test_server_data import WAYS, Model, closing_fd, wait_for_end
from tests.support.rootless import Rootless

pytestmark = pytest.mark.usefixtures("fuse_device")

SIZE = 50 * BLOCK + 99
OPTIONS = Options(write=WritePolicy.REDIRECT_ON_WRITE, redirect_from=1)


def _serve(place: Path, wishes: Wishes, options: Options, ready: Ready) -> None:
    layer = os.open(place / "lower", os.O_PATH | os.O_DIRECTORY)
    build(place / "index", [layer], whiteouts=own_whiteouts(), sync=False)
    with (
        Index.open(place / "index") as index,
        closing(Upper.open(place / "upper", place / "work")) as upper,
        closing(Union(index, [layer], upper, options)) as union,
    ):
        daemon.serve(union, place / "mount", Attachment(allow_other=os.geteuid() == 0), wishes, ready=ready)


@contextmanager
def mounted(place: Path, wishes: Wishes, options: Options = OPTIONS) -> Iterator[tuple[Path, int]]:
    """Mount the union of ``place`` and give the mount point and the server's pid; at the end neither is there."""
    for name in ("lower", "upper", "work", "mount"):
        (place / name).mkdir(exist_ok=True)
    body = partial(_serve, place, wishes, options)
    pid = daemon.start(body, "serve a test", log=place / "log")
    process = os.pidfd_open(pid)
    try:
        yield place / "mount", pid
    finally:
        with suppress(FailedPrecondition):
            mounting.detach(place / "mount")
        with closing_fd(process):
            wait_for_end(process)
    assert not [line for line in (place / "log").read_text().splitlines() if " INFO " not in line]


def flattened(place: Path) -> None:
    """Make the upper directory whole."""
    flatten_tree(place / "upper", place / "work", [place / "lower"])
    assert not has_redirects(place / "upper")


def many_writes(directory: Path, wishes: Wishes, seeds: range, steps: int) -> None:
    for seed in seeds:
        place = directory / str(seed)
        (place / "lower").mkdir(parents=True)
        (place / "lower/one").write_bytes(pattern(SIZE, seed))
        with mounted(place, wishes) as (target, _):
            model = Model(target / "one", seed)
            with closing(model):
                for _ in range(steps):
                    model.step()
        name, data = model.path.name, bytes(model.data)
        with mounted(place, wishes) as (target, _):
            assert (target / name).read_bytes() == data
        flattened(place)
        assert (place / "upper" / name).read_bytes() == data
        assert (place / "lower/one").read_bytes() == pattern(SIZE, seed)


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS)
def test_data_is_what_was_written(fresh_dir: Path, way: str) -> None:
    many_writes(fresh_dir, WAYS[way], range(4), 250)


@pytest.mark.rootless
def test_data_of_an_ordinary_user(run_rootless: Rootless, rootless_dir: Path) -> None:
    run_rootless(many_writes, rootless_dir, WAYS["no open"], range(10, 13), 250)


def _fill(database: sqlite3.Connection, rows: range, mark: str) -> None:
    with database:
        database.executemany(
            "INSERT OR REPLACE INTO numbers VALUES (?, ?)", ((row, f"{mark} {row} " * 20) for row in rows)
        )


@pytest.mark.root
@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
@pytest.mark.parametrize("way", WAYS)
def test_sqlite_works_on_a_redirected_database(fresh_dir: Path, way: str, journal: str) -> None:
    (fresh_dir / "lower").mkdir()
    for path in (fresh_dir / "lower/data", fresh_dir / "plain"):
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE numbers (number INTEGER PRIMARY KEY, words TEXT)")
            _fill(database, range(5000), "first")
    for _ in range(2):
        with mounted(fresh_dir, WAYS[way]) as (target, _):
            for path in (target / "data", fresh_dir / "plain"):
                with closing(sqlite3.connect(path)) as database:
                    database.execute(f"PRAGMA journal_mode={journal}")
                    for start in range(0, 5000, 500):
                        _fill(database, range(start, start + 50), "second")
                    database.execute("DELETE FROM numbers WHERE number % 7 = 0")
                    database.commit()
                    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    flattened(fresh_dir)
    answers = []
    for path in (fresh_dir / "upper/data", fresh_dir / "plain"):
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            answers.append(database.execute("SELECT * FROM numbers").fetchall())
    assert answers[0] == answers[1]


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS)
def test_mapped_memory_is_shared_with_reads_and_writes(fresh_dir: Path, way: str) -> None:
    (fresh_dir / "lower").mkdir()
    (fresh_dir / "lower/file").write_bytes(pattern(SIZE))
    with (
        mounted(fresh_dir, WAYS[way]) as (target, _),
        (target / "file").open("r+b", buffering=0) as file,
        mmap.mmap(file.fileno(), SIZE) as view,
    ):
        view[BLOCK : BLOCK + 3] = b"one"
        assert os.pread(file.fileno(), 3, BLOCK) == b"one"
        os.pwrite(file.fileno(), b"two", 2 * BLOCK)
        assert view[2 * BLOCK : 2 * BLOCK + 3] == b"two"
        view.flush()
        os.fsync(file.fileno())
    status = (fresh_dir / "upper/file").stat()
    assert status.st_size == SIZE
    assert status.st_blocks * 512 <= 4 * BLOCK


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS)
def test_reader_from_before_the_first_write(fresh_dir: Path, way: str) -> None:
    (fresh_dir / "lower").mkdir()
    (fresh_dir / "lower/file").write_bytes(pattern(SIZE))
    with mounted(fresh_dir, WAYS[way]) as (target, _), (target / "file").open("rb", buffering=0) as before:
        assert before.read(5) == pattern(5)
        with (target / "file").open("r+b", buffering=0) as writer:
            writer.write(b"other")
            assert os.fstat(writer.fileno()).st_ino == os.fstat(before.fileno()).st_ino
        assert (target / "file").read_bytes() == b"other" + pattern(SIZE)[5:]
        assert os.pread(before.fileno(), 5, 0) in (pattern(5), b"other")


@pytest.mark.root
@pytest.mark.parametrize("seed", range(6))
def test_killed_server_keeps_what_fsync_confirmed(fresh_dir: Path, seed: int) -> None:
    chance = random.Random(seed)
    (fresh_dir / "lower").mkdir()
    (fresh_dir / "lower/file").write_bytes(pattern(SIZE))
    expected = bytearray(pattern(SIZE))
    with mounted(fresh_dir, WAYS["no open"]) as (target, pid):
        fd, end = os.open(target / "file", os.O_RDWR), time.monotonic() + 0.3 + chance.random() / 3
        while time.monotonic() < end:
            offset, data = chance.randrange(SIZE + BLOCK), chance.randbytes(chance.randrange(1, 2 * BLOCK))
            os.pwrite(fd, data, offset)
            expected.extend(bytes(max(0, offset + len(data) - len(expected))))
            expected[offset : offset + len(data)] = data
            os.fdatasync(fd)
        os.kill(pid, signal.SIGKILL)
        with suppress(OSError):  # closing tells that there is no server
            os.close(fd)
        mounting.detach(target, lazy=True)
    with mounted(fresh_dir, WAYS["no open"]) as (target, _):
        assert (target / "file").read_bytes() == expected
