"""What the copy driver does beyond the contract."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs.contract import Mount, SnapshotId, Whiteouts
from layerfs.errors import InvalidArgument, NoSpace
from layerfs.kernel.mounting import mounted
from layerfs.testing.driver_rules import active, view
from layerfs_backends.copy import CopyDriver, open_driver

_MEBIBYTE = 1 << 20


def test_mounts() -> None:
    driver = CopyDriver(Path("/s"))
    assert driver.mounts(active(3, 2, 1)) == (Mount("bind", "/s/3", ("rbind", "rw")),)
    assert driver.mounts(view(1)) == (Mount("bind", "/s/1", ("rbind", "ro")),)


def test_a_view_shows_its_parent(tmp_path: Path) -> None:
    driver = open_driver(tmp_path / "c", {})
    driver.create(active(1))
    (tmp_path / "c/1/file").write_text("x", encoding="ascii")
    driver.create(view(2, 1))
    assert os.listdir(tmp_path / "c/2") == []
    assert driver.mounts(view(2, 1)) == (Mount("bind", str(tmp_path / "c/1"), ("rbind", "ro")),)
    assert isinstance(driver, CopyDriver)
    assert driver.layer_root(view(2, 1)).path == tmp_path / "c/1"
    assert driver.layer_root(active(1)).whiteouts is Whiteouts.REMOVE


def test_nobody_else_reaches_the_layers(tmp_path: Path) -> None:
    open_driver(tmp_path / "c", {})
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700


def test_it_has_no_options(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="reflink"):
        open_driver(tmp_path / "c", {"reflink": "always"})
    assert os.listdir(tmp_path) == []


@pytest.mark.root
def test_no_space_leaves_nothing(fresh_dir: Path) -> None:
    with mounted([Mount("tmpfs", "tmpfs", ("size=3m",))], fresh_dir):
        driver = open_driver(fresh_dir / "c", {})
        driver.create(active(1))
        (fresh_dir / "c/1/big").write_bytes(os.urandom(2 * _MEBIBYTE))
        driver.commit(active(1))
        with pytest.raises(NoSpace):
            driver.create(active(2, 1))
        assert list(driver.ids()) == [1]
        assert os.listdir(fresh_dir / "c") == ["1"]
        driver.remove(SnapshotId(1))


@pytest.mark.root
def test_copies_share_their_blocks_where_the_file_system_can(btrfs_dir: Path) -> None:
    driver = open_driver(btrfs_dir / "c", {})
    driver.create(active(1))
    (btrfs_dir / "c/1/big").write_bytes(os.urandom(64 * _MEBIBYTE))
    driver.commit(active(1))
    before = os.statvfs(btrfs_dir)
    driver.create(active(2, 1))
    after = os.statvfs(btrfs_dir)
    assert (before.f_bfree - after.f_bfree) * before.f_frsize < 8 * _MEBIBYTE
    assert (btrfs_dir / "c/2/big").read_bytes() == (btrfs_dir / "c/1/big").read_bytes()
    for number in (2, 1):
        driver.remove(SnapshotId(number))
