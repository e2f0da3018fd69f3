"""The quotas of drivers where they hold: the rules of `layerfs.testing.quota_rules`, and what is each driver's own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from layerfs.contract import Driver, Quota, Quotas
from layerfs.errors import Busy, InvalidArgument, Unsupported
from layerfs.testing import QuotaContract
from layerfs.testing.driver_rules import active
from layerfs.testing.fixtures import Shown
from layerfs.testing.quota_rules import fill, limited
from layerfs_backends import btrfs
from layerfs_fuse import driver as fuse
from tests.support import drivers

_MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def counting_btrfs() -> Iterator[Path]:
    with drivers.btrfs() as mount:
        yield mount


@pytest.mark.root
class TestBtrfs(QuotaContract):
    factory = staticmethod(btrfs.open_driver)
    options: ClassVar[Mapping[str, str]] = {"quotas": "on"}
    limits: ClassVar[frozenset[str]] = frozenset({"size"})
    block: ClassVar[int] = 16 << 10  # the node of a new subvolume

    @pytest.fixture
    def driver_root(self, counting_btrfs: Path, tmp_path: Path) -> Path:
        return counting_btrfs / tmp_path.name

    def test_options_are_checked(self, driver_root: Path) -> None:
        with pytest.raises(InvalidArgument, match="quotas"):
            btrfs.open_driver(driver_root, {"quotas": "off"})


@pytest.fixture(scope="module")
def ext4() -> Iterator[Path]:
    with drivers.file_system("ext4") as mount:
        yield mount


@pytest.mark.root
class TestFuse(QuotaContract):
    factory = staticmethod(fuse.open_driver)
    limits: ClassVar[frozenset[str]] = frozenset({"size", "inodes"})

    @pytest.fixture
    def driver_root(self, fresh_dir: Path) -> Path:
        return fresh_dir / "fuse"

    def test_df_shows_it(self, driver: Driver, shown: Shown) -> None:
        snapshot = limited(1, Quota(size=8 << 20, inodes=100))
        driver.create(snapshot)
        with shown(snapshot) as root:
            fill(root / "file", 2 << 20)
            counts = os.statvfs(root)
            assert counts.f_blocks * counts.f_frsize == 8 << 20
            assert counts.f_bavail * counts.f_frsize <= 6 << 20
            assert (counts.f_files, counts.f_ffree) == (100, 98)

    def test_what_is_open_without_a_name_counts(self, driver: Driver, shown: Shown) -> None:
        snapshot = limited(1, Quota(size=8 << 20))
        driver.create(snapshot)
        with shown(snapshot) as root:
            with (root / "file").open("wb", buffering=0) as file:
                file.write(bytes(6 << 20))
                (root / "file").unlink()
                assert fill(root / "other") < 3 << 20
            (root / "other").unlink()
            assert fill(root / "other", 6 << 20) == 6 << 20

    def test_holes_are_free_and_filling_them_is_not(self, driver: Driver, shown: Shown) -> None:
        snapshot = limited(1, Quota(size=8 << 20))
        driver.create(snapshot)
        with shown(snapshot) as root, (root / "sparse").open("wb", buffering=0) as file:
            file.truncate(1 << 30)
            os.posix_fallocate(file.fileno(), 4 << 20, 4 << 20)
            with pytest.raises(OSError, match="quota"):
                os.posix_fallocate(file.fileno(), 16 << 20, 8 << 20)
            assert os.pwrite(file.fileno(), b"x" * (1 << 20), 5 << 20) == 1 << 20
            written = 0
            for piece in range(4):  # what does not fit whole is written in part
                written += os.pwrite(file.fileno(), b"x" * (1 << 20), (64 + piece) << 20)
            assert 4 * _MEBIBYTE - (64 << 10) <= written <= 4 * _MEBIBYTE
            with pytest.raises(OSError, match="quota"):
                os.pwrite(file.fileno(), b"x" * (1 << 20), 80 << 20)
            assert os.pwrite(file.fileno(), b"y" * (1 << 20), 64 << 20) == 1 << 20  # its blocks are there already

    def test_a_union_that_does_not_count_is_not_relied_on(self, driver: Driver, shown: Shown) -> None:
        driver.create(active(1))
        assert isinstance(driver, Quotas)
        with shown(active(1)), pytest.raises(Busy) as caught:
            driver.set_quota(limited(1, Quota(size=1 << 20)))
        assert caught.value.hint

    def test_fusepy_is_refused(self, driver_root: Path) -> None:
        driver = fuse.open_driver(driver_root, {"server": "fusepy"})
        with pytest.raises(Unsupported, match="fusepy"):
            driver.create(limited(1, Quota(size=1 << 20)))
        assert list(driver.ids()) == []


class TestFuseOnExt4(TestFuse):
    """Where directories take blocks, and files more than they hold."""

    @pytest.fixture
    def driver_root(self, ext4: Path, tmp_path: Path) -> Path:
        return ext4 / tmp_path.name


class TestFuseThatRedirects(TestFuse):
    options: ClassVar[Mapping[str, str]] = {"write": "redirect"}
    block: ClassVar[int] = 64 << 10  # what is stored of a lower file at a time
