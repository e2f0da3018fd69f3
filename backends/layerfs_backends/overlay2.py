"""The overlay2 driver: a directory per snapshot, stacked by the kernel's overlayfs.

::

    <root>/<id>/merged    where the layers from <id> down are mounted once for all its children, if they are many

and what `layerfs.layerdirs` makes: the kernel's upperdir, workdir and lowerdirs.

There are no short ``l/`` links, which Docker's overlay2 has to keep the option string below a page (4,096 bytes).
Since Linux 6.5 each lowerdir goes to the kernel by itself; before, numeric ids are as short as links when the mounter
names them relative to ``<root>``; and a chain of more than `SHARE_ABOVE` layers becomes one lowerdir, the shared mount
above. Links would be a second record of the layers' order, to be repaired when it is lost.

Source: the kernel's Documentation/filesystems/overlayfs.rst, named "overlayfs.rst" below.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from layerfs.contract import (
    CopyUnit,
    Driver,
    LayerRoot,
    Mount,
    Snapshot,
    SnapshotId,
    Traits,
    Usage,
    Whiteouts,
    WritePolicy,
)
from layerfs.errors import InvalidArgument, LayerfsError, PermissionDenied, Unsupported
from layerfs.kernel import mounting, syscalls
from layerfs.kernel.options import MAX_LOWERS, overlay_options
from layerfs.layerdirs import LayerDirectories, open_directories
from layerfs.projects import Projects

SHARE_ABOVE = 30
"""Layers from which children share one read-only overlay of them.

Measured: a mount costs 0.09 ms with 1 layer, 0.26 with 30, 0.6 to 5 with 128; on top of a shared overlay of 128 it
costs 0.29 ms, and 12 KiB of kernel memory instead of 170.
"""


class Overlay2Driver:
    """Keep each snapshot's own changes in ``<root>/<id>/diff`` and let overlayfs show the stack."""

    name: ClassVar[str] = "overlay2"
    traits: ClassVar[Traits] = Traits(
        CopyUnit.FILE, WritePolicy.COPY_ON_WRITE, max_layers=MAX_LOWERS, rebase=True, rootless=True, light=True
    )

    def __init__(self, directories: LayerDirectories, *, share_above: int = SHARE_ABOVE) -> None:
        self._directories = directories
        self._root = directories.root
        self._share_above = share_above

    def create(self, snapshot: Snapshot) -> None:
        """Make the directories (`layerfs.layerdirs`); raise `Unsupported` for more layers than the kernel stacks."""
        if len(snapshot.parents) > MAX_LOWERS:
            raise Unsupported(
                f"{len(snapshot.parents)} layers are too many for overlayfs, which stacks {MAX_LOWERS}",
                hint="commit the clone to an image of fewer layers, or use the btrfs or the copy driver",
            )
        self._directories.create(snapshot, work=snapshot.writable and bool(snapshot.parents))
        if snapshot.quota:
            try:
                self.set_quota(snapshot)
            except BaseException:
                self._directories.remove(snapshot.id)
                raise

    def mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """Return a bind mount where one directory is all there is to show, else an overlay.

        An overlay of one lowerdir and no upperdir is EINVAL. Above `SHARE_ABOVE` layers an active snapshot has two
        mounts, the first of them shared.
        """
        lowers = self._lowers(snapshot)
        if snapshot.writable and len(lowers) > self._share_above:
            return self._shared_mounts(snapshot, lowers)
        return self.unshared_mounts(snapshot)

    def unshared_mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """Return the one mount of all layers (`layerfs.contract.UnsharedMounts`)."""
        lowers = self._lowers(snapshot)
        if not lowers:
            return (_bind(self._directories.diff(snapshot.id), writable=snapshot.writable),)
        if snapshot.writable:
            return (self._overlay(lowers, self._directories.path(snapshot.id)),)
        if len(lowers) == 1:
            return (_bind(self._directories.diff(snapshot.parents[0]), writable=False),)
        return (self._overlay(lowers),)

    def commit(self, snapshot: Snapshot) -> None:
        """Sync it: committed layers are only ever mounted as lowerdirs, which the kernel does not write to."""
        self.commit_all([snapshot])

    def commit_all(self, snapshots: Sequence[Snapshot]) -> None:
        """Sync them, which are on one file system (`layerfs.contract.CommitsTogether`)."""
        for snapshot in snapshots[:1]:
            self._directories.sync(snapshot.id)

    def usage(self, snapshot: Snapshot) -> Usage:
        """Measure what the snapshot adds to its parents."""
        return self._directories.usage(snapshot.id)

    def set_quota(self, snapshot: Snapshot) -> None:
        """Set the limits of its project (`layerfs.contract.Quotas`, `layerfs.projects`)."""
        self._directories.projects.limit(snapshot, self._directories.diff(snapshot.id))

    def quota_usage(self, snapshot: Snapshot) -> Usage:
        """Return what its project takes, the workdir included."""
        return self._directories.projects.usage(snapshot.id)

    def remove(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Unmount the overlay that its children shared, and delete the directory."""
        self._directories.projects.free(id)
        merged = self._directories.path(id) / "merged"
        if os.path.ismount(merged):
            mounting.unmount(merged)
        self._directories.remove(id)

    def ids(self) -> Iterable[SnapshotId]:
        """List the snapshots, and those that a crash left half made or half deleted."""
        return self._directories.ids()

    def strangers(self) -> Iterable[Path]:
        """List what is no snapshot's (`layerfs.contract.Tidy`)."""
        return self._directories.strangers()

    def close(self) -> None:
        """Do nothing: the driver holds nothing open."""

    def layer_root(self, snapshot: Snapshot) -> LayerRoot:
        """Return the directory of changes (`layerfs.contract.DirectAccess`)."""
        return self._directories.layer_root(snapshot)

    def volatile_mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """Return the mounts with ``volatile`` on the one that is written to (`layerfs.contract.VolatileMounts`)."""
        *below, last = self.mounts(snapshot)
        return (*below, last.with_options("volatile") if snapshot.writable and snapshot.parents else last)

    def settle(self, snapshot: Snapshot) -> None:
        """Sync, then delete the mark by which the kernel refuses another mount (overlayfs.rst, "Volatile mount")."""
        self._directories.sync(snapshot.id)
        incompat = self._directories.path(snapshot.id) / "work/work/incompat"
        with suppress(FileNotFoundError):
            (incompat / "volatile/dirty").unlink()
        with suppress(FileNotFoundError):
            (incompat / "volatile").rmdir()

    def try_out(self) -> None:
        """Mount an overlay and change what it shows; raise what goes wrong."""

        def mounts(lower: Path, own: Path) -> Sequence[Mount]:
            # volatile spares the unmount its sync of the whole file system.
            return (self._overlay([str(lower)], own).with_options("volatile"),)

        self._directories.try_out(mounts)

    def _lowers(self, snapshot: Snapshot) -> list[str]:
        return [f"{self._root}/{parent}/diff" for parent in snapshot.parents]  # may be hundreds: no Path for each

    def _shared_mounts(self, snapshot: Snapshot, lowers: Sequence[str]) -> Sequence[Mount]:
        own = self._directories.path(snapshot.id)
        merged = f"{self._root}/{snapshot.parents[0]}/merged"
        shared = replace(self._overlay(lowers), target=merged)
        # The shared overlay and the upperdir are two file systems. Without xino, files and directories would have
        # different st_dev, and `tar --one-file-system` and `cp -x` would leave the files out.
        return (shared, self._overlay([merged], own).with_options("xino=on"))

    def _overlay(self, lowers: Sequence[str], own: Path | None = None) -> Mount:
        upper, work = (own / "diff", own / "work") if own else (None, None)
        userxattr = self._directories.whiteouts is Whiteouts.OVERLAY_USER
        return Mount("overlay", "overlay", overlay_options(lowers, upper, work, userxattr=userxattr))


def open_driver(root: Path, options: Mapping[str, str]) -> Driver:
    """Open the overlay2 driver on ``root``; raise `Unsupported` that says why where an overlay does not work.

    It is tried once for each root: a store must open on a disk that is full, so that somebody can remove from it.
    The option ``share-above`` is `SHARE_ABOVE`; "500" shares nothing, for users who can perform one mount only.
    """
    share_above = _parse(options)

    def try_out(directories: LayerDirectories) -> None:
        Overlay2Driver(directories).try_out()

    def refusal(problem: LayerfsError) -> Unsupported:
        return Unsupported(f"overlayfs does not work in {root}: {problem}", hint=_hint(root, problem))

    directories = open_directories(root, try_out, refusal)
    directories.projects = Projects.find(root)
    return Overlay2Driver(directories, share_above=share_above)


def _parse(options: Mapping[str, str]) -> int:
    for option in options.keys() - {"share-above"}:
        raise InvalidArgument(f"the overlay2 driver has no option {option!r}", hint="it has share-above")
    number = options.get("share-above", str(SHARE_ABOVE))
    if not number.isdecimal() or not 1 <= int(number) <= MAX_LOWERS:
        raise InvalidArgument(f"share-above is {number!r}", hint=f"give a number of layers from 1 to {MAX_LOWERS}")
    return int(number)


def _bind(path: Path, *, writable: bool) -> Mount:
    return Mount("bind", str(path), ("rbind", "rw" if writable else "ro"))


def _hint(root: Path, problem: LayerfsError) -> str:
    magic = syscalls.file_system_magic(os.fsencode(root))
    if magic == syscalls.OVERLAYFS_MAGIC:
        return "the directory is on an overlay itself (a container?): put the store on a volume, or use the copy driver"
    if isinstance(problem, PermissionDenied):
        return "run it as root, or in a user namespace, where Linux 5.11 and later allow it; or use the copy driver"
    return "put the store on ext4, xfs (made with ftype=1), btrfs or tmpfs, or use the copy driver"
