"""Places: file systems on loop devices, fresh and of one size, on which cells lie side by side.

Each is made in a sparse file below the working directory. Where that is in memory, what is measured is the work of
drivers and file systems without a disk's own time; the bytes at the device are counted either way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from layerfs import process, tree
from layerfs.contract import Mount
from layerfs.errors import LayerfsError, Unsupported
from layerfs.kernel import loop, mountinfo, mounting, syscalls, zpool
from layerfs.kernel.loop import LoopDevice
from layerfs_bench import counters
from layerfs_bench.counters import Device, Traffic
from layerfs_bench.results import Place

FILE_SYSTEMS = ("ext4", "xfs", "btrfs", "zfs", "dm")
"""What places can have; "zfs" is a pool on a loop device, "dm" an ext4 beside two devices for a thin pool."""

_MKFS_OPTIONS = {
    # The kernel would go on writing inode tables in the background, among the bytes that are counted.
    "ext4": ("-E", "lazy_itable_init=0,lazy_journal_init=0,assume_storage_prezeroed=1,nodiscard"),
}
_VERSION = {
    "ext4": ("mkfs.ext4", "-V"),
    "xfs": ("mkfs.xfs", "-V"),
    "btrfs": ("mkfs.btrfs", "--version"),
    "zfs": ("zfs", "--version"),
}
_MOUNT_OPTIONS = {"btrfs": ("user_subvol_rm_allowed",)}
_TMPFS = "tmpfs"


@dataclass(frozen=True, slots=True)
class Ground:
    """A place to put stores on: its root directory, the device whose bytes are counted, and what results say of it."""

    path: Path
    devices: tuple[Device, ...]
    place: Place
    options: tuple[tuple[str, str], ...] = ()
    """What the driver must be told to find its devices; they are another run's no more, so no part of the cell."""
    forget: Callable[[], str] | None = None
    """Make the kernel forget all that it knows of the place, of which nothing may be in use, and say how."""

    def traffic(self) -> Traffic | None:
        """Return the bytes that went over all devices so far, or None where there is none to be seen."""
        if not self.devices:
            return None
        return sum((device.traffic() for device in self.devices), start=Traffic(0, 0))


@contextmanager
def made(file_system: str, work: Path, size: int) -> Iterator[Ground]:
    """Make a file system of ``size`` bytes below ``work``, and take it away when the block ends.

    Raise `Unsupported` where the kernel or the tools lack it, `PermissionDenied` without root.
    """
    target = work / file_system
    with ExitStack() as undo:
        target.mkdir(mode=0o700)
        undo.callback(target.rmdir)
        attached = undo.enter_context(_attached(work / f"{file_system}.img", size))
        options: tuple[tuple[str, str], ...] = ()
        forget: Callable[[], str] | None = None
        devices = [Device(Path("/sys/block", attached.path.name))]
        if file_system == "zfs":
            undo.enter_context(_pool(attached.path, target))
        elif file_system == "dm":
            _check_thin_pools()
            parts = {name: undo.enter_context(_attached(work / f"dm-{name}.img", size)) for name in _POOL}
            options = tuple((name, str(part.path)) for name, part in parts.items())
            devices += [Device(Path("/sys/block", part.path.name)) for part in parts.values()]
            undo.enter_context(_mounted("ext4", attached.path, target))
            forget = _mounted_by_itself
        else:
            undo.enter_context(_mounted(file_system, attached.path, target))
            forget = partial(_remount, file_system, attached.path, target)
        yield Ground(
            target,
            tuple(devices),
            _described(_BELOW.get(file_system, file_system), target, devices, work),
            options,
            forget,
        )


_POOL = ("data", "metadata")
"""The devices of a thin pool, by the names of the driver's options."""
_BELOW = {"dm": "ext4"}


def may_exist(file_system: str) -> bool:
    """Tell whether the kernel shows signs of what a place needs; making it will tell for certain."""
    return file_system not in _SIGNS or os.path.exists(_SIGNS[file_system])


_SIGNS = {"zfs": "/dev/zfs", "dm": "/dev/mapper/control"}


def _check_thin_pools() -> None:
    from layerfs.kernel.dm import Mapper  # noqa: PLC0415  few hosts have device-mapper

    Mapper().close()


@contextmanager
def _attached(image: Path, size: int) -> Iterator[LoopDevice]:
    """Give a loop device on a new file, which is deleted at the end."""
    loop.create_image(image, size)
    try:
        with loop.attach(image) as attached:
            yield attached
    finally:
        image.unlink()


def _remount(file_system: str, device: Path, target: Path) -> str:
    """Unmount a place and mount it again: what the kernel knew of its files went with it. Raise `Busy`."""
    mounting.unmount(target)
    _mount(file_system, device, target)
    return "the file system below mounted anew"


def _mounted_by_itself() -> str:
    return "the root has a file system of its own, mounted anew"


def _mount(file_system: str, device: Path, target: Path) -> None:
    mounting.mount([Mount(file_system, str(device), _MOUNT_OPTIONS.get(file_system, ()))], target)


@contextmanager
def _mounted(file_system: str, device: Path, target: Path) -> Iterator[None]:
    loop.make_file_system(device, file_system, options=_MKFS_OPTIONS.get(file_system, ()))
    _mount(file_system, device, target)
    try:
        yield
    finally:
        _unmount(target)


@contextmanager
def _pool(device: Path, target: Path) -> Iterator[None]:
    name = zpool.create_on(device)
    try:
        mounting.mount([Mount("zfs", name)], target)
        try:
            yield
        finally:
            _unmount(target)
    finally:
        zpool.destroy(name)


def _unmount(target: Path) -> None:
    """Unmount everything at and below a place, the topmost first; what is still in use goes lazily."""
    for point in reversed((*mountinfo.at(target), *mountinfo.below(target))):
        with suppress(LayerfsError):  # gone already: it stood on another one
            try:
                mounting.unmount(point.path)
            except LayerfsError:
                mounting.unmount(point.path, lazy=True)


def clear(path: Path) -> None:
    """Unmount everything below a directory that killed processes left; what stands at it stays."""
    for point in reversed(mountinfo.below(path)):
        with suppress(LayerfsError):
            mounting.unmount(point.path, lazy=True)


def existing(path: Path) -> Ground:
    """Return the place that a directory of the user's lies on, as it is."""
    device = counters.device_of(path)
    devices = (device,) if device else ()
    return Ground(path, devices, _described(file_system_of(path), path, devices, None))


def has_reflink(path: Path) -> bool:
    """Tell whether files below ``path`` can share their data (ioctl_ficlone(2)), by trying it."""
    first, second = path / ".reflink-from", path / ".reflink-to"
    try:
        first.write_bytes(bytes(4096))
        with first.open("rb") as source, second.open("wb") as target:
            syscalls.ficlone(target.fileno(), source.fileno())
    except OSError:
        return False
    else:
        return True
    finally:
        for name in (first, second):
            name.unlink(missing_ok=True)


def _described(file_system: str, path: Path, devices: Sequence[Device], work: Path | None) -> Place:
    point = _point(path)
    found = os.statvfs(path)
    return Place(
        file_system,
        has_reflink(path),
        (*point.options, *point.super_options) if point else (),
        " ".join(device.name for device in devices),
        _backing(work) if work else "the user's own",
        found.f_blocks * found.f_frsize,
        tool_version(file_system),
    )


def _backing(work: Path) -> str:
    point = _point(work)
    if point is None:
        return "a file"
    if point.type == _TMPFS:
        return "a file in memory (tmpfs)"
    return f"a file on {point.type} on {point.source}"


def _point(path: Path) -> mountinfo.MountPoint | None:
    """Return the mount that a path lies on."""
    place = path.resolve()
    holding = [point for point in mountinfo.mount_points() if place.is_relative_to(point.path)]
    return max(holding, key=lambda point: len(point.path.parts), default=None)


def tool_version(file_system: str) -> str:
    """Return what the tool that makes a file system says of its version, or "" where it says nothing."""
    if file_system not in _VERSION:
        return ""
    try:
        said = process.run(_VERSION[file_system], package="")
    except (LayerfsError, Unsupported):
        return ""
    return said.strip().partition("\n")[0]


def file_system_of(path: Path) -> str:
    """Return the type of the file system that holds ``path``: "ext4"."""
    point = _point(path)
    return point.type if point else "unknown"


def discard(path: Path) -> None:
    """Delete what is below a directory of ours, mounts first."""
    clear(path)
    tree.remove_tree(path)
