"""What processes do to each other: killed at any moment, or working on the same layers at once."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from layerfs.contract import DirectAccess, Driver
from layerfs.kernel import mountinfo
from layerfs.kernel.mounting import mounted
from layerfs.testing.driver_rules import active
from layerfs.testing.trees import contents
from layerfs_backends import btrfs, copy, overlay2
from tests.support import children

pytestmark = pytest.mark.root

Open = Callable[[], Driver]

_KILLS = 25
_FILES = {f"file-{number}": "x" * 100 * number for number in range(8)}
_DRIVERS: dict[str, tuple[Callable[[Path, Mapping[str, str]], Driver], dict[str, str]]] = {
    "copy": (copy.open_driver, {}),
    "overlay2": (overlay2.open_driver, {"share-above": "1"}),
    "btrfs": (btrfs.open_driver, {}),
}


@pytest.fixture(params=_DRIVERS)
def place(request: pytest.FixtureRequest) -> Path:
    """Give a directory that suits the driver, whose name is that of the last component."""
    name: str = request.param
    directory: Path = request.getfixturevalue("btrfs_dir" if name == "btrfs" else "fresh_dir")
    return directory / name


@pytest.fixture
def open_driver(place: Path) -> Iterator[Open]:
    """Give a function that opens the driver; in the end all it holds goes."""
    factory, options = _DRIVERS[place.name]
    yield lambda: factory(place, options)
    driver = factory(place, options)
    for number in sorted(driver.ids(), reverse=True):
        driver.remove(number)
    assert list(driver.ids()) == []
    assert mountinfo.below(place) == ()


def _write(path: Path) -> None:
    for name, text in _FILES.items():
        (path / name).write_text(text, encoding="ascii")


def _work(open_driver: Open, first: int, base: int, committed: int) -> None:
    """Make snapshots, commit every other and remove the rest, telling of each commit by its number, until killed."""
    driver = open_driver()
    assert isinstance(driver, DirectAccess)
    for number in range(first, first + 10_000):
        snapshot = active(number, base)
        driver.create(snapshot)
        _write(driver.layer_root(snapshot).path)
        if number % 2:
            driver.commit(snapshot)
            os.write(committed, f"{number}\n".encode())
        else:
            driver.remove(snapshot.id)


def test_killed_at_any_moment(open_driver: Open) -> None:
    """What was committed is whole; what was under way has an id, by which it can be removed."""
    moments = random.Random(1)
    driver = open_driver()
    driver.create(active(1))
    driver.commit(active(1))
    known: set[int] = {1}
    for kill in range(_KILLS):
        reader, writer = os.pipe()
        child = children.start(partial(_work, open_driver, 10_000 * (kill + 1), 1, writer))
        os.close(writer)
        time.sleep(moments.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reader) as lines:
            committed = {int(line) for line in lines}
        driver = open_driver()
        held = set(driver.ids())
        assert known | committed <= held
        # At most the snapshot under way, and one committed whose number was not told any more.
        assert len(held - known - committed) <= 1
        for orphan in held - known - committed:
            driver.remove(orphan)
        known |= committed
        assert set(driver.ids()) == known
    assert len(known) > 2
    for number in known - {1}:
        clone = active(number + 1_000_000, number, 1)
        driver.create(clone)
        with mounted(driver.mounts(clone)) as path:
            assert contents(path) == _FILES
        driver.remove(clone.id)


def _clone(open_driver: Open, first: int, parents: tuple[int, ...], rounds: int) -> None:
    driver = open_driver()
    for number in range(first, first + rounds):
        clone = active(number, *parents)
        driver.create(clone)
        with mounted(driver.mounts(clone)) as path:
            (path / "own").write_text(str(number), encoding="ascii")
            assert contents(path) == {**_FILES, "top": "top", "own": str(number)}
        driver.remove(clone.id)


def test_many_processes_on_the_same_layers(open_driver: Open) -> None:
    """Clones come and go at once, and what they share is there whenever one of them needs it."""
    driver = open_driver()
    driver.create(active(1))
    with mounted(driver.mounts(active(1))) as path:
        _write(path)
    driver.commit(active(1))
    driver.create(active(2, 1))
    with mounted(driver.mounts(active(2, 1))) as path:
        (path / "top").write_text("top", encoding="ascii")
    driver.commit(active(2, 1))
    workers = [children.start(partial(_clone, open_driver, 1000 * worker, (2, 1), 40)) for worker in range(1, 5)]
    statuses = [os.waitpid(child, 0)[1] for child in workers]
    assert statuses == [0, 0, 0, 0]
    assert set(driver.ids()) == {1, 2}
