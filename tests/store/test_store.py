"""The whole path: import, clone, change, commit, export, and the way back, on every driver."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

import layerfs
from layerfs import ArchiveFormat
from layerfs.layer.changes import ChangeKind
from layerfs.reclaim import ItemKind
from layerfs.testing.driver_rules import active
from tests.support import invariants
from tests.support.images import BASE, EDIT, SHRINK, write_layout

pytestmark = pytest.mark.root


@pytest.fixture
def store(driver_name: str, driver_root: Path) -> Iterator[layerfs.Store]:
    with layerfs.open(driver_root / "store", driver=driver_name) as store:
        yield store
        invariants.check_store(store)


@pytest.fixture
def image(store: layerfs.Store, tmp_path: Path) -> layerfs.Image:
    (image,) = store.import_image(write_layout(tmp_path / "image", [BASE, EDIT, SHRINK], name="test:1"))
    return image


def change(root: Path) -> None:
    (root / "etc/issue").write_text("changed in the clone\n")
    (root / "etc/more").unlink()
    (root / "new").mkdir(mode=0o751)
    (root / "new/file").write_text("new\n")
    os.link(root / "new/file", root / "new/link")
    os.symlink("../etc/issue", root / "new/symbolic")
    os.rename(root / "var/small", root / "tmp/moved")


CHANGES = [
    (ChangeKind.MODIFIED, b"etc"),
    (ChangeKind.MODIFIED, b"etc/issue"),
    (ChangeKind.DELETED, b"etc/more"),
    (ChangeKind.ADDED, b"new"),
    (ChangeKind.ADDED, b"new/file"),
    (ChangeKind.ADDED, b"new/link"),
    (ChangeKind.ADDED, b"new/symbolic"),
    (ChangeKind.MODIFIED, b"tmp"),
    (ChangeKind.ADDED, b"tmp/moved"),
    (ChangeKind.MODIFIED, b"var"),
    (ChangeKind.DELETED, b"var/small"),
]


def seen(clone: layerfs.Clone) -> list[tuple[ChangeKind, bytes]]:
    return [(found.kind, found.path) for found in clone.changes() if found.path != b"."]


def test_its_path_may_hold_anything(driver_name: str, driver_root: Path, tmp_path: Path) -> None:
    place = driver_root / "a b,ro:c\\d\n\"e' \udcff" / "store"
    place.parent.mkdir()
    with layerfs.open(place, driver=driver_name) as store:
        (image,) = store.import_image(write_layout(tmp_path / "image", [BASE, EDIT, SHRINK], name="test:1"))
        clone = store.clone("test:1", "work")
        with clone.mounted() as root:
            change(root)
        clone.snapshot("one")
        assert seen(clone) == CHANGES
        assert len(clone.commit("test:2").manifest.layers) == len(image.manifest.layers) + 1
        assert store.check(deep=True) == ()
        invariants.check_store(store)


def test_layers_lie_over_each_other(store: layerfs.Store, image: layerfs.Image) -> None:
    with store.clone("test:1") as clone, clone.mounted() as root:
        assert (root / "etc/issue").read_text() == "layerfs test, second layer\n"
        assert (root / "etc/more").exists()
        assert sorted(os.listdir(root / "var")) == ["small"]
        assert clone.image == image.digest
    assert store.clones() == ()


def test_a_commit_holds_exactly_what_changed_and_travels(
    store: layerfs.Store, image: layerfs.Image, tmp_path: Path, fresh_dir: Path
) -> None:
    with store.clone("test:1") as clone:
        with clone.mounted() as root:
            change(root)
            tree = invariants.tree_digest(root)
        assert seen(clone) == CHANGES
        committed = clone.commit("test:2", message="a message", author="me")
        again = clone.commit("test:3", message="a message", author="me")
    assert committed.manifest.layers[:-1] == image.manifest.layers
    assert committed.manifest.layers[-1] == again.manifest.layers[-1], "the same changes are the same layer"
    assert committed.config.history[-1].comment == "a message"
    assert invariants.image_tree(store, "test:2") == tree
    for form in ArchiveFormat:
        archive = tmp_path / form.value
        store.export_image(["test:2"], archive, format=form)
        with layerfs.open(fresh_dir / f"other-{form.value}", driver="overlay2") as other:
            (imported,) = other.import_image(archive)
            assert imported.names == ("test:2",)
            assert invariants.image_tree(other, "test:2") == tree
            if form is not ArchiveFormat.DOCKER_ARCHIVE:
                assert imported.digest == committed.digest
            assert imported.config.raw == committed.config.raw


@pytest.mark.usefixtures("image")
def test_a_clone_keeps_itself_if_asked(store: layerfs.Store, tmp_path: Path) -> None:
    with store.clone("test:1", "kept") as clone:
        clone.keep()
        with clone.mounted() as root:
            (root / "mine").write_text("mine")
    target = tmp_path / "target"
    target.mkdir()
    kept = store.get_clone("ke")
    kept.mount(target)
    assert (target / "mine").read_text() == "mine"
    assert kept.mount_points() == (target,)
    kept.unmount()
    assert kept.mount_points() == ()
    with pytest.raises(layerfs.FailedPrecondition, match="is not mounted"):
        kept.unmount()
    kept.remove()


def test_a_fork_of_a_name_that_was_used_before(store: layerfs.Store, image: layerfs.Image) -> None:
    clone = store.clone(image.name, "one")
    for labels in (("fork-two",), ("fork-two", "fork-two-2")):
        clone.fork("two").remove()
        assert clone.snapshots() == labels
    clone.fork("two")
    with pytest.raises(layerfs.AlreadyExists, match="a clone 'two' exists"):
        clone.fork("two")
    assert len(clone.snapshots()) == 3


def test_a_clone_of_a_name_that_was_used_before(store: layerfs.Store, image: layerfs.Image) -> None:
    """A fork keeps a snapshot of a removed clone, which is none of another clone of that name."""
    old = store.clone(image.name, "one")
    with old.mounted() as root:
        (root / "a").write_text("old")
    old.snapshot("kept")
    lease = store.lease(timedelta(hours=1))
    lease.add(snapshots=[f"{old.key}@kept"])
    fork = old.fork("two")
    old.remove()
    new = store.clone(image.name, "one")
    assert new.snapshots() == ()
    with pytest.raises(layerfs.NotFound, match="no snapshot 'kept'"):
        new.rollback("kept")
    assert new.snapshot("kept") == "kept"
    new.rollback("kept")
    with new.mounted() as root, fork.mounted() as other:
        assert not (root / "a").exists()
        assert (other / "a").read_text() == "old"
    assert store.plan_prune().items == ()
    new.remove()
    fork.remove()
    assert [item.kind for item in store.plan_prune().items] == [ItemKind.SNAPSHOT]  # the other is leased
    lease.remove()
    store.prune(store.plan_prune())
    assert store.snapshotter.infos(prefix="clone/") == []


def test_snapshots_forks_and_the_way_back(store: layerfs.Store, image: layerfs.Image) -> None:
    clone = store.clone("test:1", "one")
    with clone.mounted() as root:
        (root / "a").write_text("1")
    assert clone.snapshot() == "1"
    with clone.mounted() as root:
        (root / "a").write_text("2")
        (root / "etc/issue").unlink()
    assert clone.snapshot("second") == "second"
    with clone.mounted() as root:
        (root / "a").write_text("3")
    fork = clone.fork("two")
    with fork.mounted() as root:
        assert (root / "a").read_text() == "3"
        assert not (root / "etc/issue").exists()
        (root / "a").write_text("4")
    clone.rollback("1")
    with clone.mounted() as root:
        assert (root / "a").read_text() == "1"
        assert (root / "etc/issue").exists()
    assert clone.snapshots() == ("1", "second", "fork-two")
    clone.rollback("second")
    with clone.mounted() as root:
        assert (root / "a").read_text() == "2"
        (root / "a").write_text("5")
    clone.rollback()
    with clone.mounted() as root:
        assert (root / "a").read_text() == "2"
    changed = {found.path for found in store.changes("one@1", "two")}
    assert changed == {b"a", b"etc", b"etc/issue"}
    committed = fork.commit("test:fork")
    assert len(committed.manifest.layers) == len(image.manifest.layers) + 1, "one layer, however many snapshots"
    with pytest.raises(layerfs.NotFound, match="no snapshot 'third'"):
        clone.rollback("third")
    clone.remove()
    with fork.mounted() as root:
        assert (root / "a").read_text() == "4"
    fork.remove()
    assert store.plan_prune().items[:1] == () or all(
        item.kind is ItemKind.SNAPSHOT for item in store.plan_prune().items
    )
    store.prune(store.plan_prune())
    assert store.snapshotter.infos(prefix="clone/") == []
    with store.clone("test:fork") as check, check.mounted() as root:
        assert (root / "a").read_text() == "4"


def test_images_share_layers_and_prune_takes_what_is_nobodys(
    store: layerfs.Store, image: layerfs.Image, tmp_path: Path
) -> None:
    (other,) = store.import_image(write_layout(tmp_path / "other", [BASE, EDIT], name="test:other"))
    assert other.top in image.config.chain_ids
    assert len(store.snapshotter.infos()) == 3
    usage = {found.name: found for found in store.du().items}
    assert usage["test:other"].shared.size > 0
    assert usage["test:1"].exclusive.inodes > 0
    store.remove_image("test:1")
    assert len(store.snapshotter.infos()) == 2, "the shared layers stay"
    with store.clone("test:other") as clone:
        with clone.mounted() as root:
            (root / "x").write_text("x")
        unnamed = clone.commit()
    plan = store.plan_prune()
    assert [item.name for item in plan.items if item.kind is ItemKind.IMAGE] == [unnamed.digest]
    assert store.image(unnamed.digest).names == (), "a plan changes nothing"
    store.prune(plan)
    with pytest.raises(layerfs.NotFound):
        store.image(unnamed.digest)
    store.prune(store.plan_prune())
    assert store.plan_prune().items == ()
    store.remove_image("test:other")
    assert store.snapshotter.infos() == []
    assert list(store.blobs.digests()) == []
    assert list(store.driver.ids()) == []


def test_names_of_images(store: layerfs.Store, image: layerfs.Image) -> None:
    store.tag("test:1", "registry.example:5000/team/app:2")
    assert store.image("registry.example:5000/team/app:2").digest == image.digest
    assert store.image(image.digest).names == ("registry.example:5000/team/app:2", "test:1")
    assert store.image(image.digest.hex[:8]).digest == image.digest
    store.remove_image("test:1")
    assert store.image(image.digest).names == ("registry.example:5000/team/app:2",)
    with pytest.raises(layerfs.NotFound, match="there is no image 'test:1'"):
        store.image("test:1")


def test_an_image_that_is_not_unpacked_is_so_when_first_cloned(store: layerfs.Store, tmp_path: Path) -> None:
    store.import_image(write_layout(tmp_path / "image", [BASE]), unpack=False)
    assert store.snapshotter.infos() == []
    with store.clone("test:1") as clone, clone.mounted() as root:
        assert (root / "etc/issue").exists()


def test_a_store_opens_again_with_its_own_driver(store: layerfs.Store, image: layerfs.Image) -> None:
    store.clone("test:1", "lasting")
    with layerfs.open(store.path) as again:
        assert again.driver.name == store.driver.name
        assert again.get_clone("lasting").image == image.digest
        assert again.image("test:1").digest == image.digest


def test_what_was_removed_behind_our_back_is_reported(store: layerfs.Store, image: layerfs.Image) -> None:
    """By its name, with those whom it hurts; and it can be removed."""
    clone, other = store.clone("test:1", "clone"), store.clone("test:1", "other")
    clone.snapshot("before")
    assert store.check() == ()
    below = store.snapshotter.snapshot(clone.key).id
    store.driver.remove(below)
    (problem,) = store.check()
    assert (problem.name, problem.hurts) == (clone.key, ("clone",))
    assert problem.message
    assert problem.hint
    clone.remove()
    other.remove()
    assert store.check() == ()
    (blob, *_) = image.manifest.layers
    path = store.path / "blobs/sha256" / blob.digest.hex
    path.rename(store.path.with_suffix(".away"))
    (problem,) = store.check()
    assert (problem.name, problem.hurts) == (blob.digest, ("test:1",))
    store.path.with_suffix(".away").rename(path)
    store.driver.remove(store.snapshotter.snapshot(image.top).id)
    (problem,) = store.check()
    assert (problem.name, problem.hurts) == (image.top, ("test:1",))
    store.remove_image("test:1")
    assert store.check() == ()


@pytest.mark.usefixtures("image")
def test_an_id_that_has_bytes_after_a_power_cut_is_not_given_away_again(store: layerfs.Store) -> None:
    """The row may be lost where the bytes are not; what they were is not known any more."""
    store.driver.create(active(500))
    with closing(sqlite3.connect(store.path / "meta.db")) as database, database:
        database.execute("UPDATE settings SET value = 'another' WHERE key = 'boot'")
    with layerfs.open(store.path) as again:
        assert 500 not in set(again.driver.ids())
        with again.clone("test:1") as clone:
            assert again.snapshotter.snapshot(clone.key).id > 500


@pytest.mark.usefixtures("image")
def test_a_volatile_mount_leaves_a_clone_that_mounts_again(store: layerfs.Store, tmp_path: Path) -> None:
    clone = store.clone("test:1", "volatile")
    if not isinstance(store.driver, layerfs.VolatileMounts):
        with pytest.raises(layerfs.Unsupported, match="no volatile mounts"):
            clone.mount(tmp_path, volatile=True)
        return
    for number in range(2):
        with clone.mounted(volatile=True) as root:
            (root / f"in-a-block-{number}").touch()
        target = tmp_path / f"target{number}"
        target.mkdir()
        clone.mount(target, volatile=True)
        (target / f"by-hand-{number}").touch()
        clone.unmount()
    with clone.mounted() as root:
        assert {"in-a-block-0", "by-hand-0", "in-a-block-1", "by-hand-1"} <= set(os.listdir(root))
    clone.remove()


@pytest.mark.parametrize("key", ["tmp/mine", "tmp/7/mine", f"tmp/{10**30}/0123456789abcdef", "tmp/"])
def test_a_key_that_begins_like_those_of_layerfs_is_its_owners(fresh_dir: Path, key: str) -> None:
    with layerfs.open(fresh_dir / "store", driver="copy") as store:
        store.snapshotter.prepare(key)
        assert store.plan_prune().items == ()
        assert store.check() == ()
        with layerfs.open(fresh_dir / "target", driver="copy") as target:
            store.migrate(target)
        assert [info.name for info in store.snapshotter.infos()] == [key]


def test_a_comparison_does_not_unpack_while_somebody_prunes(store: layerfs.Store, tmp_path: Path) -> None:
    store.import_image(write_layout(tmp_path / "image", [BASE]), unpack=False)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.extend(change.path for change in store.changes("test:1")))
    with store._parts.alone(wait=True):
        reader.start()
        reader.join(0.3)
        assert store.snapshotter.infos() == [], "a prune would take it for a leftover"
    reader.join()
    assert b"etc/issue" in found
