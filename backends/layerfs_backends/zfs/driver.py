"""The ZFS driver: each snapshot is a dataset ``<place>/<id>``, a clone of its parent's ZFS snapshot ``@layer``.

::

    POOL/PATH/layerfs-<token>           the store's own dataset, never mounted: its properties are everybody's
    POOL/PATH/layerfs-<token>/12        a snapshot; mounted by whom it is given to, with mountpoint=legacy
    POOL/PATH/layerfs-<token>/12@layer  what its children stand on; taken when it is committed
    POOL/PATH/layerfs-<token>/12@before-13  the same for the one that took its place at a checkpoint
    <root>/dataset                      the name of the store's own dataset

Every one of these is made and destroyed in one transaction of the pool, so a crash leaves all of it or nothing, and
lookups cost the same at every depth. ``POOL/PATH`` is the option ``dataset``, or the dataset on which ``root`` lies.

Sources: zfs(8), zfsprops(7), zfs-program(8), and OpenZFS's ``include/libzfs_core.h``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from layerfs import trial
from layerfs.contract import (
    Candidates,
    CopyUnit,
    Driver,
    Kind,
    Mount,
    Snapshot,
    SnapshotId,
    Traits,
    Usage,
    WritePolicy,
)
from layerfs.errors import AlreadyExists, Busy, FailedPrecondition, InvalidArgument, LayerfsError, NotFound, Unsupported
from layerfs.kernel import mountinfo, mounting, syscalls
from layerfs.kernel.descriptors import opened
from layerfs_backends.zfs import changes, library
from layerfs_backends.zfs.library import Library, Value

_LAYER = "@layer"
_RECORD = "dataset"
_ZFS_MAGIC = 0x2FC12FC1
"""``ZFS_SUPER_MAGIC`` of statfs(2)."""

_PROPERTIES: Mapping[str, Value] = {"mountpoint": "legacy", "atime": 0, "xattr": 2, "acltype": 1, "canmount": 1}
"""Of the store's own dataset, and so of all below it: off, "sa" and "posix" as libzfs_core wants them.

``xattr=sa`` keeps extended attributes in the inode; containers need POSIX ACLs to be there.
"""
_EMPTY_OBJECTS = 6
"""Objects of an empty file system of OpenZFS 2.1 beside its root directory."""


class ZfsDriver:
    """Keep every snapshot as the dataset ``<place>/<id>``."""

    name: ClassVar[str] = "zfs"
    traits: ClassVar[Traits] = Traits(CopyUnit.BLOCK, WritePolicy.REDIRECT_ON_WRITE)

    def __init__(self, place: str, zfs: Library, *, reference_quota: int = 0) -> None:
        self._place = place
        self._zfs = zfs
        self._writable: dict[str, Value] = {"refquota": reference_quota} if reference_quota else {}

    def create(self, snapshot: Snapshot) -> None:
        """Clone the parent's ZFS snapshot, or make an empty file system."""
        own = self._name(snapshot.id)
        properties = self._writable if snapshot.writable else {"readonly": 1}
        if snapshot.parent is not None:
            self._clone(self._name(snapshot.parent), snapshot.id, properties)
            return
        try:
            self._zfs.create(own, properties)
        except NotFound:
            with suppress(AlreadyExists):
                self._zfs.create(self._place, _PROPERTIES)
            self._zfs.create(own, properties)

    def _clone(self, parent: str, id: SnapshotId, properties: Mapping[str, Value]) -> None:  # noqa: A002  the same
        try:
            self._zfs.clone(self._name(id), parent + _LAYER, properties)
        except NotFound:
            if not self._zfs.exists(parent):
                raise
            # A checkpoint makes the next one first, and commits its parent then. Should that fail, the parent goes on
            # being active; so this ZFS snapshot is not its layer, and goes when the clone does (deferred).
            between = f"{parent}@before-{id}"
            self._zfs.snapshot([between])
            try:
                self._zfs.clone(self._name(id), between, properties)
            finally:
                self._zfs.destroy_snapshots([between])

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
        names = [self._name(snapshot.id) + _LAYER for snapshot in snapshots]
        try:
            self._zfs.snapshot(names)
        except AlreadyExists:
            if missing := [name for name in names if not self._zfs.exists(name)]:
                self._zfs.snapshot(missing)

    def usage(self, snapshot: Snapshot) -> Usage:
        """Read the dataset's ``used``, and count its objects beyond the parent's; views take nothing."""
        own = self._name(snapshot.id)
        if snapshot.kind is Kind.VIEW:
            return Usage()
        self._zfs.sync(own)  # both are those of the last transaction
        size = self._zfs.number(own, "used")
        shared = _EMPTY_OBJECTS
        if snapshot.parent is not None:
            shared = _objects(Mount("zfs", self._name(snapshot.parent) + _LAYER, ("ro",)))
        return Usage(size, max(0, _objects(self.mounts(snapshot)[0]) - shared))

    def remove(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Destroy the dataset with its ZFS snapshots; raise `Busy` that names the clones of one that has some."""
        own = self._name(id)
        try:
            self._zfs.destroy(own)
        except NotFound:
            return
        except (AlreadyExists, Busy):  # it has ZFS snapshots, or somebody mounted it
            self._remove_with_snapshots(own)

    def _remove_with_snapshots(self, own: str) -> None:
        found = self._zfs.snapshots(own)
        self._zfs.destroy_snapshots(found)
        try:
            self._zfs.destroy(own)
        except (AlreadyExists, Busy) as error:
            clones = sorted(clone for clones in found.values() for clone in clones)
            if not clones:
                raise
            raise Busy(f"{own} has clones: {', '.join(clones[:5])}", hint="remove these first") from error

    def ids(self) -> Iterable[SnapshotId]:
        """List the datasets of this store; none of them is ever partial."""
        try:
            names = self._zfs.children(self._place)
        except NotFound:  # nothing was ever made
            return []
        found = (name.rpartition("/")[2] for name in names)
        return [SnapshotId(int(name)) for name in found if name.isdecimal()]

    def close(self) -> None:
        """Do nothing: the driver holds nothing open."""

    def changed_paths(self, snapshot: Snapshot, base: SnapshotId) -> Candidates:
        """Ask `zfs diff` what differs (`layerfs.contract.NativeChanges`); it knows only what is mounted."""
        if snapshot.kind is Kind.VIEW:
            raise Unsupported("a view has not changed, but its parents may have")
        own, below = self._name(snapshot.id), self._name(base)
        target = own + _LAYER if snapshot.kind is Kind.COMMITTED else own
        with self._shown(own) as new, self._shown(below) as old:
            return changes.candidates(self._origin(own, below), target, old, new)

    def _origin(self, own: str, below: str) -> str:
        """Return the ZFS snapshot of ``below`` on which a dataset stands, itself or through others."""
        while origin := self._zfs.text(own, "origin"):
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


def _objects(mount: Mount) -> int:
    """Count the inodes of a dataset, with a few of its own, by a mount that has no place."""
    with opened(syscalls.fsopen(b"zfs")) as context:
        syscalls.fsconfig_string(context, b"source", mount.source.encode())
        if mount.read_only:
            syscalls.fsconfig_flag(context, b"ro")
        syscalls.fsconfig_create(context)
        with opened(syscalls.fsmount(context, 0)) as made:
            status = os.fstatvfs(made)
    return status.f_files - status.f_ffree


def open_driver(root: Path, options: Mapping[str, str]) -> Driver:
    """Open the ZFS driver on ``root``.

    Options: ``dataset``, the dataset below which the store's own is made, by default the one on which ``root`` lies;
    ``refquota``, the bytes that each active snapshot may refer to. Raise `Unsupported` where ZFS or a pool is missing.
    """
    unknown = sorted(set(options) - {"dataset", "refquota"})
    if unknown:
        raise InvalidArgument(f"the zfs driver has no option {unknown[0]!r}", hint="it has dataset and refquota")
    quota = options.get("refquota", "0")
    if not quota.isdecimal():
        raise InvalidArgument(f"refquota={quota} is no number of bytes")
    zfs = library.load()
    place = _recorded(root)
    if place is None:
        place = _begin(root, zfs, options.get("dataset") or _dataset_of(root))
    elif not zfs.exists(place.rpartition("/")[0]):
        pool = place.partition("/")[0]
        raise FailedPrecondition(f"the dataset of {root}, {place}, is not here", hint=f"zpool import {pool}")
    return ZfsDriver(place, zfs, reference_quota=int(quota))


def _recorded(root: Path) -> str | None:
    try:
        return (root / _RECORD).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _dataset_of(root: Path) -> str:
    existing = next(path for path in (root, *root.absolute().parents) if path.exists())
    if syscalls.file_system_magic(os.fsencode(existing)) != _ZFS_MAGIC:
        raise Unsupported(
            f"{root} is not on ZFS, and no dataset is named",
            hint="name one: --option dataset=POOL/PATH (`zfs list` shows them); or use overlay2",
        )
    device = existing.stat().st_dev
    found = [one.source for one in mountinfo.mount_points() if os.makedev(*one.device) == device and one.type == "zfs"]
    if not found or "@" in found[0]:
        raise Unsupported(f"the dataset of {root} cannot be found", hint="name it: --option dataset=POOL/PATH")
    return found[0]


def _begin(root: Path, zfs: Library, above: str) -> str:
    """Try out what the driver needs, and write down the name of the store's own dataset, which `create` makes."""
    if not zfs.exists(above):
        raise Unsupported(f"there is no dataset {above}", hint=f"zpool import {above.partition('/')[0]}, or zfs create")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = f"{above}/layerfs-{os.urandom(8).hex()}"
    with trial.scratch(root, _clear):  # one process at a time
        recorded = _recorded(root)
        if recorded is not None:
            return recorded
        try:
            _try_out(zfs, f"{place}-try")
        except LayerfsError as error:
            raise Unsupported(f"datasets do not work in {above}: {error.message}", hint="run it as root") from error
        new = root / f"{_RECORD}.new"
        with open(new, "w", encoding="utf-8") as file:
            file.write(place + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, root / _RECORD)
    return place


def _clear(place: Path) -> None:
    with suppress(FileNotFoundError):
        place.rmdir()


def _try_out(zfs: Library, name: str) -> None:
    """Make a dataset, a ZFS snapshot and a clone, and destroy all three; raise what goes wrong."""
    with ExitStack() as undo:
        zfs.create(name, _PROPERTIES)
        undo.callback(zfs.destroy, name)
        zfs.snapshot([name + _LAYER])
        undo.callback(zfs.destroy_snapshots, [name + _LAYER])
        zfs.clone(f"{name}/clone", name + _LAYER, {})
        undo.callback(zfs.destroy, f"{name}/clone")
        zfs.children(name)
