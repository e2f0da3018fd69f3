"""The devicemapper driver: each snapshot is a thin device of one pool, with a file system of its own (dm-thin).

A snapshot without a parent is a snapshot of the *base*, an empty file system that is made once. Writes go to new blocks
of 64 KiB, whatever the size of the file, and lookups cost the same at every depth. Devices of active snapshots and
views are there from their creation to their end; a committed one has none, for nobody mounts it. What a restart took
from the kernel comes back when the driver is opened.

Source: the kernel's Documentation/admin-guide/device-mapper/thin-provisioning.rst.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from layerfs import locks, tree
from layerfs.contract import (
    NO_QUOTA,
    CopyUnit,
    Damage,
    Driver,
    Mount,
    Snapshot,
    SnapshotId,
    Traits,
    Usage,
    WritePolicy,
)
from layerfs.errors import (
    Busy,
    Corrupt,
    LayerfsError,
    Unsupported,
)
from layerfs.kernel import blockdevices, mountinfo, mounting
from layerfs.kernel.dm import Device, Mapper, Status
from layerfs_backends.thin import counting
from layerfs_backends.thin.counting import Counts
from layerfs_backends.thin.ledger import BASE, Entry, Ledger, State
from layerfs_backends.thin.options import parse
from layerfs_backends.thin.plan import BLOCK, Fill, Plan
from layerfs_backends.thin.pool import Pool
from layerfs_backends.thin.room import Room

_POOL = locks.named("pool")
_GONE = "it is lost: remove what stands on it, then import the image again"
_TAKEN = "`layerfs store close`; the next opening brings it back"

_log = logging.getLogger(__name__)


class DeviceMapperDriver:
    """Keep every snapshot as a thin device, named in the ledger."""

    name: ClassVar[str] = "devicemapper"
    traits: ClassVar[Traits] = Traits(CopyUnit.BLOCK, WritePolicy.REDIRECT_ON_WRITE)

    def __init__(self, root: Path, pool: Pool, mapper: Mapper, *, files: bool, discard: bool) -> None:
        self._root = root
        self._lock_file = root / "lock"
        self._pool = pool
        self._mapper = mapper
        self._room = Room(root, files=files)
        self._discard = discard
        self._ledger = Ledger(root)
        self._counts = Counts(root)

    def create(self, snapshot: Snapshot) -> None:
        """Make a thin snapshot of the parent, or of the base, and show it; raise `NoSpace` before the pool is full."""
        self._check_quota(snapshot)
        with self._up() as pool:
            if snapshot.writable:
                self._room.check(Fill.parse(pool.text))
            origin = self._ledger.get(snapshot.parent or BASE)
            entry = Entry(snapshot.id, State.CREATING, origin.id)
            self._ledger.add(entry)
            try:
                with self._resting(origin):
                    self._pool.snapshot(entry.id, origin.id)
                self._pool.show(entry.id, pool.device, new=True)
                self._ledger.change(Entry(entry.id, State.OPEN, entry.origin))
                if snapshot.quota:
                    with self._mounted(snapshot) as place:
                        counting.limit(place, snapshot.quota, counting.used(place))
            except BaseException:
                self._undo(entry.id)
                raise

    def mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """Return the mount of the device's file system."""
        return (self._pool.mount_of(snapshot.id, writable=snapshot.writable),)

    def commit(self, snapshot: Snapshot) -> None:
        """Put the device on disk, count it and take it from the kernel; raise `Busy` while it is mounted.

        A mount would go on writing to what others stand on.
        """
        with self._up() as pool:
            entry = self._ledger.get(snapshot.id)
            if entry.state is not State.COMMITTED:
                self._check_closed(entry.id)
                with self._counted(snapshot) if self._pool.plan.quotas else nullcontext():
                    self._freeze(entry, Fill.parse(pool.text))
            self._pool.hide(entry.id)

    def _freeze(self, entry: Entry, fill: Fill) -> None:
        self._room.check_complete(fill)
        try:
            blockdevices.flush(self._pool.path(entry.id))
        finally:  # what a full pool refused shows as EIO
            self._room.check_complete(self._fill())
        blocks, inodes = self._measure(entry)
        self._ledger.change(replace(entry, state=State.COMMITTED, blocks=blocks, inodes=inodes))
        self._ledger.sync()

    def set_quota(self, snapshot: Snapshot) -> None:
        """Limit the project of its file system (`layerfs.contract.Quotas`, `layerfs_backends.thin.counting`)."""
        self._check_quota(snapshot)
        if self._pool.plan.quotas:
            with self._up(), self._mounted(snapshot) as place:
                counting.limit(place, snapshot.quota, self._above(snapshot))

    def quota_usage(self, snapshot: Snapshot) -> Usage:
        """Return what its files take beyond its parents'."""
        if not self._pool.plan.quotas:
            return Usage()
        with self._up(), self._mounted(snapshot) as place:
            found, above = counting.used(place), self._above(snapshot)
        return Usage(max(0, found.size - above.size), max(0, found.inodes - above.inodes))

    def usage(self, snapshot: Snapshot) -> Usage:
        """Count the blocks and inodes that it has beyond its parent; a block written anew is not counted."""
        with self._up():
            blocks, inodes = self._measure(self._ledger.get(snapshot.id))
            above_blocks, above_inodes = self._measure(self._ledger.get(snapshot.parent or BASE))
        return Usage(max(0, blocks - above_blocks) * BLOCK, max(0, inodes - above_inodes))

    def remove(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Give the blocks of its own back, to the disk below too, and delete the device; raise `Busy` while mounted."""
        entry = self._ledger.find(id)
        if entry is None:
            return
        with self._up() as pool:
            if entry.state is State.CREATING:
                with self._device_lock(entry.origin):
                    self._pool.resume(entry.origin)
            device = self._pool.device(id)
            if device is not None and device.opened:
                self._check_closed(id)
            self._ledger.change(Entry(id, State.REMOVING, entry.origin))
            if self._discard and not (device and self._pool.is_untouched(device)):
                self._give_back(entry, pool.device)
            self._pool.hide(id)
            self._pool.delete(id)
            self._ledger.drop(id)
            if self._pool.plan.quotas:
                self._counts.drop(id)
        self._rest()

    def ids(self) -> Iterable[SnapshotId]:
        """List the snapshots, and those that a crash left half made or half deleted."""
        return self._ledger.ids()

    def close(self) -> None:
        """Let go of device-mapper; a pool without snapshots does not stay up."""
        with suppress(LayerfsError, OSError):
            self._rest()
        self._mapper.close()
        self._ledger.close()

    def detach(self) -> bool:
        """Take the pool and all its devices from the kernel until the next opening (`layerfs.contract.Detachable`)."""
        with self._lock(exclusive=True):
            return self._stop()

    def check(self, snapshots: Iterable[Snapshot]) -> Iterable[Damage]:
        """Tell what the kernel and the pool no longer have of these (`layerfs.contract.Checkable`)."""
        with self._up() as pool:
            fill = Fill.parse(pool.text)
            if fill.mode != "rw":
                failed = self._room.full(fill)
                yield Damage(None, failed.message, failed.hint or "")
            for snapshot in snapshots:
                entry = self._ledger.find(snapshot.id)
                if entry is not None and (damage := self._damage(entry, pool.device)):
                    yield damage

    def open(self) -> None:
        """Bring the pool up with every device that is to be there; make it where there is none."""
        with self._up():
            pass

    # The pool

    @contextmanager
    def _up(self) -> Iterator[Status]:
        """Hold the pool up while the block runs, and tell how it is."""
        while True:
            with self._lock(exclusive=False):
                status = self._pool.status()
                if status is not None:
                    yield status
                    return
            with self._lock(exclusive=True):
                if self._pool.status() is None:
                    self._bring_up()

    def _bring_up(self) -> None:
        base = self._ledger.find(BASE)
        if base is None:
            self._start_over()
        with ExitStack() as undo:
            undo.callback(self._pool.stop)
            pool = self._pool.start()
            marked = self._pool.check(Fill.parse(pool.text))
            if base is None:
                blocks, inodes = self._pool.make_base(pool.device)
                # The root directory belongs to each snapshot that starts from the base.
                self._ledger.change(Entry(BASE, State.COMMITTED, BASE, blocks, inodes - 1))
                self._ledger.sync()
            elif not marked and not self._show(BASE, pool.device):
                raise Corrupt(
                    f"the pool of {self._root} has lost its metadata", hint="thin_check; restore them from a backup"
                )
            self._pool.hide(BASE)
            if not marked:
                self._pool.mark()
            self._show_all(pool.device)
            self._pool.finish_start()
            undo.pop_all()

    def _start_over(self) -> None:
        """Erase what a first opening left that was killed; raise `Corrupt` for a pool that was whole."""
        self._pool.stop()
        if self._pool.is_formatted():
            try:
                marked = self._pool.check(Fill.parse(self._pool.start().text))
            finally:
                self._pool.stop()
            if marked:
                raise Corrupt(
                    f"{self._root} has lost its ledger, but not its pool", hint="restore the file from a backup"
                )
        self._pool.erase()

    def _show_all(self, pool: Device) -> None:
        """Show what was open; after a crash ask the pool for the devices of which the ledger is not sure."""
        for uncertain in self._ledger.uncertain():
            if self._show(uncertain, pool):
                _log.info("snapshot %d was made just before the crash", uncertain)
                self._ledger.change(Entry(uncertain, State.OPEN))
            else:
                self._ledger.drop(uncertain)
        self._ledger.sync()
        for entry in self._ledger.entries():
            if entry.state is State.OPEN and not self._show(entry.id, pool):
                _log.warning("the pool has no device of snapshot %d any more", entry.id)

    def _show(self, id: SnapshotId, pool: Device) -> bool:  # noqa: A002  the contract's word
        """Show a snapshot's device; return False where the pool has none."""
        try:
            self._pool.show(id, pool)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return False
        return True

    def _fill(self) -> Fill | None:
        pool = self._pool.status()
        return None if pool is None else Fill.parse(pool.text)

    def _rest(self) -> None:
        """Take a pool without snapshots from the kernel, unless somebody works with it."""
        if self._ledger.is_empty():
            with suppress(Busy), self._lock(exclusive=True, wait=False):
                if self._ledger.is_empty():
                    self._stop()

    def _stop(self) -> bool:
        stopped = self._pool.stop()
        if stopped:
            self._ledger.settle()
        return stopped

    def _lock(self, *, exclusive: bool, wait: bool = True) -> AbstractContextManager[None]:
        what, timeout = f"the pool of {self._root}", None if wait else 0
        return locks.locked(self._lock_file, _POOL, exclusive=exclusive, what=what, timeout=timeout)

    # Devices

    def _measure(self, entry: Entry) -> tuple[int, int]:
        """Return the blocks and inodes that a snapshot has with its parents."""
        if entry.state is State.COMMITTED:
            return entry.blocks, entry.inodes
        device = self._pool.device(entry.id)
        if device is None:
            raise Corrupt(f"{self._pool.path(entry.id)} is gone", hint="`layerfs store close`, then try again")
        numbers = os.major(device.number), os.minor(device.number)
        point = next(iter(mountinfo.showing(numbers, "/")), None)
        if point is None:
            return self._pool.blocks(entry.id), blockdevices.used_inodes(self._pool.path(entry.id))
        tree.syncfs(point.path)  # what waits in memory has no blocks yet
        counts = os.statvfs(point.path)
        return self._pool.blocks(entry.id), counts.f_files - counts.f_ffree

    def _check_quota(self, snapshot: Snapshot) -> None:
        if snapshot.quota and not self._pool.plan.quotas:
            raise Unsupported(
                f"the pool of {self._root} was made without quotas: each clone has {self._pool.plan.device_size} bytes",
                hint="make a store with --option quotas=on, or with another device-size, and `layerfs migrate` to it",
            )

    def _above(self, snapshot: Snapshot) -> Usage:
        return self._counts.get(snapshot.parent or BASE)

    @contextmanager
    def _mounted(self, snapshot: Snapshot) -> Iterator[Path]:
        """Give where the file system of an active snapshot is mounted, by others or for the time of the block."""
        mounts = self.mounts(snapshot)
        if found := mounting.users(mounts):
            tree.syncfs(found[0].path)
            yield found[0].path
            return
        with mounting.mounted(mounts) as place:
            yield place

    @contextmanager
    def _counted(self, snapshot: Snapshot) -> Iterator[None]:
        """Count what a snapshot takes that is being committed, and lift its limit, which its children would inherit.

        If the block raises, it has its limit again.
        """
        with self._mounted(snapshot) as place:
            self._counts.put(snapshot.id, counting.used(place))
            counting.limit(place, NO_QUOTA, Usage())
        try:
            yield
        except BaseException:
            if snapshot.quota:
                with self._mounted(snapshot) as place:
                    counting.limit(place, snapshot.quota, self._above(snapshot))
            raise

    def _check_closed(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        if self._pool.is_open(id):
            place = self._pool.path(id)
            raise Busy(f"{place} is mounted or open", hint=f"umount {place}, then try again")

    @contextmanager
    def _resting(self, entry: Entry) -> Iterator[None]:
        """Keep writes from a device of which a snapshot is taken; one that is committed has none."""
        if entry.state is State.COMMITTED:
            yield
            return
        with self._device_lock(entry.id), self._pool.quiet(entry.id):
            yield

    def _device_lock(self, id: SnapshotId) -> AbstractContextManager[None]:  # noqa: A002  the contract's word
        place = locks.named(f"device/{id}")
        return locks.locked(self._lock_file, place, exclusive=True, what=f"the device of snapshot {id}")

    def _damage(self, entry: Entry, pool: Device) -> Damage | None:
        place = self._pool.path(entry.id)
        if self._pool.device(entry.id) is None:
            there = self._show(entry.id, pool)
            self._pool.hide(entry.id)
            if not there:
                return Damage(entry.id, f"the pool has no device of {place.name} any more", _GONE)
            if entry.state is State.OPEN:
                return Damage(entry.id, f"{place} was taken from the kernel", _TAKEN)
            return None
        try:
            self._pool.blocks(entry.id)
        except Corrupt as error:
            return Damage(entry.id, error.message, error.hint or "")
        return None

    def _undo(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        self._pool.hide(id)
        self._pool.delete(id)
        self._ledger.drop(id)

    def _give_back(self, entry: Entry, pool: Device) -> None:
        """Discard the blocks that only this device has: deleting it alone keeps them in the file of the pool."""
        try:
            if entry.state is State.COMMITTED:
                self._pool.show(entry.id, pool)
            blockdevices.discard(self._pool.path(entry.id))
        except OSError as error:
            _log.info("the space of snapshot %d does not go back to the disk: %s", entry.id, error)


def open_driver(root: Path, options: Mapping[str, str]) -> Driver:
    """Open the devicemapper driver on ``root``; raise `Unsupported` where the kernel has no dm-thin.

    Without options the pool is in files below ``root``, of ``size`` bytes at the most; ``data`` and ``metadata`` name
    devices to use instead. ``device-size`` is that of each snapshot's file system ``fs`` (ext4 or xfs). ``discard=no``
    does not give the space of what is removed back to the disk below the pool.
    """
    settings = parse(options)
    mapper = Mapper()
    with ExitStack() as undo:
        undo.callback(mapper.close)
        if not mapper.has_target("thin-pool"):
            raise Unsupported("this kernel has no thin provisioning", hint="modprobe dm-thin-pool")
        if not root.exists():
            undo.callback(_remove_empty, root)
        # Layers hold setuid programs: no other user of the host may reach them (containerd's CVE-2021-41103).
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locks.locked(root / "lock", locks.named("plan"), exclusive=True, what=f"the opening of {root}"):
            plan = Plan.load(root / "pool")
            if plan is None:
                undo.callback(_remove_files, root)
            pool = Pool(root, plan or settings.plan(root), settings.backing, mapper)
            if plan is None:
                pool.check_blank()
                undo.callback(pool.erase)
                pool.plan.save(root / "pool")
            settings.check(pool.plan)
            driver = DeviceMapperDriver(
                root, pool, mapper, files=settings.backing.data is None, discard=settings.discard
            )
            driver.open()
        undo.pop_all()
    return driver


def _remove_files(root: Path) -> None:
    """Delete what a driver that could not be opened for the first time made."""
    for name in ("ledger", "pool", "lock", "data.img", "metadata.img"):
        (root / name).unlink(missing_ok=True)


def _remove_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()
