"""Stores whose snapshots live on a file system in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

import layerfs
from layerfs import LoopVolume
from layerfs.kernel import loop, mountinfo
from tests.support import invariants
from tests.support.images import BASE, write_layout

pytestmark = pytest.mark.root

SIZE = 512 << 20


@pytest.mark.parametrize(
    ("file_system", "driver"),
    [
        ("btrfs", "btrfs"),
        ("ext4", "overlay2"),
        ("xfs", "overlay2"),
        pytest.param("zfs", "zfs", marks=pytest.mark.guest),
    ],
)
def test_a_store_on_a_volume_comes_and_goes(file_system: str, driver: str, fresh_dir: Path, tmp_path: Path) -> None:
    path, target = fresh_dir / "store", tmp_path / "target"
    target.mkdir()
    with layerfs.open(path, loop=LoopVolume(SIZE, file_system)) as store:
        try:
            assert store.driver.name == driver
            assert mountinfo.at(path / driver)[-1].type == file_system
            store.import_image(write_layout(tmp_path / "image", [BASE]))
            clone = store.clone("test:1", "lasting")
            clone.mount(target)
            try:
                (target / "kept").write_text("kept")
                with pytest.raises(layerfs.Busy, match=str(target)):
                    store.detach()
            finally:
                clone.unmount()
        finally:
            assert store.detach()
    assert loop.find(path / "volume.img") == ()
    assert not mountinfo.at(path / driver)
    with layerfs.open(path) as store:
        try:
            with layerfs.open(path) as other:
                assert len(loop.find(path / "volume.img")) == (file_system != "zfs")
                with other.get_clone("lasting").mounted() as root:
                    assert (root / "kept").read_text() == "kept"
            invariants.check_store(store)
        finally:
            assert store.detach()
    assert loop.find(path / "volume.img") == ()


def test_volumes_that_cannot_be(fresh_dir: Path) -> None:
    with pytest.raises(layerfs.InvalidArgument, match="'floppy'"):
        layerfs.open(fresh_dir / "store", loop=LoopVolume(SIZE, "floppy"))
    with pytest.raises(layerfs.InvalidArgument, match="too small"):
        layerfs.open(fresh_dir / "store", loop=LoopVolume(1 << 20, "btrfs"))
    with pytest.raises(layerfs.Unsupported, match="not on btrfs"):
        layerfs.open(fresh_dir / "store", driver="btrfs", loop=LoopVolume(SIZE, "ext4"))
    assert not (fresh_dir / "store").exists()


def test_a_store_in_a_directory_has_nothing_to_unmount(fresh_dir: Path) -> None:
    with layerfs.open(fresh_dir / "store", driver="copy") as store:
        assert not store.detach()
        with pytest.raises(layerfs.FailedPrecondition, match="is a store already"):
            layerfs.open(fresh_dir / "store", loop=LoopVolume(SIZE, "btrfs"))
