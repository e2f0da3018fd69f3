"""Quotas of thin devices: projects of the file systems on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

import pytest

from layerfs.contract import Driver, Quota, Quotas
from layerfs.errors import FailedPrecondition, InvalidArgument, Unsupported
from layerfs.testing import QuotaContract
from layerfs.testing.quota_rules import limited
from layerfs_backends.devicemapper import open_driver
from tests.support import capabilities, drivers
from tests.support.thin import OPTIONS

pytestmark = [pytest.mark.guest("uml"), pytest.mark.driver("devicemapper")]


@pytest.fixture(scope="class")
def pool() -> Iterator[Path]:
    """Give one pool to all tests of a class: making one takes a second here."""
    with drivers.workspace("dm") as path:
        yield path / "devicemapper"


class TestExt4(QuotaContract):
    factory = staticmethod(open_driver)
    options: ClassVar[Mapping[str, str]] = OPTIONS | {"quotas": "on"}
    limits: ClassVar[frozenset[str]] = frozenset({"size", "inodes"})
    rewrites: ClassVar[bool] = False

    @pytest.fixture
    def driver_root(self, pool: Path) -> Path:
        return pool

    @staticmethod
    def writer() -> AbstractContextManager[None]:
        """Write as containers do: ext4 lets those pass that may pass all limits of resources."""
        return capabilities.without(capabilities.SYS_RESOURCE)


class TestXfs(TestExt4):
    options: ClassVar[Mapping[str, str]] = OPTIONS | {"quotas": "on", "fs": "xfs"}


def test_a_pool_without_them_says_so(pool: Path) -> None:
    driver: Driver = open_driver(pool, OPTIONS)
    assert isinstance(driver, Quotas)
    with pytest.raises(Unsupported, match="without quotas") as caught:
        driver.create(limited(1, Quota(size=1 << 20)))
    assert "quotas=on" in (caught.value.hint or "")
    assert list(driver.ids()) == []
    driver.close()
    with pytest.raises(FailedPrecondition, match="quotas=off"):
        open_driver(pool, OPTIONS | {"quotas": "on"})
    with pytest.raises(InvalidArgument, match="quotas"):
        open_driver(pool, OPTIONS | {"quotas": "yes"})
