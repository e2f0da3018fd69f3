"""The devicemapper driver: each snapshot is a thin device of one pool, with a file system of its own (dm-thin).

A snapshot without a parent is a snapshot of the *base*, an empty file system that is made once. Writes go to new blocks
of 64 KiB, whatever the size of the file, and lookups cost the same at every depth. Devices of active snapshots and
views are there from their creation to their end; a committed one has none, for nobody mounts it. What a restart took
from the kernel comes back when the driver is opened.

Source: the kernel's Documentation/admin-guide/device-mapper/thin-provisioning.rst.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from layerfs import locks, tree
from layerfs.contract import CopyUnit, Driver, Mount, Snapshot, SnapshotId, Traits, Usage, WritePolicy
from layerfs.errors import (
    Busy,
    Corrupt,
    LayerfsError,
    NoSpace,
    OperationFailed,
    Unsupported,
)
from layerfs.kernel import blockdevices, mountinfo
from layerfs.kernel.dm import Mapper
from layerfs_backends.thin.ledger import BASE, Entry, Ledger, State
from layerfs_backends.thin.options import parse
from layerfs_backends.thin.pool import BLOCK, Fill, Plan, Pool, low_water

_log = logging.getLogger(__name__)


class DeviceMapperDriver:
    """Keep every snapshot as a thin device, named in the ledger."""

    name: ClassVar[str] = "devicemapper"
    traits: ClassVar[Traits] = Traits(CopyUnit.BLOCK, WritePolicy.REDIRECT_ON_WRITE)

    def __init__(self, root: Path, pool: Pool, mapper: Mapper, *, files: bool, discard: bool) -> None:
        self._root = root
        self._pool = pool
        self._mapper = mapper
        self._files = files
        self._discard = discard
        self._ledger = Ledger(root)

    def create(self, snapshot: Snapshot) -> None:
        """Make a thin snapshot of the parent, or of the base, and show it; raise `NoSpace` before the pool is full."""
        origin = snapshot.parent or BASE
        with self._up() as fill:
            if snapshot.writable:
                self._check_room(fill)
            above = self._ledger.get(origin)
            entry = Entry(snapshot.id, State.CREATING, self._ledger.take_number(), origin)
            self._ledger.add(entry)
            with ExitStack() as undo:
                undo.callback(self._undo, entry)
                with self._resting(above):
                    self._pool.snapshot(entry.number, above.number)
                self._pool.show(entry.id, entry.number)
                self._ledger.change(replace(entry, state=State.OPEN), durable=True)
                self._ledger.sync()
                undo.pop_all()

    def mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """Return the mount of the device's file system."""
        return (self._pool.mount_of(self._pool.path(snapshot.id), writable=snapshot.writable),)

    def commit(self, snapshot: Snapshot) -> None:
        """Put the device on disk, count it and take it from the kernel; raise `Busy` while it is mounted.

        A mount would go on writing to what others stand on.
        """
        with self._up() as before:
            entry = self._ledger.get(snapshot.id)
            if entry.state is not State.COMMITTED:
                self._check_closed(entry.id)
                self._check_complete(before)
                try:
                    blockdevices.flush(self._pool.path(entry.id))
                finally:  # what a full pool refused shows as EIO
                    self._check_complete(self._pool.fill())
                blocks, inodes = self._measure(entry)
                entry = replace(entry, state=State.COMMITTED, blocks=blocks, inodes=inodes)
                self._ledger.change(entry, durable=True)
            self._pool.hide(entry.id)

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
        with self._up():
            if entry.state is State.CREATING:
                with self._device_lock(entry.origin):
                    self._pool.resume(entry.origin)
            self._check_closed(id)
            self._ledger.change(replace(entry, state=State.REMOVING), durable=False)
            if self._discard and entry.state in {State.OPEN, State.COMMITTED}:
                self._give_back(entry)
            self._pool.hide(id)
            self._pool.delete(entry.number)
            self._ledger.drop(id)
        self._rest()

    def ids(self) -> Iterable[SnapshotId]:
        """List the snapshots, and those that a crash left half made or half deleted."""
        return self._ledger.ids()

    def close(self) -> None:
        """Let go of device-mapper; a pool without snapshots does not stay up."""
        with suppress(LayerfsError, OSError):
            self._rest()
        self._mapper.close()

    def detach(self) -> bool:
        """Take the pool and all its devices from the kernel until the next opening (`layerfs.contract.Detachable`)."""
        with self._lock(exclusive=True):
            return self._stop()

    def open(self) -> None:
        """Bring the pool up with every device that is to be there; make it where there is none."""
        with self._up():
            pass

    # The pool

    @contextmanager
    def _up(self) -> Iterator[Fill]:
        """Hold the pool up while the block runs, and tell how full it is."""
        while True:
            with self._lock(exclusive=False):
                fill = self._pool.fill()
                if fill is not None:
                    yield fill
                    return
            with self._lock(exclusive=True):
                if self._pool.fill() is None:
                    self._bring_up()

    def _bring_up(self) -> None:
        base = self._ledger.find(BASE)
        if base is None:
            self._pool.stop()
            self._pool.erase()
        with ExitStack() as undo:
            undo.callback(self._pool.stop)
            self._pool.start()
            if not self._pool.check():
                if base is not None:
                    raise Corrupt(
                        f"the pool of {self._root} has lost its metadata", hint="thin_check; restore them from a backup"
                    )
                self._pool.mark()
            if base is None:
                blocks, inodes = self._pool.make_base()
                # The root directory belongs to each snapshot that starts from the base.
                self._ledger.add(Entry(BASE, State.COMMITTED, 0, BASE, blocks, inodes - 1))
                self._ledger.sync()
            for number in self._ledger.lost_numbers():
                self._pool.delete(number)
            for entry in self._ledger.entries():
                if entry.state is State.OPEN:
                    self._pool.show(entry.id, entry.number)
            self._pool.finish_start()
            undo.pop_all()

    def _rest(self) -> None:
        """Take a pool without snapshots from the kernel, unless somebody works with it."""
        if self._ledger.is_empty():
            with suppress(Busy), self._lock(exclusive=True, wait=False):
                if self._ledger.is_empty():
                    self._stop()

    def _stop(self) -> bool:
        stopped = self._pool.stop()
        if stopped:
            self._ledger.settle_numbers()
        return stopped

    def _lock(self, *, exclusive: bool, wait: bool = True) -> AbstractContextManager[None]:
        place, timeout = locks.named("pool"), None if wait else 0
        return locks.locked(
            self._root / "lock", place, exclusive=exclusive, what=f"the pool of {self._root}", timeout=timeout
        )

    def _check_room(self, fill: Fill) -> None:
        short = fill.free < low_water(fill.total) or fill.metadata_free < low_water(fill.metadata_total)
        if fill.mode != "rw" or short:
            raise self._full(fill)
        if self._files:
            disk = os.statvfs(self._root)
            if disk.f_bavail * disk.f_frsize < low_water(disk.f_blocks * disk.f_frsize):
                raise NoSpace(
                    f"the disk of {self._root} is nearly full, and the pool is a file on it",
                    hint="free some space there, or remove clones and images (`layerfs prune`)",
                )

    def _check_complete(self, fill: Fill | None) -> None:
        """Raise where what a mount has written may not be there: an unmount does not tell.

        A full pool calls itself writable again at the next flush if a block is left, so a rest of one part in a hundred
        counts as none.
        """
        if fill is None or fill.mode != "rw" or fill.free < fill.total // 100:
            raise self._full(fill)

    def _full(self, fill: Fill | None) -> LayerfsError:
        if fill is None or fill.mode in {"Fail", "needs_check", "ro"}:
            return OperationFailed(
                f"the thin pool of {self._root} has failed ({fill.mode if fill else 'gone'})",
                hint="look into dmesg; `layerfs store close`, then thin_check and thin_repair on its metadata",
            )
        return NoSpace(
            f"the thin pool of {self._root} is nearly full: {fill.free >> 20} MiB of {fill.total >> 20} are free,"
            f" {fill.metadata_free >> 20} of {fill.metadata_total >> 20} for its metadata",
            hint="remove clones and images (`layerfs prune` shows what nobody uses)",
        )

    # Devices

    def _measure(self, entry: Entry) -> tuple[int, int]:
        """Return the blocks and inodes that a snapshot has with its parents."""
        if entry.state is State.COMMITTED:
            return entry.blocks, entry.inodes
        device = self._pool.device(entry.id)
        if device is None:
            raise Corrupt(f"{self._pool.path(entry.id)} is gone", hint="`layerfs store close`, then try again")
        point = next(iter(mountinfo.showing(device, "/")), None)
        if point is None:
            return self._pool.blocks(entry.id), blockdevices.used_inodes(self._pool.path(entry.id))
        tree.syncfs(point.path)  # what waits in memory has no blocks yet
        counts = os.statvfs(point.path)
        return self._pool.blocks(entry.id), counts.f_files - counts.f_ffree

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
        return locks.locked(self._root / "lock", place, exclusive=True, what=f"the device of snapshot {id}")

    def _undo(self, entry: Entry) -> None:
        self._pool.hide(entry.id)
        self._pool.delete(entry.number)
        self._ledger.drop(entry.id)

    def _give_back(self, entry: Entry) -> None:
        """Discard the blocks that only this device has: deleting it alone keeps them in the file of the pool."""
        try:
            self._pool.show(entry.id, entry.number)
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
    for name in ("devices/0", "pool", "lock", "numbers", "data.img", "metadata.img"):
        (root / name).unlink(missing_ok=True)
    _remove_empty(root / "devices")


def _remove_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()
