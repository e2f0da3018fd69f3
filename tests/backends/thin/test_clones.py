"""Many clones, and whole stores, on devicemapper."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path

import pytest

import layerfs
from layerfs.contract import SnapshotId
from layerfs.errors import Busy, FailedPrecondition, LayerfsError
from layerfs.kernel.mounting import mounted
from layerfs.testing.driver_rules import active
from layerfs.testing.trees import contents, write
from layerfs_backends.devicemapper import DeviceMapperDriver
from tests.support import invariants
from tests.support.images import BASE, EDIT, SHRINK, write_layout
from tests.support.thin import MEBIBYTE, devices

pytestmark = [pytest.mark.guest, pytest.mark.driver("devicemapper")]


def test_five_hundred_clones_and_their_removal_in_any_order(driver: DeviceMapperDriver) -> None:
    driver.create(active(1))
    with mounted(driver.mounts(active(1))) as path:
        write(path, file="x")
    driver.commit(active(1))
    numbers = list(range(2, 502))
    for number in numbers:
        driver.create(active(number, 1))
    assert len(devices()) == 501
    random.Random(5).shuffle(numbers)
    for number in [*numbers[:250], 1, *numbers[250:]]:  # the layer itself in the middle
        driver.remove(SnapshotId(number))
        if number == 1:
            with mounted(driver.mounts(active(numbers[250], 1))) as path:
                assert contents(path) == {"file": "x"}
    assert list(driver.ids()) == []
    assert devices() == set()


def test_a_store_on_a_pool_of_its_own(fresh_dir: Path, tmp_path: Path) -> None:
    path = fresh_dir / "store"
    with layerfs.open(path, loop=layerfs.LoopVolume(512 * MEBIBYTE, "dm")) as store:
        assert store.driver.name == "devicemapper"
        assert (path / "devicemapper/data.img").stat().st_size == 512 * MEBIBYTE
        store.import_image(write_layout(tmp_path / "image", [BASE, EDIT, SHRINK]))
        clone = store.clone("test:1", "lasting")
        with clone.mounted() as root:
            write(root, kept="kept")
            with pytest.raises(Busy):
                store.detach()
        clone.snapshot("first")
        with clone.mounted() as root:
            (root / "kept").unlink()
        assert {change.path for change in clone.changes()} <= {b"."}  # whose time is another one
        tree = invariants.image_tree(store, "test:1")
        assert store.detach()
    assert devices() == set()
    with layerfs.open(path) as store:
        clone = store.get_clone("lasting")
        clone.rollback("first")
        with clone.mounted() as root:
            assert contents(root)["kept"] == "kept"
        committed = clone.commit("test:2")
        assert invariants.image_tree(store, "test:1") == tree
        assert invariants.image_tree(store, committed.digest) != tree
        with pytest.raises(FailedPrecondition, match="lasting"):
            store.remove_image("test:1")
        invariants.check_store(store)
        clone.remove()
        for name in ("test:1", "test:2"):
            store.remove_image(name)
        store.prune(store.plan_prune())
        assert store.snapshotter.infos() == []
    assert devices() == set()


def test_a_store_that_cannot_be_leaves_nothing(fresh_dir: Path) -> None:
    with pytest.raises(layerfs.InvalidArgument, match="no pool"):
        layerfs.open(fresh_dir / "store", driver="btrfs", loop=layerfs.LoopVolume(512 * MEBIBYTE, "dm"))
    with pytest.raises(LayerfsError):
        layerfs.open(fresh_dir / "store", driver="devicemapper", options={"device-size": "1M"})
    with suppress(FileNotFoundError):
        assert os.listdir(fresh_dir / "store") == []
    assert devices() == set()
