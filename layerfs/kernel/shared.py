"""Mounts that several snapshots share, and where a snapshot is mounted now.

A *shared* mount is a read-only overlay of many layers that stands below the small overlays of many clones
(`layerfs.contract.Mount.target`). It is mounted by the first that needs it and unmounted when no overlay has it as a
lower directory. A lock on the directory that holds its place covers both, and the mount of whatever stands on it:
otherwise a release between the two would leave an empty directory in the place of the layers.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from layerfs.contract import Mount
from layerfs.errors import FailedPrecondition, os_error
from layerfs.kernel import mountinfo, syscalls
from layerfs.kernel.mountinfo import MountPoint
from layerfs.kernel.options import parse, parse_overlay
from layerfs.kernel.overlay import opened


@contextmanager
def locked(mounts: Sequence[Mount]) -> Iterator[None]:
    """Hold the locks of all shared places of ``mounts``, making their directories (0700) where they are missing."""
    places = sorted({os.path.dirname(mount.target) for mount in mounts if mount.target})
    with ExitStack() as stack:
        for place in places:
            try:
                os.makedirs(place, mode=0o700, exist_ok=True)
                fd = stack.enter_context(opened(os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)))
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError as error:
                raise os_error("lock the place of a shared mount", error) from error
        yield


def is_there(mount: Mount) -> bool:
    """Tell whether a shared mount stands at its place; raise `FailedPrecondition` where another one does."""
    points = mountinfo.at(Path(mount.target))
    if not points:
        return False
    if not _shows(points[-1], mount):
        raise FailedPrecondition(
            f"{mount.target} is the place of a shared mount, and something else is mounted there",
            hint=f"umount {mount.target}",
        )
    return True


def release_shared(mounts: Sequence[Mount]) -> None:
    """Unmount those shared mounts of ``mounts`` that no overlay uses as a lower directory any more."""
    if not any(mount.target for mount in mounts):
        return
    with locked(mounts):
        used = {lower for point in mountinfo.mount_points() if point.type == "overlay" for lower in point.lowers}
        for mount in reversed(mounts):
            place = os.path.realpath(mount.target) if mount.target else ""
            if place and place not in used and mount.target not in used and is_there(mount):
                _unmount(place)


def _unmount(place: str) -> None:
    try:
        syscalls.umount(os.fsencode(place), syscalls.UMOUNT_NOFOLLOW)
    except OSError as error:
        raise os_error("unmount what no clone uses any more", error) from error


def users(mounts: Sequence[Mount]) -> list[MountPoint]:
    """Return where the last of ``mounts``, which shows the snapshot, is mounted now in this mount namespace.

    A writable overlay is known by its upper directory, a read-only one by its lowers, a bind mount by the device and
    the directory that it shows, anything else by its type and source.
    """
    last = mounts[-1]
    if parse(last.options).bind or last.type in {"bind", "rbind"}:
        return _bind_users(last)
    return [point for point in mountinfo.mount_points() if _shows(point, last)]


def _shows(point: MountPoint, mount: Mount) -> bool:
    """Tell whether a line of mountinfo is what a mount makes."""
    if point.type != mount.type:
        return False
    if mount.type != "overlay":
        return point.source == mount.source
    overlay = parse_overlay(parse(mount.options).data)
    if overlay.upper or point.upper:
        return point.upper in {overlay.upper, os.path.realpath(overlay.upper)} if overlay.upper else False
    if len(point.lowers) != len(overlay.lowers):
        return False
    return all(
        seen in {given, os.path.realpath(given)} for seen, given in zip(point.lowers, overlay.lowers, strict=True)
    )


def _bind_users(mount: Mount) -> list[MountPoint]:
    """Find the bind mounts of a directory by the device and directory that mountinfo gives for it.

    The device of stat(2) will not do: btrfs gives every subvolume one of its own.
    """
    try:
        home = mountinfo.holding(Path(mount.source))
    except FileNotFoundError:
        return []
    if home is None:
        return []
    source = os.path.realpath(mount.source)
    inside = os.path.relpath(source, home.path)
    root = os.path.normpath(os.path.join(home.root, inside))
    found = (point for point in mountinfo.mount_points() if (point.device, point.root) == (home.device, root))
    return [point for point in found if os.fspath(point.path) != source]
