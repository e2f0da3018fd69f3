"""The quotas of snapshots while others commit and remove these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.contract import Kind, Quota, Snapshot
from layerfs.errors import NotFound
from layerfs.metadata import quotas
from layerfs.metadata.database import Database
from layerfs.snapshotter import Snapshotter
from layerfs_backends.copy import CopyDriver

_QUOTA = Quota(size=1 << 20)
Meanwhile = Callable[[], None]


class Slow(CopyDriver):
    """A driver that takes so long to set a quota that somebody else does something meanwhile."""

    meanwhile: Meanwhile | None = None

    def set_quota(self, snapshot: Snapshot) -> None:
        """Set it in no time, and then let the other one work."""
        assert snapshot.kind is Kind.ACTIVE
        if self.meanwhile is not None:
            self.meanwhile()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "meta.db")
    yield database
    database.close()


@pytest.fixture
def driver(tmp_path: Path) -> Slow:
    """Give a driver on which nothing is done meanwhile yet."""
    (tmp_path / "copy").mkdir()
    return Slow(tmp_path / "copy")


@pytest.fixture
def snapshotter(database: Database, driver: Slow, tmp_path: Path) -> Snapshotter:
    return Snapshotter(driver, database, tmp_path / "lock")


def test_of_a_snapshot_that_is_removed_meanwhile(snapshotter: Snapshotter, driver: Slow, database: Database) -> None:
    snapshotter.prepare("key")
    driver.meanwhile = lambda: snapshotter.remove("key")
    snapshotter.quotas.set("key", _QUOTA)
    with database.read() as connection:
        assert quotas.every(connection) == {}


def test_of_a_snapshot_that_is_committed_meanwhile(snapshotter: Snapshotter, driver: Slow, database: Database) -> None:
    snapshotter.prepare("key")
    driver.meanwhile = lambda: snapshotter.commit("name", "key")
    snapshotter.quotas.set("key", _QUOTA)
    with database.read() as connection:
        assert quotas.every(connection) == {}


def test_of_a_snapshot_that_is_removed_before_the_driver_refuses(snapshotter: Snapshotter, driver: Slow) -> None:
    def refuse() -> None:
        snapshotter.remove("key")
        raise FileNotFoundError(2, "No such file or directory")

    snapshotter.prepare("key")
    driver.meanwhile = refuse
    with pytest.raises(NotFound):
        snapshotter.quotas.set("key", _QUOTA)
