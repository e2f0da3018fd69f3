"""Mounts to the kernel: perform what drivers return, take it away again, and find where it is.

Everything goes by the mount API of Linux 5.2 and later (fsopen(2), open_tree(2), mount_setattr(2)), so that a mount
appears at its place whole and with its final attributes, and by mount(2) where the kernel lacks that.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from layerfs import privilege
from layerfs.contract import Mount
from layerfs.errors import (
    Busy,
    FailedPrecondition,
    InvalidArgument,
    LayerfsError,
    PermissionDenied,
    Unsupported,
    os_error,
)
from layerfs.kernel import mounters, overlay, shared, syscalls, temporary
from layerfs.kernel.descriptors import opened
from layerfs.kernel.holders import busy_hint
from layerfs.kernel.interrupts import uninterrupted
from layerfs.kernel.mountinfo import at, below
from layerfs.kernel.options import Parsed, escape_path, overlay_options, parse, split_lowerdirs
from layerfs.kernel.overlay import Way
from layerfs.kernel.shared import release_shared, users

__all__ = [
    "Way",
    "escape_path",
    "make_read_only",
    "mount",
    "mounted",
    "overlay_options",
    "release_shared",
    "scratch",
    "split_lowerdirs",
    "unmount",
    "users",
]

_OF_ROOT = frozenset({"btrfs", "erofs", "ext4", "xfs", "zfs"})
"""File systems that cannot be mounted in a user namespace (they lack ``FS_USERNS_MOUNT``)."""
_LOOSE = {"nosuid": "suid", "nodev": "dev"}
_LONGEST_DATA = 4095
"""Bytes that mount(2) takes of the option string; it cuts the rest off without a word."""
_CLOSING, _MOMENT = 50, 0.01
"""How often, and how many seconds apart, to try to unmount what a process serves."""


def mount(mounts: Sequence[Mount], target: Path, *, way: Way | None = None) -> None:
    """Perform ``mounts`` in their order, those without a place of their own at ``target``, an existing directory.

    Shared ones (with a place of their own) are mounted unless they stand already. On failure nothing of it remains.
    ``way`` is how the kernel gets an overlay, its best unless given. Raise `LayerfsError`.
    """
    if not mounts or mounts[-1].target:
        raise InvalidArgument("no mount for the target is among the mounts")
    where = _real(target)
    with shared.locked(mounts), uninterrupted():
        _perform_all(mounts, where, way)


def _real(target: Path) -> Path:
    try:
        return target.resolve(strict=True)
    except OSError as error:
        raise os_error(f"mount at {target}", error) from error


def _place(one: Mount) -> Path:
    place = Path(one.target)
    try:
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise os_error("make the place of a shared mount", error) from error
    return _real(place)


def _perform_all(mounts: Sequence[Mount], target: Path, way: Way | None) -> None:
    made: list[Path] = []
    try:
        for one in mounts:
            if one.target and shared.is_there(one):
                continue
            place = _place(one) if one.target else target
            _perform(one, place, way)
            made.append(place)
    except LayerfsError:
        for place in reversed(made):
            syscalls.umount(os.fsencode(place), syscalls.MNT_DETACH)
        raise


def scratch(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """Return mounts for reading and writing only: nothing is run there, no device opened; shared ones as they are."""
    return tuple(one if one.target else one.with_options("nosuid", "nodev", "noexec") for one in mounts)


def _confined(one: Mount) -> Mount:
    """Return a mount without set-user-ID programs and devices unless this is root, or it says "suid" or "dev".

    In a user namespace the kernel lets neither reach beyond it anyway (user_namespaces(7)); this is the second fence.
    """
    fences: tuple[str, ...] = ()
    if os.geteuid() != 0 or not privilege.in_initial_namespace():
        fences = tuple(word for word, loose in _LOOSE.items() if loose not in one.options)
    kept = tuple(word for word in one.options if word not in {*fences, *_LOOSE.values()})
    return replace(one, options=(*kept, *fences))


def _perform(one: Mount, target: Path, way: Way | None) -> None:
    """Perform one mount; errors say what was to be mounted and why the kernel refused."""
    one = _confined(one)
    parsed = parse(one.options)
    try:
        if parsed.bind or one.type in {"bind", "rbind"}:
            _bind(one, parsed, target, way)
        elif one.type == "overlay":
            overlay.attach(parsed, one.source, target, way)
        elif mounters.is_served(one):
            mounters.perform(one, target)
        else:
            _attach(one, parsed, target, way)
    except OSError as error:
        if error.errno == errno.ENODEV:
            hint = f"modprobe {one.type}"
            raise Unsupported(f"this kernel has no file system {one.type!r}", hint=hint) from error
        what = f"mount {one.type} {one.source!r} at {target}"
        if error.errno == errno.EPERM and one.type in _OF_ROOT:
            hint = f"run it as root: Linux lets nobody else mount {one.type}"
            raise PermissionDenied(f"cannot {what}: {error.strerror}", hint=hint) from error
        raise os_error(what, error) from error


# -- bind mounts -------------------------------------------------------------------------------------------------------


def _bind(one: Mount, parsed: Parsed, target: Path, way: Way | None) -> None:
    if parsed.data:
        raise InvalidArgument(f"a bind mount does not take the option {parsed.data[0]!r}")
    recursive = parsed.recursive or one.type == "rbind"
    if way is Way.LEGACY:
        _bind_legacy(one, parsed, target, recursive=recursive)
        return
    try:
        with opened(syscalls.open_tree(os.fsencode(one.source), recursive=recursive)) as tree:
            if parsed.attributes or parsed.attributes_cleared:
                clear = parsed.attributes_cleared
                syscalls.mount_setattr(tree, attr_set=parsed.attributes, attr_clear=clear, recursive=recursive)
            syscalls.move_mount(tree, os.fsencode(target))
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        _bind_legacy(one, parsed, target, recursive=recursive)


_KEPT = {
    os.ST_RDONLY: syscalls.MS_RDONLY,
    os.ST_NOSUID: syscalls.MS_NOSUID,
    os.ST_NODEV: syscalls.MS_NODEV,
    os.ST_NOEXEC: syscalls.MS_NOEXEC,
    os.ST_NOATIME: syscalls.MS_NOATIME,
    os.ST_NODIRATIME: syscalls.MS_NODIRATIME,
    os.ST_RELATIME: syscalls.MS_RELATIME,
}


def _bind_legacy(one: Mount, parsed: Parsed, target: Path, *, recursive: bool) -> None:
    """Bind in two steps, for mount(2) ignores attributes in the first (mount(2), "Creating a bind mount")."""
    where = os.fsencode(target)
    flags = syscalls.MS_BIND | (syscalls.MS_REC if recursive else 0)
    syscalls.mount(os.fsencode(one.source), where, None, flags)
    if not parsed.flags:
        return
    # A user namespace may not drop what the source's mount already forbids, so that is asked for again.
    try:
        syscalls.mount(None, where, None, syscalls.MS_REMOUNT | syscalls.MS_BIND | _kept(target) | parsed.flags)
    except OSError:
        syscalls.umount(where, syscalls.MNT_DETACH)
        raise


def _kept(target: Path) -> int:
    """Return the flags that a mount has, as mount(2) takes them."""
    present = os.statvfs(target).f_flag
    return sum(flag for bit, flag in _KEPT.items() if present & bit)


def make_read_only(target: Path) -> None:
    """Make the file system at ``target`` read-only wherever it is mounted, once it has written everything.

    Raise `Busy` where files are open for writing.
    """
    where = os.path.realpath(target)
    flags = syscalls.MS_REMOUNT | syscalls.MS_RDONLY | _kept(target)
    try:
        syscalls.mount(None, os.fsencode(where), None, flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Busy(f"files at {target} are open for writing", hint=busy_hint(Path(where))) from error
        raise os_error(f"make {target} read-only", error) from error


# -- file systems on a device and the like -----------------------------------------------------------------------------


def _attach(one: Mount, parsed: Parsed, target: Path, way: Way | None) -> None:
    if way is Way.LEGACY:
        _attach_legacy(one, parsed, target)
        return
    try:
        context = syscalls.fsopen(os.fsencode(one.type))
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        _attach_legacy(one, parsed, target)
        return
    with opened(context):
        try:
            syscalls.fsconfig_string(context, b"source", os.fsencode(one.source))
            for name in parsed.superblock:
                syscalls.fsconfig_flag(context, os.fsencode(name))
            overlay.set_options(context, parsed.data)
            syscalls.fsconfig_create(context)
            with opened(syscalls.fsmount(context, parsed.attributes)) as made:
                syscalls.move_mount(made, os.fsencode(target))
        except OSError as error:
            raise overlay.with_messages(error, context) from error


def _attach_legacy(one: Mount, parsed: Parsed, target: Path) -> None:
    data = os.fsencode(",".join(parsed.data))
    if len(data) > _LONGEST_DATA:
        raise Unsupported(f"{len(data)} bytes of mount options, and mount(2) takes {_LONGEST_DATA}")
    syscalls.mount(os.fsencode(one.source), os.fsencode(target), os.fsencode(one.type), parsed.flags, data)


# -- taking away -------------------------------------------------------------------------------------------------------


def unmount(target: Path, *, lazy: bool = False) -> None:
    """Unmount the topmost mount at ``target``; ``lazy`` detaches it at once and lets users of it finish.

    The kernel writes everything of an overlay's upper file system to disk first, which can take a while. Raise `Busy`
    that names who uses it, and `FailedPrecondition` where nothing is mounted.
    """
    where = os.path.realpath(target)
    try:
        _unmount(where, syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Busy(f"{target} is in use", hint=busy_hint(Path(where))) from error
        if error.errno == errno.EINVAL:
            raise FailedPrecondition(f"nothing is mounted at {target}") from error
        if error.errno == errno.EPERM and _is_served(where):
            mounters.release(Path(where), lazy=lazy)
            return
        raise os_error(f"unmount {target}", error) from error


def _unmount(where: str, flags: int) -> None:
    """Unmount; where a process serves the mount, wait a moment for files that were just closed.

    The kernel lets go of a file that it reads and writes by FUSE's passthrough when the server has answered that it is
    released, which is after close(2) has returned.
    """
    for _ in range(_CLOSING):
        try:
            syscalls.umount(os.fsencode(where), flags)
        except OSError as error:
            if error.errno != errno.EBUSY or not _is_served(where):
                raise
            time.sleep(_MOMENT)
        else:
            return
    syscalls.umount(os.fsencode(where), flags)


def _is_served(where: str) -> bool:
    return any(point.type.startswith("fuse") for point in at(Path(where)))


@contextmanager
def mounted(mounts: Sequence[Mount], target: Path | None = None, *, way: Way | None = None) -> Iterator[Path]:
    """Mount for the time of the block, at ``target`` or in a fresh directory of mode 0700, and yield the place.

    It is always unmounted, whatever ends the block, Ctrl-C included; shared mounts that nobody uses any more too, and
    the fresh directory is removed. Where a process still works inside at the end, the mount is detached lazily, so
    that it ends with that process, and `Busy` is raised (or noted on the exception that ended the block).
    """
    fresh = target is None
    place = temporary.directory("layerfs-") if target is None else target
    before = {point.id for point in at(place)}
    try:
        try:
            mount(mounts, place, way=way)
            yield place
        except BaseException as error:
            busy = _take_away(mounts, place, before)
            if busy:
                error.add_note(f"{busy.message}; {busy.hint}")
            raise
        busy = _take_away(mounts, place, before)
        if busy:
            raise busy
    finally:
        _take_away(mounts, place, before)  # for a Ctrl-C right between the lines above; else there is nothing left
        if fresh:
            temporary.remove(place)


def _take_away(mounts: Sequence[Mount], place: Path, before: set[int]) -> Busy | None:
    """Unmount what stands at ``place`` now and did not ``before``, then the shared mounts without users."""
    problem: Busy | None = None
    with uninterrupted():
        while any(point.id not in before for point in at(place)):
            # A recursive bind brought the mounts inside along.
            inner = below(place) if any("rbind" in (one.type, *one.options) for one in mounts) else ()
            for path in (*(point.path for point in reversed(inner)), place):
                problem = _unmount_somehow(path) or problem
        release_shared(mounts)
    return problem


def _unmount_somehow(path: Path) -> Busy | None:
    try:
        unmount(path)
    except Busy as busy:
        unmount(path, lazy=True)
        return busy
    return None
