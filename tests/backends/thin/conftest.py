"""A pool for the tests of a module, and the driver on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from layerfs.kernel import loop
from layerfs_backends.devicemapper import DeviceMapperDriver, open_driver
from tests.support import drivers
from tests.support.thin import OPTIONS, Open, devices


@pytest.fixture(scope="module")
def lasting_root() -> Iterator[Path]:
    """Give a driver's directory for the whole module: a new pool takes a second, one that is there nothing."""
    with drivers.workspace("dm") as path:
        yield path / "devicemapper"


@pytest.fixture
def root(lasting_root: Path) -> Iterator[Path]:
    """Give the directory; in the end the driver can remove all, and the kernel has nothing of it any more."""
    yield lasting_root
    driver = open_driver(lasting_root, OPTIONS)
    for number in sorted(driver.ids(), reverse=True):
        driver.remove(number)
    driver.close()
    assert devices() == set()
    assert loop.find(lasting_root / "data.img") == ()


@pytest.fixture
def opened(root: Path) -> Iterator[Open]:
    """Give a function that opens the driver."""
    with ExitStack() as stack:

        def make() -> DeviceMapperDriver:
            driver = open_driver(root, OPTIONS)
            assert isinstance(driver, DeviceMapperDriver)
            stack.callback(driver.close)
            return driver

        yield make


@pytest.fixture
def driver(opened: Open) -> DeviceMapperDriver:
    return opened()
