"""ZFS pools of the tests' own, made by ZFS's own commands, and drivers on them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerfs_backends.zfs.datasets import ZfsDriver
from layerfs_backends.zfs.driver import open_driver
from tests.support.drivers import workspace


def sh(*words: str | Path) -> str:
    """Run a command that must not fail, and return what it prints."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@contextmanager
def pool(name: str, size: int) -> Iterator[Path]:
    """Make a pool on a file, and give the file's directory."""
    with workspace(name) as path:
        with (path / "disk").open("wb") as file:
            file.truncate(size)
        sh("zpool", "create", "-o", "cachefile=none", "-O", "mountpoint=none", name, path / "disk")
        try:
            yield path
        finally:
            sh("zpool", "destroy", "-f", name)


def open_zfs(root: Path, **options: str) -> ZfsDriver:
    """Open the zfs driver."""
    driver = open_driver(root, options)
    assert isinstance(driver, ZfsDriver)
    return driver
