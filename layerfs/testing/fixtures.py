"""The fixtures of the contract tests: a driver on a directory of its own, and a snapshotter over it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from layerfs.contract import Driver, Kind, Snapshot, SnapshotId
from layerfs.kernel import mountinfo
from layerfs.kernel.mounting import mounted
from layerfs.metadata.database import Database
from layerfs.snapshotter import Snapshotter

OpenDriver = Callable[[], Driver]
Shown = Callable[[Snapshot], AbstractContextManager[Path]]
Stack = Callable[[int], Snapshot]


class Bench:
    """A snapshotter at work: makes snapshots with contents, and shows what they hold."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self.snapshotter = snapshotter

    def mounted(self, key: str) -> AbstractContextManager[Path]:
        """Mount an active snapshot or view for the time of a block."""
        return mounted(self.snapshotter.mounts(key))

    @contextmanager
    def viewed(self, name: str) -> Iterator[Path]:
        """Mount a view of a committed snapshot for the time of a block, and remove it."""
        self.snapshotter.view("a view for the test", name)
        try:
            with self.mounted("a view for the test") as path:
                yield path
        finally:
            self.snapshotter.remove("a view for the test")

    @contextmanager
    def layer(self, name: str, parent: str = "") -> Iterator[Path]:
        """Mount a new active snapshot for the time of a block, then commit it as ``name``."""
        self.snapshotter.prepare(f"{name} (active)", parent)
        with self.mounted(f"{name} (active)") as path:
            yield path
        self.snapshotter.commit(name, f"{name} (active)")


class DriverFixtures:
    """What the contract tests run on; see `layerfs.testing.DriverContract` for what to set."""

    options: ClassVar[Mapping[str, str]] = {}

    @staticmethod
    def factory(root: Path, options: Mapping[str, str]) -> Driver:
        """Open the driver (`layerfs.contract.DriverFactory`); a subclass puts its own here."""
        raise NotImplementedError

    @pytest.fixture
    def driver_root(self, tmp_path: Path) -> Path:
        """Give the directory that the factory is called with; it need not exist. Override it to choose the place."""
        return tmp_path / "driver"

    @pytest.fixture
    def open_driver(self, driver_root: Path) -> OpenDriver:
        """Give a function that opens the driver, as each process that uses the same store does."""
        factory, options = type(self).factory, type(self).options
        return lambda: factory(driver_root, options)

    @pytest.fixture
    def driver(self, open_driver: OpenDriver, driver_root: Path) -> Iterator[Driver]:
        """Give the driver; in the end it must leave nothing mounted and be able to remove all it made."""
        driver = open_driver()
        yield driver
        for number in sorted(driver.ids(), reverse=True):
            driver.remove(number)
        assert list(driver.ids()) == []
        driver.close()
        assert mountinfo.below(driver_root) == ()

    @pytest.fixture
    def shown(self, driver: Driver) -> Shown:
        """Give a function that mounts a snapshot of the driver for the time of a block."""
        return lambda snapshot: mounted(driver.mounts(snapshot))

    @pytest.fixture
    def stack(self, driver: Driver, shown: Shown) -> Stack:
        """Give a function that commits a number of layers, each with a file of its number, and returns the topmost."""

        def build(layers: int) -> Snapshot:
            top = Snapshot(SnapshotId(0), Kind.ACTIVE)
            for number in range(1, layers + 1):
                top = Snapshot(SnapshotId(number), Kind.ACTIVE, (top.id, *top.parents) if number > 1 else ())
                driver.create(top)
                with shown(top) as path:
                    (path / f"file-{number}").write_text(f"{number}", encoding="ascii")
                driver.commit(top)
            return top

        return build

    @pytest.fixture
    def bench(self, driver: Driver, tmp_path: Path) -> Iterator[Bench]:
        """Give a snapshotter over the driver; in the end no bytes may be without a row."""
        database = Database(tmp_path / "meta.db")
        snapshotter = Snapshotter(driver, database, tmp_path / "lock")
        try:
            yield Bench(snapshotter)
            assert snapshotter.cleanup() == ()
        finally:
            snapshotter.close()
            database.close()

    @pytest.fixture
    def other_owner(self, tmp_path: Path) -> tuple[int, int]:
        """Give a user and a group other than the test's own; skip where they cannot be given away."""
        probe = tmp_path / "owned by another"
        probe.touch()
        try:
            os.chown(probe, 1000, 1001)
        except OSError as error:
            pytest.skip(f"files cannot be given to another user here: {error.strerror}")
        return 1000, 1001
