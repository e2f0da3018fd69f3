"""Snapshots whose bytes are made in the transaction that names them: what a kill in its middle leaves harms nobody."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import layerfs
from layerfs import Store
from layerfs.contract import Kind, Snapshot, Whiteouts
from layerfs.errors import AlreadyExists, Busy, LayerfsError, NotFound
from layerfs.kernel.children import fork
from layerfs.layerdirs import LayerDirectories
from layerfs.metadata.database import Database
from layerfs.snapshotter import Snapshotter
from layerfs_backends.overlay2 import Overlay2Driver

pytestmark = [pytest.mark.root, pytest.mark.driver("overlay2")]


@pytest.fixture
def store(fresh_dir: Path) -> Iterator[Store]:
    with layerfs.open(fresh_dir / "store", driver="overlay2") as opened:
        assert opened.driver.traits.light
        yield opened


def killed_in_the_transaction(path: Path) -> None:
    """Let a process die between the making of the bytes and the commit of the row."""
    child = fork()
    if child == 0:
        with layerfs.open(path) as store:
            store.snapshotter.prepare("lost", within=lambda _connection: os._exit(0))
    assert os.waitpid(child, 0)[1] == 0


def test_the_next_snapshot_passes_the_lost_one_over(store: Store) -> None:
    """Its bytes go, but not before something is written: until then a crash may bring back a commit that failed."""
    killed_in_the_transaction(store.path)
    (orphan,) = store.driver.ids()
    left = store.path / f"overlay2/{orphan}/diff/left"
    left.write_text("of nobody")
    store.snapshotter.prepare("next")
    (made,) = store.driver.ids()
    assert made > orphan
    assert store.snapshotter.snapshot("next").id == made
    assert [info.name for info in store.snapshotter.infos()] == ["next"]


def test_a_cleanup_removes_the_lost_one_and_its_id_is_not_given_away(store: Store) -> None:
    killed_in_the_transaction(store.path)
    (orphan,) = store.driver.ids()
    assert store.snapshotter.cleanup() == (orphan,)
    store.snapshotter.prepare("next")
    assert store.snapshotter.snapshot("next").id > orphan
    assert store.snapshotter.cleanup() == ()


def test_what_raises_in_the_transaction_leaves_nothing(store: Store) -> None:
    def fail(_connection: object) -> None:
        raise Busy("no")

    with pytest.raises(Busy):
        store.snapshotter.prepare("one", within=fail)
    assert (store.snapshotter.infos(), list(store.driver.ids())) == ([], [])


class Interrupted(Overlay2Driver):
    """The driver in a process that is slow to commit, so that something happens meanwhile."""

    def __init__(self, root: Path) -> None:
        super().__init__(LayerDirectories(root, Whiteouts.OVERLAY))
        self.meanwhile: list[Callable[[], None]] = []

    def commit(self, snapshot: Snapshot) -> None:
        while self.meanwhile:
            self.meanwhile.pop()()
        super().commit(snapshot)


@pytest.mark.parametrize(
    ("name", "key", "error"), [("base", "two", AlreadyExists), ("other", "one", NotFound)], ids=["name", "key"]
)
def test_a_commit_that_another_one_overtakes_changes_nothing(
    store: Store, name: str, key: str, error: type[LayerfsError]
) -> None:
    driver = Interrupted(store.path / "overlay2")
    with closing(Database(store.path / "meta.db")) as database:
        snapshotter = Snapshotter(driver, database, store.path / "lock")
        for one in ("one", "two"):
            snapshotter.prepare(one)
        driver.meanwhile.append(lambda: store.snapshotter.commit(name, key))
        with pytest.raises(error):
            snapshotter.commit("base", "one")
        found = {info.name: info.kind for info in snapshotter.infos()}
        snapshotter.close()
    assert found == {name: Kind.COMMITTED, ({"one", "two"} - {key}).pop(): Kind.ACTIVE}
