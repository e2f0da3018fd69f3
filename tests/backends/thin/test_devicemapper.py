"""The contract on the devicemapper driver, with both of its file systems."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.contract import Driver
from layerfs.kernel.mounting import mounted
from layerfs.testing import DriverContract
from layerfs.testing.driver_rules import DriverRules, active
from layerfs.testing.trees import contents, write
from layerfs_backends.devicemapper import open_driver
from tests.support import drivers
from tests.support.thin import OPTIONS

pytestmark = [pytest.mark.guest, pytest.mark.driver("devicemapper")]


class TestDevicemapper(DriverContract):
    factory = staticmethod(open_driver)
    options = OPTIONS
    histories = 4  # each has a pool of its own, which takes seconds in the guest

    @pytest.fixture
    def driver_root(self, root: Path) -> Path:
        return root


@pytest.fixture(scope="module")
def xfs_root() -> Iterator[Path]:
    """Give one pool to all of them: making an xfs takes seconds here."""
    with drivers.workspace("dm") as path:
        yield path / "devicemapper"


class TestXfs(DriverRules):
    """The other file system; what is above it is the same."""

    factory = staticmethod(open_driver)
    options = OPTIONS | {"fs": "xfs"}

    @pytest.fixture
    def driver_root(self, xfs_root: Path) -> Path:
        return xfs_root

    def test_two_of_one_parent_are_mounted_at_once(self, driver: Driver) -> None:
        """They have the same UUID, which xfs refuses unless told ("nouuid")."""
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            write(path, one="1")
        driver.commit(active(1))
        driver.create(active(2, 1))
        driver.create(active(3, 1))
        with mounted(driver.mounts(active(2, 1))) as path, mounted(driver.mounts(active(3, 1))) as other:
            (path / "one").unlink()
            write(path, two="2")
            write(other, three="3")
            assert set(contents(path)) == {"two"}
            assert set(contents(other)) == {"one", "three"}
        before = driver.usage(active(3, 1))
        with mounted(driver.mounts(active(3, 1))) as path:
            write(path, four="4")
        assert driver.usage(active(3, 1)).inodes == before.inodes + 1
