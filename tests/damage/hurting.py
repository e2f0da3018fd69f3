"""Reach into a store behind its back."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import layerfs
from layerfs.contract import DirectAccess


def directory(store: layerfs.Store, name: str) -> Path:
    """Return the directory of a snapshot."""
    if not isinstance(store.driver, DirectAccess):
        pytest.skip(f"{store.driver.name} keeps its snapshots where no hand reaches them")
    return store.driver.layer_root(store.snapshotter.snapshot(name)).path


@contextmanager
def writable(store: layerfs.Store, name: str) -> Iterator[Path]:
    """Give the directory of a committed snapshot for changes."""
    path = directory(store, name)
    if store.driver.name != "btrfs":
        yield path
        return
    _read_only(path, value="false")
    try:
        yield path
    finally:
        _read_only(path, value="true")


def _read_only(subvolume: Path, *, value: str) -> None:
    subprocess.run(["btrfs", "property", "set", "-f", subvolume, "ro", value], check=True)
