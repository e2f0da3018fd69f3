"""Whose a path is, on every driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import layerfs
from layerfs import Kind, Store
from layerfs.kernel import mountinfo
from layerfs.kernel.mounting import mounted
from layerfs.owning import Owner, OwnerKind
from tests.support.images import BASE, EDIT, write_layout

pytestmark = pytest.mark.root


@pytest.fixture
def store(driver_name: str, driver_root: Path, tmp_path: Path) -> Iterator[Store]:
    """Give a store with an image, a clone and a snapshot of it."""
    with layerfs.open(driver_root / "store", driver=driver_name) as store:
        store.import_image(write_layout(tmp_path / "image", [BASE, EDIT], name="test:1"))
        store.clone("test:1", "web").snapshot("first")
        yield store


def test_blobs_and_the_files_of_the_store(store: Store, tmp_path: Path) -> None:
    image = store.image("test:1")
    blob = store.owner(store.blobs.path(image.manifest.layers[0].digest))
    assert blob == Owner(OwnerKind.BLOB, image.manifest.layers[0].digest, users=("test:1",))
    loose = store.blobs.put_bytes(b"nobody's")
    assert store.owner(store.blobs.path(loose.digest)).kind is OwnerKind.NOBODY
    for name in ("meta.db", "lock", "blobs", ""):
        assert store.owner(store.path / name).kind is OwnerKind.STORE
    (store.path / "letter").touch()
    assert store.owner(store.path / "letter").kind is OwnerKind.FOREIGN
    assert store.owner(tmp_path).kind is OwnerKind.FOREIGN
    assert store.owner("/proc/self/status").kind is OwnerKind.FOREIGN
    with pytest.raises(layerfs.NotFound):
        store.owner(tmp_path / "nothing")


def test_the_place_where_a_clone_is_mounted(store: Store) -> None:
    with store.get_clone("web").mounted() as root:
        for path in (root, root / "etc/issue"):
            owner = store.owner(path)
            assert (owner.kind, owner.name, owner.users) == (OwnerKind.SNAPSHOT, "clone/web", ("web",))
        point = mountinfo.at(root)[-1]
        if point.type == "zfs" or point.source.startswith("/dev/mapper"):
            assert store.owner(point.source) == owner


@pytest.mark.host  # the drivers of the guests have no directories, but devices and datasets
def test_directories_of_snapshots(store: Store) -> None:
    assert isinstance(store.driver, layerfs.DirectAccess)
    layer = store.image("test:1").top
    place = store.driver.layer_root(store.snapshotter.snapshot(layer)).path
    owner = store.owner(place / "etc/issue")
    assert (owner.kind, owner.name, owner.users) == (OwnerKind.SNAPSHOT, layer, ("test:1", "web"))
    mark = store.snapshotter.snapshot("clone/web@first")
    assert store.owner(store.driver.layer_root(mark).path) == Owner(
        OwnerKind.SNAPSHOT, "clone/web@first", mark.id, ("web",)
    )
    (store.path / store.driver.name / "4711").mkdir()
    assert store.owner(store.path / store.driver.name / "4711") == Owner(OwnerKind.NOBODY, id=layerfs.SnapshotId(4711))
    (store.path / store.driver.name / "4711").rmdir()


def test_a_mounted_view(store: Store) -> None:
    store.snapshotter.view("look", store.image("test:1").top)
    with mounted(store.snapshotter.mounts("look")) as root:
        assert store.owner(root).kind is OwnerKind.SNAPSHOT
    assert store.snapshotter.stat("look").kind is Kind.VIEW
    store.snapshotter.remove("look")


def test_the_loop_device_of_a_volume(fresh_dir: Path) -> None:
    with layerfs.open(fresh_dir / "store", loop=layerfs.LoopVolume(256 << 20, "ext4")) as store:
        point = mountinfo.at(store.path / store.driver.name)[-1]
        assert point.source.startswith("/dev/loop")
        assert store.owner(point.source) == Owner(OwnerKind.STORE, str(store.path))
        store.detach()
