"""The service as a process of its own, on each driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fuse_device import fuse_device
from tests.support.serving import Serving

__all__ = ["driver_name", "fuse_device", "place", "serving"]


@pytest.fixture
def driver_name(request: pytest.FixtureRequest) -> str:
    """Give the driver that the test is marked or parametrized with."""
    name: str = getattr(request, "param", "overlay2")
    return name


@pytest.fixture
def place(driver_name: str, fresh_dir: Path, request: pytest.FixtureRequest) -> Path:
    """Give an empty directory on a file system that suits the driver."""
    if driver_name == "fuse":
        request.getfixturevalue("fuse_device")
    if driver_name != "btrfs":
        return fresh_dir
    mount: Path = request.getfixturevalue("btrfs_mount")
    path = mount / fresh_dir.name
    path.mkdir()
    return path


@pytest.fixture
def serving(place: Path, driver_name: str) -> Iterator[Serving]:
    """Give the service."""
    with Serving(place, driver_name) as service:
        yield service
