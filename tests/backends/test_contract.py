"""The contract, on each of our drivers."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfs.testing import DriverContract
from layerfs_backends import btrfs, copy, overlay2
from layerfs_fuse import driver as fuse


@pytest.mark.root
class TestCopy(DriverContract):
    factory = staticmethod(copy.open_driver)

    @pytest.fixture
    def driver_root(self, fresh_dir: Path) -> Path:
        return fresh_dir / "copy"


@pytest.mark.root
class TestOverlay2(DriverContract):
    factory = staticmethod(overlay2.open_driver)

    @pytest.fixture
    def driver_root(self, fresh_dir: Path) -> Path:
        return fresh_dir / "overlay2"


@pytest.mark.root
class TestBtrfs(DriverContract):
    factory = staticmethod(btrfs.open_driver)

    @pytest.fixture
    def driver_root(self, btrfs_dir: Path) -> Path:
        return btrfs_dir / "btrfs"


@pytest.mark.root
class TestFuse(DriverContract):
    factory = staticmethod(fuse.open_driver)
    limits = frozenset({"size", "inodes"})

    @pytest.fixture
    def driver_root(self, fresh_dir: Path) -> Path:
        return fresh_dir / "fuse"
