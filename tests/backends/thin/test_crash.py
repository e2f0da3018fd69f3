"""Killed and concurrent processes on one pool, and what a power cut takes."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from layerfs.contract import Snapshot, SnapshotId
from layerfs.kernel.mounting import mounted
from layerfs.testing.driver_rules import active
from layerfs.testing.trees import contents, write
from layerfs_backends.devicemapper import DeviceMapperDriver, open_driver
from tests.support import children
from tests.support.thin import Open, devices, mapped_blocks

pytestmark = [pytest.mark.guest, pytest.mark.driver("devicemapper")]

_KILLS = 8
_FILES = {f"file-{number}": "x" * 100 * number for number in range(8)}


def _work(opened: Open, first: int, committed: int) -> None:
    """Make snapshots, commit every other and remove the rest, telling of each commit by its number, until killed."""
    driver = opened()
    for number in range(first, first + 10_000):
        snapshot = active(number, 1)
        driver.create(snapshot)
        if number % 2:
            driver.commit(snapshot)
            os.write(committed, f"{number}\n".encode())
        else:
            driver.remove(snapshot.id)


def _layer(driver: DeviceMapperDriver) -> None:
    driver.create(active(1))
    with mounted(driver.mounts(active(1))) as path:
        write(path, **_FILES)
    driver.commit(active(1))


def _do(opened: Open, verb: str, what: Snapshot | SnapshotId) -> None:
    getattr(opened(), verb)(what)


def _killed_at(step: int, work: Callable[[], None]) -> bool:
    """Do it in a process that is killed before its ``step``-th ioctl; tell whether it got so far."""

    def run() -> None:
        ioctls = itertools.count(1)

        def watch(event: str, _: object) -> None:
            if event == "fcntl.ioctl" and next(ioctls) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        work()

    status = os.waitpid(children.start(run), 0)[1]
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


class TestKilledAtEachStep:
    """Between two ioctls all that can happen happens: whatever was written to the ledger before is there."""

    @pytest.fixture(params=["committed", "open"])
    def parent(self, request: pytest.FixtureRequest, driver: DeviceMapperDriver) -> int:
        """Give a parent with files: one that is committed, or an active one, which rests while it is cloned."""
        if request.param == "committed":
            _layer(driver)
            return 1
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            write(path, **_FILES)
        return 1

    def test_create(self, driver: DeviceMapperDriver, opened: Open, parent: int) -> None:
        step = 1
        while _killed_at(step, partial(_do, opened, "create", active(step + 1, parent))):
            assert set(driver.ids()) <= {1, step + 1}
            driver.remove(SnapshotId(step + 1))
            assert set(driver.ids()) == {1}
            self._check(driver, active(step + 10_000, parent))
            step += 1
        assert step > 5
        with mounted(driver.mounts(active(step + 1, parent))) as path:
            assert contents(path) == _FILES

    def test_commit(self, driver: DeviceMapperDriver, opened: Open, parent: int) -> None:
        step, killed = 0, True
        while killed:
            step += 1
            clone = active(step + 1, parent)
            driver.create(clone)
            killed = _killed_at(step, partial(_do, opened, "commit", clone))
            driver.commit(clone)  # as recovery does
            self._check(driver, active(step + 10_000, clone.id, parent))
            driver.remove(clone.id)
        assert step > 5
        assert set(driver.ids()) == {1}

    @pytest.mark.parametrize("committed", [False, True])
    def test_remove(self, driver: DeviceMapperDriver, opened: Open, parent: int, *, committed: bool) -> None:
        step, killed = 0, True
        while killed:
            step += 1
            clone = active(step + 1, parent)
            driver.create(clone)
            with mounted(driver.mounts(clone)) as path:
                write(path, own="own")
            if committed:
                driver.commit(clone)
            killed = _killed_at(step, partial(_do, opened, "remove", clone.id))
            assert set(driver.ids()) == ({1, clone.id} if killed else {1})
            driver.remove(clone.id)
            assert set(driver.ids()) == {1}
            self._check(driver, active(step + 10_000, parent))
        assert step > 3
        assert mapped_blocks().keys() == {0, 1}

    def _check(self, driver: DeviceMapperDriver, clone: Snapshot) -> None:
        """Clone something: what it holds is there, and nothing hangs."""
        driver.create(clone)
        with mounted(driver.mounts(clone)) as path:
            assert contents(path) == _FILES
        driver.remove(clone.id)


def test_a_first_opening_that_is_killed_at_each_step(fresh_dir: Path) -> None:
    root, options = fresh_dir / "d", {"size": "128M", "device-size": "64M"}
    step = 1
    while _killed_at(step, lambda: open_driver(root, options).close()):
        step += 1
    assert step > 15
    driver = open_driver(root, options)
    driver.create(active(1))
    with mounted(driver.mounts(active(1))) as path:
        assert contents(path) == {}
    driver.remove(SnapshotId(1))
    driver.close()
    assert devices() == set()


class TestProcesses:
    def test_killed_at_any_moment(self, driver: DeviceMapperDriver, opened: Open) -> None:
        """What was committed is whole; what was under way has an id, by which it can be removed."""
        moments = random.Random(1)
        _layer(driver)
        known: set[int] = {1}
        for kill in range(_KILLS):
            reader, writer = os.pipe()
            child = children.start(partial(_work, opened, 10_000 * (kill + 1), writer))
            os.close(writer)
            time.sleep(moments.uniform(0, 0.6))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            with os.fdopen(reader) as lines:
                committed = {int(line) for line in lines}
            held = set(opened().ids())
            assert known | committed <= held
            assert len(held - known - committed) <= 1
            for orphan in held - known - committed:
                driver.remove(SnapshotId(orphan))
            known |= committed
            assert set(driver.ids()) == known
        for number in sorted(known - {1})[:20]:
            clone = active(number + 1_000_000, number, 1)
            driver.create(clone)
            with mounted(driver.mounts(clone)) as path:
                assert contents(path) == _FILES
            driver.remove(clone.id)

    def test_many_on_the_same_layer(self, driver: DeviceMapperDriver, opened: Open) -> None:
        _layer(driver)
        workers = [children.start(partial(self._clone, opened, 1000 * worker)) for worker in range(1, 5)]
        assert [os.waitpid(child, 0)[1] for child in workers] == [0, 0, 0, 0]
        assert set(driver.ids()) == {1}

    def _clone(self, opened: Open, first: int) -> None:
        driver = opened()
        for number in range(first, first + 8):
            clone = active(number, 1)
            driver.create(clone)
            with mounted(driver.mounts(clone)) as path:
                (path / "own").write_text(str(number), encoding="ascii")
                assert contents(path) == {**_FILES, "own": str(number)}
            driver.remove(clone.id)

    def test_snapshots_of_one_active_device_at_once(self, driver: DeviceMapperDriver, opened: Open) -> None:
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            write(path, **_FILES)
            workers = [children.start(partial(self._snapshots, opened, 1000 * worker)) for worker in range(1, 4)]
            for number in range(50):
                write(path, churn=str(number))
            assert [os.waitpid(child, 0)[1] for child in workers] == [0, 0, 0]
        for number in sorted(set(driver.ids()) - {1}):
            with mounted(driver.mounts(active(number, 1))) as path:
                assert _FILES.items() <= contents(path).items()

    def _snapshots(self, opened: Open, first: int) -> None:
        driver = opened()
        for number in range(first, first + 4):
            driver.create(active(number, 1))
