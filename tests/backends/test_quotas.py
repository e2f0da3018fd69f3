"""The quotas of drivers where they hold: the rules of `layerfs.testing.quota_rules`, and what is each driver's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from layerfs.errors import InvalidArgument
from layerfs.testing import QuotaContract
from layerfs_backends import btrfs
from tests.support import drivers


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
