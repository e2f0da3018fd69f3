"""Thin pools as the kernel and dmsetup see them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from layerfs_backends.devicemapper import DeviceMapperDriver

Open = Callable[[], DeviceMapperDriver]

MEBIBYTE = 1 << 20
OPTIONS = {"size": "1G", "device-size": "512M"}


def devices() -> set[str]:
    """Return the names of our devices, as dmsetup has them."""
    said = subprocess.run(["dmsetup", "ls"], check=True, capture_output=True, text=True).stdout
    return {line.split()[0] for line in said.splitlines() if line.startswith("layerfs-")}


def message(text: str) -> None:
    """Send the pool a message."""
    subprocess.run(["dmsetup", "message", pool_device(), "0", text], check=True, capture_output=True)


def pool_device() -> str:
    """Return the name of our only pool."""
    (pool,) = (name for name in devices() if name.endswith(("-pool", "-starting")))
    return pool


def pool_number() -> str:
    """Return the numbers of its device, as tables name it."""
    command = ["dmsetup", "info", "-c", "--noheadings", "--separator", ":", "-o", "major,minor", pool_device()]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def used_blocks() -> int:
    """Return how many data blocks our pool has given out, as its status tells."""
    said = subprocess.run(["dmsetup", "status", pool_device()], check=True, capture_output=True, text=True).stdout
    return int(said.split()[5].partition("/")[0])


def mapped_blocks() -> dict[int, int]:
    """Return how many blocks each thin device of our pool maps, as thin_ls reads them from its metadata."""
    table = subprocess.run(["dmsetup", "table", pool_device()], check=True, capture_output=True, text=True).stdout
    metadata = Path(f"/sys/dev/block/{table.split()[3]}").resolve().name
    message("reserve_metadata_snap")
    try:
        command = ["thin_ls", "-m", "--no-headers", "--format", "DEV,MAPPED_BLOCKS", f"/dev/{metadata}"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    finally:
        message("release_metadata_snap")
    return {int(device): int(blocks) for device, blocks in (line.split() for line in said.splitlines())}


def power_cut() -> None:
    """Take all our devices from the kernel, the pool last: nothing is settled."""
    for name in sorted(devices()):
        subprocess.run(["dmsetup", "remove", name], check=True)
