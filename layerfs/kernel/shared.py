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
from layerfs.kernel.descriptors import opened
from layerfs.kernel.mountinfo import MountPoint
from layerfs.kernel.options import parse, parse_overlay


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
    place = Path(mount.target)
    if _same_lowers(mountinfo.lowers_at(place), parse_overlay(parse(mount.options).data).lowers):
        return True
    points = mountinfo.at(place)
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
        for mount in reversed(mounts):
            if mount.target and not _is_lower(mount.target) and is_there(mount):
                _unmount(os.path.realpath(mount.target))


def _is_lower(place: str) -> bool:
    """Tell whether an overlay has ``place`` as a lower directory."""
    names = {place, os.path.realpath(place)}
    return any(not names.isdisjoint(point.lowers) for point in mountinfo.mentioning(*names))


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
    overlay = parse_overlay(parse(last.options).data) if last.type == "overlay" else None
    text = (overlay.upper or overlay.lowers[0]) if overlay else last.source
    names = {text, _real(text)} if text.startswith("/") else {text}
    return [point for point in mountinfo.mentioning(*names) if _shows(point, last)]


def _shows(point: MountPoint, mount: Mount) -> bool:
    """Tell whether a line of mountinfo is what a mount makes."""
    if point.type != mount.type:
        return False
    if mount.type != "overlay":
        return point.source == mount.source
    overlay = parse_overlay(parse(mount.options).data)
    if overlay.upper or point.upper:
        return bool(overlay.upper) and _same(point.upper, overlay.upper)
    return _same_lowers(point.lowers, overlay.lowers)


def _same_lowers(seen: Sequence[str], given: Sequence[str]) -> bool:
    return len(seen) == len(given) and all(map(_same, seen, given))


def _same(seen: str, given: str) -> bool:
    """Compare paths; the kernel tells one that it got by descriptor without symbolic links."""
    return seen == given or seen == _real(given)


def _bind_users(mount: Mount) -> list[MountPoint]:
    """Find the bind mounts of a directory by the device and directory that mountinfo gives for it."""
    try:
        shown = mountinfo.origin(Path(mount.source))
    except FileNotFoundError:
        return []
    if shown is None:
        return []
    source = _real(mount.source)
    return [point for point in mountinfo.showing(*shown) if os.fspath(point.path) != source]


def _real(path: str) -> str:
    """Return the path without links; realpath fails on one that is taken away between its lstat(2) and readlink(2)."""
    try:
        return os.path.realpath(path)
    except FileNotFoundError:
        return path
