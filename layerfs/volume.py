"""The volume of a store: a file system of its own in a file, for people whose disk has none that their driver needs.

The file is ``<store>/volume.img``; it is mounted at the driver's directory, ``<store>/<driver>``, whenever the store is
opened, and stays so for other processes and the next opening until `detach`. For ZFS it holds a pool, whose root file
system is mounted there.

A driver that manages whole disks keeps a *pool* in files of its own instead: it gets the size as its option ``size``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from layerfs.contract import Mount
from layerfs.errors import Busy, InvalidArgument
from layerfs.kernel import loop, mountinfo, mounting, zpool
from layerfs.kernel.mountinfo import MountPoint

IMAGE = "volume.img"

_DRIVERS: Mapping[str, str] = {"btrfs": "btrfs", "ext4": "overlay2", "xfs": "overlay2", "zfs": "zfs"}
"""The driver that a file system is made for, unless another one is named."""
_POOLS: Mapping[str, str] = {"dm": "devicemapper"}
"""The driver of each kind of pool; no other can have it."""
_OPTIONS: Mapping[str, tuple[str, ...]] = {"btrfs": ("user_subvol_rm_allowed",)}
"""Mount options; btrfs lets only root remove subvolumes unless told otherwise (btrfs(5))."""
_SMALLEST = 128 << 20
"""Bytes: mkfs.btrfs needs 109 MiB."""


@dataclass(frozen=True, slots=True)
class LoopVolume:
    """What a new volume is to be: its size in bytes, of which the file takes only what is used, and its file system."""

    size: int
    file_system: str

    def driver(self, asked: str) -> str:
        """Return the driver that works on it, which is the one asked for unless that is "auto"."""
        if self.file_system not in {**_DRIVERS, **_POOLS}:
            raise InvalidArgument(
                f"a volume cannot have the file system {self.file_system!r}",
                hint=f"one of {', '.join((*_DRIVERS, *_POOLS))}",
            )
        if self.size < _SMALLEST:
            raise InvalidArgument(f"a volume of {self.size} bytes is too small", hint="128M is the least")
        if self.is_pool and asked not in {"auto", _POOLS[self.file_system]}:
            raise InvalidArgument(
                f"the driver {asked} has no pool of the kind {self.file_system!r}", hint="leave the driver out"
            )
        return {**_DRIVERS, **_POOLS}[self.file_system] if asked == "auto" else asked

    @property
    def is_pool(self) -> bool:
        """Tell whether the driver makes the files itself, with `options`."""
        return self.file_system in _POOLS

    @property
    def options(self) -> Mapping[str, str]:
        """Return the driver's options by which it gets a pool of this size."""
        return {"size": str(self.size)} if self.is_pool else {}

    def create(self, place: Path) -> None:
        """Make the file in a store's directory and the file system in it; leave nothing on failure."""
        image = place / IMAGE
        loop.create_image(image, self.size)
        try:
            if self.file_system == "zfs":
                zpool.create(image)
            else:
                loop.make_file_system(image, self.file_system)
        except BaseException:
            remove(place)
            raise


def remove(place: Path) -> None:
    """Delete the files of a store's volume, which is detached; what is gone already is no error."""
    for path in (place / IMAGE, zpool.record(place / IMAGE)):
        path.unlink(missing_ok=True)


def attach(place: Path, driver: str, file_system: str) -> None:
    """Mount a store's volume unless that is done; raise `PermissionDenied` without root."""
    target = place / driver
    if mountinfo.at(target):
        return
    target.mkdir(mode=0o700, exist_ok=True)
    mount = Mount(file_system, "", _OPTIONS.get(file_system, ()))
    if file_system == "zfs":
        mounting.mount([replace(mount, source=zpool.attach(place / IMAGE))], target)
    else:
        _attach_loop(mount, place / IMAGE, target)
    # The root of the new file system, not the directory below it, decides who may enter.
    target.chmod(0o700)


def _attach_loop(mount: Mount, image: Path, target: Path) -> None:
    # One device for one file: two would be two file systems that know nothing of each other's writes.
    for device in loop.find(image):
        mounting.mount([replace(mount, source=str(device))], target)
        return
    with loop.attach(image) as attached:
        mounting.mount([replace(mount, source=str(attached.path))], target)


def detach(place: Path, driver: str) -> bool:
    """Unmount a store's volume; the loop device goes with it. Return False where it was not mounted, raise `Busy`."""
    target = place / driver
    volumes = mountinfo.at(target)
    if volumes:
        _detach(place, target, volumes[-1])
    if zpool.record(place / IMAGE).exists():
        return zpool.detach(place / IMAGE)
    return bool(volumes)


def _detach(place: Path, target: Path, volume: MountPoint) -> None:
    for point in mountinfo.mount_points():
        # The kernel would allow it: whatever stands on a file system keeps it alive after its own mount is gone.
        shown = (point.upper, *point.lowers)
        inside = any(Path(directory).is_relative_to(target) for directory in shown if directory)
        if volume.type == "zfs":  # each of its datasets is a file system by itself
            inside |= point.type == "zfs" and point.source.startswith(f"{volume.source}/")
        if inside or (point.device == volume.device and point.path != target):
            raise Busy(f"{point.path} shows what is on the volume of {place}", hint=f"layerfs umount {point.path}")
    mounting.unmount(target)
