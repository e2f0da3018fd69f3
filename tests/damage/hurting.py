"""Reach into a store behind its back."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import layerfs
from layerfs.contract import DirectAccess, Mount
from layerfs.kernel import mounting
from layerfs_backends.devicemapper import DeviceMapperDriver
from tests.support import thin
from tests.support.invariants import tree_digest


def directory(store: layerfs.Store, name: str) -> Path:
    """Return the directory of a snapshot."""
    if not isinstance(store.driver, DirectAccess):
        pytest.skip(f"{store.driver.name} keeps its snapshots where no hand reaches them")
    return store.driver.layer_root(store.snapshotter.snapshot(name)).path


@contextmanager
def writable(store: layerfs.Store, name: str) -> Iterator[Path]:
    """Give the directory of a committed snapshot for changes, or its file system."""
    if isinstance(store.driver, DeviceMapperDriver):
        with _thin_device(store.driver, store.snapshotter.snapshot(name).id) as root:
            yield root
        return
    path = directory(store, name)
    if store.driver.name != "btrfs":
        yield path
        return
    _read_only(path, value="false")
    try:
        yield path
    finally:
        _read_only(path, value="true")


@contextmanager
def _thin_device(driver: DeviceMapperDriver, number: int) -> Iterator[Path]:
    """Mount a thin device that the kernel does not show, for it was committed."""
    plan, name = driver._pool.plan, f"by-hand-{number}"
    table = f"0 {plan.device_size >> 9} thin {thin.pool_number()} {number}"
    subprocess.run(["dmsetup", "create", name, "--table", table], check=True)
    try:
        with mounting.mounted([Mount(plan.file_system, f"/dev/mapper/{name}", ("rw",))]) as root:
            yield root
    finally:
        subprocess.run(["dmsetup", "remove", name], check=True)


def _read_only(subvolume: Path, *, value: str) -> None:
    subprocess.run(["btrfs", "property", "set", "-f", subvolume, "ro", value], check=True)


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file, and leave its mode and its times as they are."""
    status = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(status.st_size // 2)
        byte = file.read(1)[0]
        file.seek(status.st_size // 2)
        file.write(bytes([byte ^ 4]))
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@contextmanager
def sql(store: layerfs.Store) -> Iterator[sqlite3.Connection]:
    """Give the database, without the rules that hold its tables together, and commit."""
    with closing(sqlite3.connect(store.path / "meta.db")) as connection, connection:
        yield connection


def trees(store: layerfs.Store) -> dict[str, str]:
    """Return what the image shows, and what the clone "work" and its snapshot "before" hold."""
    found: dict[str, str] = {}
    with store.clone("test:1", "fresh") as fresh, fresh.mounted() as root:
        found["image"] = tree_digest(root)
    for key in ("clone/work@before", "clone/work"):
        with store._parts.tree(key) as root:
            found[key] = tree_digest(root)
    return found
