"""Where the drivers of these tests keep their snapshots."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.register_assert_rewrite("layerfs.testing")


@pytest.fixture
def btrfs_dir(btrfs_mount: Path, request: pytest.FixtureRequest) -> Path:
    """Give an empty directory on btrfs."""
    name = re.sub(r"\W+", "-", request.node.nodeid)[-200:]
    path = btrfs_mount / name
    path.mkdir()
    return path


@pytest.fixture
def zfs_dir(zfs_mount: Path, request: pytest.FixtureRequest) -> Path:
    """Give an empty directory on ZFS."""
    name = re.sub(r"\W+", "-", request.node.nodeid)[-200:]
    path = zfs_mount / name
    path.mkdir()
    return path
