"""A lost or damaged database is made anew: names, clones and snapshots come back, every tree is what it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import layerfs
from layerfs.checking.rebuild import reason, rebuild
from layerfs.checking.repair import Outcome
from layerfs.errors import Corrupt
from layerfs.metadata import record
from tests.damage import odd_layers
from tests.damage.hurting import trees
from tests.support.images import write_layout

pytestmark = [pytest.mark.root, pytest.mark.host]

Do = Callable[[Path], object]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage " * 9000)


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def page_lost(path: Path) -> None:
    """Overwrite some pages in the middle, so that tables lead nowhere."""
    data = bytearray(path.read_bytes())
    data[4096 : len(data) // 2] = b"\xff" * (len(data) // 2 - 4096)
    path.write_bytes(data)


@pytest.fixture(params=("overlay2", "fuse", "btrfs", "copy"))
def driver_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("damage", [truncated, zeroed, garbage, missing, empty, page_lost])
@pytest.mark.usefixtures("clone")
def test_a_lost_database_is_made_anew(store: layerfs.Store, damage: Do) -> None:
    store.tag("test:1", "other:name")
    before, path, names = trees(store), store.path, {image.names for image in store.images()}
    store.close()
    damage(path / "meta.db")

    with pytest.raises(Corrupt, match="database"):
        layerfs.open(path)
    assert reason(path)
    done = rebuild(path)
    assert (done.images, done.clones) == (1, 1)
    assert reason(path) == ""
    with layerfs.open(path) as again:
        assert {image.names for image in again.images()} == names
        assert {remedy.outcome for remedy in again.repair(force=True)} <= {Outcome.MENDED}
        assert again.check(deep=True) == ()
        assert trees(again) == before
        again.clone("test:1", "more").remove()


@pytest.mark.usefixtures("clone")
def test_without_a_record_images_come_back_and_nothing_is_deleted(store: layerfs.Store) -> None:
    """Images from their blobs, under names that are made up; bytes that nobody can name are put aside."""
    path = store.path
    held = len(list(store.driver.ids()))
    store.close()
    (path / "meta.db").unlink()
    (path / record.NAME).unlink()
    done = rebuild(path)
    assert (done.images, done.clones) == (1, 0)
    assert len(done.aside) == held
    with layerfs.open(path) as again:
        (image,) = again.images()
        assert image.names[0].startswith("recovered:")
        with again.clone(image.digest) as clone, clone.mounted() as root:
            assert (root / "etc/issue").read_text() == "the second counts\n"
        assert again.check(deep=True) == ()


@pytest.mark.usefixtures("clone")
def test_transactions_that_a_torn_log_lost_come_back(store: layerfs.Store, tmp_path: Path) -> None:
    """The write-ahead log is cut while it holds what was done last."""
    before, path = trees(store), store.path
    log = path / "meta.db-wal"
    length = log.stat().st_size
    store.clone("test:1", "late")
    store.tag("test:1", "late:tag")
    for name in ("meta.db", "meta.db-wal"):
        shutil.copyfile(path / name, tmp_path / name)
    store.close()
    os.truncate(tmp_path / log.name, length + 1000)
    for name in ("meta.db", "meta.db-wal"):
        shutil.copyfile(tmp_path / name, path / name)
    with layerfs.open(path) as again:
        lost = {problem.message for problem in again.check()}
        assert "a row of the table tags is gone" in lost
        remedies = again.repair(force=True)
        assert {remedy.outcome for remedy in remedies} == {Outcome.MENDED}, remedies
        assert again.check(deep=True) == ()
        assert trees(again) == before
        assert "late:tag" in again.image("test:1").names
        again.get_clone("late").remove()


@pytest.mark.usefixtures("clone")
def test_a_removal_that_a_torn_log_lost_is_done_again(store: layerfs.Store, tmp_path: Path) -> None:
    path = store.path
    store.clone("test:1", "late")
    for name in ("meta.db", "meta.db-wal"):
        shutil.copyfile(path / name, tmp_path / name)
    store.get_clone("late").remove()
    store.close()
    for name in ("meta.db", "meta.db-wal"):
        shutil.copyfile(tmp_path / name, path / name)
    with layerfs.open(path) as again:
        assert {problem.name for problem in again.check()} == {"clone/late"}
        remedies = again.repair(force=True)
        assert {remedy.outcome for remedy in remedies} == {Outcome.MENDED}, remedies
        assert again.check(deep=True) == ()
        assert {clone.name for clone in again.clones()} == {"work"}


@pytest.mark.usefixtures("clone")
@pytest.mark.parametrize("blobs", [True, False])
def test_a_clone_whose_image_the_record_lacks_comes_back_with_it(store: layerfs.Store, *, blobs: bool) -> None:
    """Only those clones are counted that are there again."""
    path, (image,) = store.path, store.images()
    store.close()
    (path / "meta.db").unlink()
    assert record.append(path / record.NAME, [f'["images",{{"digest":"{image.digest}"}},0]'])
    if not blobs:
        shutil.rmtree(path / "blobs/sha256")
        (path / "blobs/sha256").mkdir()
    done = rebuild(path)
    assert (done.images, done.clones) == ((1, 1) if blobs else (0, 0))
    with layerfs.open(path) as again:
        assert {clone.name for clone in again.clones()} == ({"work"} if blobs else set[str]())


def test_a_record_that_is_cut_says_less_and_nothing_wrong(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "image", [odd_layers.base()])
    with layerfs.open(tmp_path / "store", driver="copy") as store:
        store.import_image(layout, unpack=False)
        store.tag("test:1", "last:one")
        kept = store.path / record.NAME
        kept.write_bytes(kept.read_bytes()[:-3] + b"\xff\xff\xff")
        assert store.check() == ()
        rows = record.read(kept)
        assert rows is not None
        assert len(rows["tags"]) == 1
        kept.unlink()
        store.tag("test:1", "more:names")
        rows = record.read(kept)
        assert rows is not None
        assert len(rows["tags"]) == 3
