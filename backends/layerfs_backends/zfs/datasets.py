"""The ZFS driver: each snapshot is a dataset ``<place>/<id>``, a clone of its parent's ZFS snapshot ``@layer``.

::

    POOL/PATH/layerfs-<token>           the store's own dataset, never mounted: its properties are everybody's
    POOL/PATH/layerfs-<token>/12        a snapshot; mounted by whom it is given to, with mountpoint=legacy
    POOL/PATH/layerfs-<token>/12@layer  what its children stand on; taken when it is committed
    POOL/PATH/layerfs-<token>/12@before-13  the same until then, for the one that takes its place at a checkpoint

Every one of these is made and destroyed in one transaction of the pool, so a crash leaves all of it or nothing, and
lookups cost the same at every depth. Children always go before what they stand on, so nothing is ever promoted.

Sources: zfs(8), zfsprops(7), zfs-send(8), and OpenZFS's ``include/libzfs_core.h``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from layerfs.contract import (
    Candidates,
    CopyUnit,
    Damage,
    Kind,
    Mount,
    Snapshot,
    SnapshotId,
    Traits,
    Usage,
    WritePolicy,
    ids_of,
)
from layerfs.errors import AlreadyExists, Busy, NotFound, Unsupported
from layerfs.kernel import mounting, syscalls
from layerfs.kernel.descriptors import opened
from layerfs_backends.zfs import changes, questions
from layerfs_backends.zfs.library import Library, Value

LAYER = "@layer"
_BEFORE = "@before-"

PROPERTIES: Mapping[str, Value] = {"mountpoint": "legacy", "atime": 0, "xattr": 2, "acltype": 1, "canmount": 1}
"""Of the store's own dataset, and so of all below it: off, "sa" and "posix" as libzfs_core wants them.

``xattr=sa`` keeps extended attributes in the inode; containers need POSIX ACLs to be there.
"""
_ANEW = "what the dataset holds may have changed since; if nothing did"
_EMPTY_OBJECTS = 6
"""Objects of an empty file system of OpenZFS 2.1 beside its root directory."""


class ZfsDriver:
    """Keep every snapshot as the dataset ``<place>/<id>``."""

    name: ClassVar[str] = "zfs"
    traits: ClassVar[Traits] = Traits(CopyUnit.BLOCK, WritePolicy.REDIRECT_ON_WRITE)
    stream: ClassVar[str] = "zfs"

    def __init__(self, place: str, zfs: Library, quotas: Mapping[str, Value]) -> None:
        self._place = place
        self._zfs = zfs
        self._writable = quotas

    def create(self, snapshot: Snapshot) -> None:
        """Clone the parent's ZFS snapshot, or make an empty file system."""
        own = self._name(snapshot.id)
        properties = self._limits(snapshot) if snapshot.writable else {"readonly": 1}
        if snapshot.parent is not None:
            self._clone(self._name(snapshot.parent), snapshot.id, properties)
            return
        try:
            self._zfs.create(own, properties)
        except NotFound:
            with suppress(AlreadyExists):
                self._zfs.create(self._place, PROPERTIES)
            self._zfs.create(own, properties)

    def _clone(self, parent: str, id: SnapshotId, properties: Mapping[str, Value]) -> None:  # noqa: A002  the same
        try:
            self._zfs.clone(self._name(id), parent + LAYER, properties)
        except NotFound:
            if not self._zfs.exists(parent):
                raise
            # A checkpoint makes the next one first, and commits its parent then, which makes this ZFS snapshot its
            # layer. Should that fail, the parent goes on being active, and forgets this one when it is committed.
            between = f"{parent}{_BEFORE}{id}"
            self._zfs.snapshot([between])
            try:
                self._zfs.clone(self._name(id), between, properties)
            except BaseException:
                self._zfs.destroy_snapshots([between])
                raise

    def mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """Return one mount of the dataset."""
        return (Mount("zfs", self._name(snapshot.id), ("rw" if snapshot.writable else "ro",)),)

    def commit(self, snapshot: Snapshot) -> None:
        """Take the ZFS snapshot on which children will stand: immutable and on disk when it is there."""
        self.commit_all((snapshot,))

    def commit_all(self, snapshots: Sequence[Snapshot]) -> None:
        """Do it for several in one transaction (`layerfs.contract.CommitsTogether`)."""
        for snapshot in snapshots:
            for point in mounting.users(self.mounts(snapshot)):
                _flush(point.path)
            self._settle(self._name(snapshot.id))
        names = [self._name(snapshot.id) + LAYER for snapshot in snapshots]
        missing = [name for name in names if not self._zfs.exists(name)]
        if missing:
            self._zfs.snapshot(missing)

    def _settle(self, own: str) -> None:
        """Make what the one that takes its place stands on the layer, or let it go with that one."""
        for name, clones in questions.snapshots(self._zfs, own).items():
            if not name.startswith(own + _BEFORE):
                continue
            if clones and not questions.number(self._zfs, own, f"written{name.removeprefix(own)}"):
                self._zfs.rename_snapshot(name, own + LAYER)
            else:
                self._zfs.destroy_snapshots([name])

    def send(self, snapshot: Snapshot, to: int, *, whole: bool = False) -> None:
        """Write a ZFS stream, of what it holds beyond its parent's layer (`layerfs.contract.Transferable`)."""
        base = None if whole or snapshot.parent is None else self._name(snapshot.parent) + LAYER
        self._zfs.send(self._name(snapshot.id) + LAYER, base, to)

    def receive(self, snapshot: Snapshot, source: int) -> None:
        """Make a dataset and its layer from a ZFS stream; the kernel keeps nothing of one that is not whole."""
        base = None if snapshot.parent is None else self._name(snapshot.parent) + LAYER
        with suppress(AlreadyExists):
            self._zfs.create(self._place, PROPERTIES)
        self._zfs.receive(self._name(snapshot.id) + LAYER, base, source)

    def usage(self, snapshot: Snapshot) -> Usage:
        """Read the dataset's ``used``, and count its objects beyond the parent's; views take nothing."""
        own = self._name(snapshot.id)
        if snapshot.kind is Kind.VIEW:
            return Usage()
        self._zfs.sync(own)  # both are those of the last transaction
        size = questions.number(self._zfs, own, "used")
        shared = 0
        if snapshot.parent is not None:
            shared = _inodes(Mount("zfs", self._name(snapshot.parent) + LAYER, ("ro",)))
        return Usage(size, max(0, _inodes(self.mounts(snapshot)[0]) - shared))

    def set_quota(self, snapshot: Snapshot) -> None:
        """Set the dataset's property ``quota`` (`layerfs.contract.Quotas`): what it shares with others is free.

        ``refquota`` would count what its image holds, and let it write more for every file that it deletes of it.
        """
        questions.set_number(self._name(snapshot.id), "quota", int(self._limits(snapshot).get("quota", 0)))

    def quota_usage(self, snapshot: Snapshot) -> Usage:
        """Return the dataset's ``used``."""
        own = self._name(snapshot.id)
        self._zfs.sync(own)
        return Usage(questions.number(self._zfs, own, "used"))

    def _limits(self, snapshot: Snapshot) -> Mapping[str, Value]:
        """Return the properties that limit a writable snapshot: the driver's options, and its own quota instead."""
        size, inodes = snapshot.quota.size, snapshot.quota.inodes
        if inodes is not None:
            raise Unsupported(
                "ZFS cannot limit the inodes of a dataset, only those of users in it",
                hint="limit the size only, or use the fuse driver",
            )
        return self._writable if size is None else {**self._writable, "quota": size}

    def remove(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Destroy the dataset with its ZFS snapshots; raise `Busy` that names the clones of one that has some."""
        own = self._name(id)
        try:
            self._zfs.destroy(own)
        except NotFound:
            return
        except (AlreadyExists, Busy):  # it has ZFS snapshots, or somebody mounted it
            questions.destroy_with_snapshots(self._zfs, own)

    def ids(self) -> Iterable[SnapshotId]:
        """List the datasets of this store; none of them is ever partial."""
        try:
            names = questions.children(self._zfs, self._place)
        except NotFound:  # nothing was ever made
            return []
        return ids_of(name.rpartition("/")[2] for name in names)

    def check(self, snapshots: Sequence[Snapshot]) -> Iterator[Damage]:
        """Tell which layers somebody took the ZFS snapshot from (`layerfs.contract.Checkable`)."""
        held = set(questions.snapshots_below(self._zfs, self._place, LAYER)) if snapshots else set[str]()
        for snapshot in snapshots:
            name = self._name(snapshot.id) + LAYER
            if snapshot.kind is Kind.COMMITTED and name not in held:
                yield Damage(snapshot.id, f"the ZFS snapshot {name} is gone", f"{_ANEW}: zfs snapshot {name}")

    def close(self) -> None:
        """Do nothing: the driver holds nothing open."""

    def changed_paths(self, snapshot: Snapshot, base: SnapshotId) -> Candidates:
        """Ask `zfs diff` what differs (`layerfs.contract.NativeChanges`); it knows only what is mounted."""
        if snapshot.kind is Kind.VIEW:
            raise Unsupported("a view has not changed, but its parents may have")
        own, below = self._name(snapshot.id), self._name(base)
        target = own + LAYER if snapshot.kind is Kind.COMMITTED else own
        with self._shown(own) as new, self._shown(below) as old:
            return changes.candidates(self._origin(own, below), target, old, new)

    def _origin(self, own: str, below: str) -> str:
        """Return the ZFS snapshot of ``below`` on which a dataset stands, itself or through others."""
        while origin := questions.text(self._zfs, own, "origin"):
            own = origin.partition("@")[0]
            if own == below:
                return origin
        raise Unsupported(f"{own} does not stand on {below}")

    @contextmanager
    def _shown(self, dataset: str) -> Iterator[Path]:
        """Give where a dataset is mounted, by others or for the time of the block."""
        mounts = (Mount("zfs", dataset, ("rw",)),)
        if found := mounting.users(mounts):
            yield found[0].path
            return
        with mounting.mounted(mounts) as path:
            yield path

    def _name(self, id: SnapshotId) -> str:  # noqa: A002  the contract's word
        return f"{self._place}/{id}"


def _flush(path: Path) -> None:
    """Write what programs changed through shared mappings, which a ZFS snapshot does not know of (msync(2))."""
    with opened(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
        syscalls.syncfs(directory)


def _inodes(mount: Mount) -> int:
    """Count the inodes of a dataset by a mount that has no place, or for those who may not mount, by a command."""
    try:
        with opened(syscalls.fsopen(b"zfs")) as context:
            syscalls.fsconfig_string(context, b"source", mount.source.encode())
            if mount.read_only:
                syscalls.fsconfig_flag(context, b"ro")
            syscalls.fsconfig_create(context)
            with opened(syscalls.fsmount(context, 0)) as made:
                status = os.fstatvfs(made)
    except PermissionError:
        return questions.inodes(mount.source)
    return status.f_files - status.f_ffree - _EMPTY_OBJECTS
