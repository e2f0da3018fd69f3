"""A thin pool, on two files of the driver's own or on two given devices, and the devices of snapshots in it.

::

    <root>/pool             what the pool was made with
    <root>/data.img         its blocks, and <root>/metadata.img which device has which; without given devices

The kernel knows them as ``layerfs-<pool>-pool`` and ``layerfs-<pool>-<id>``. A pool that is being brought up has the
name ``layerfs-<pool>-starting`` until all devices are there, so that a crash in between shows.

Source: the kernel's Documentation/admin-guide/device-mapper/thin-provisioning.rst.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from layerfs.contract import Mount, SnapshotId
from layerfs.errors import Busy, Corrupt, FailedPrecondition, NoSpace, Unsupported
from layerfs.kernel import blockdevices, loop, mounting
from layerfs.kernel.dm import DIRECTORY, SECTOR, Device, Mapper, Status, Target
from layerfs_backends.thin import counting
from layerfs_backends.thin.counting import Counts
from layerfs_backends.thin.ledger import BASE
from layerfs_backends.thin.plan import BLOCK, Backing, Fill, Plan, low_water

_METADATA_SHARE = 256
"""The file of the metadata is one part in so many of the data's: 4 times what one device mapped in full takes."""
_METADATA_LEAST, _METADATA_MOST = 16 << 20, 16 << 30
_METADATA_HEAD = 4096
_BLANK = 128 << 10
"""Bytes at the start of a given device that must be zero: file systems, LVM and dm-thin have their marks there."""

_MAKE: dict[str, tuple[str, ...]] = {
    # A new thin device reads as zeros, so nothing needs zeroing: neither now nor by a thread in every clone. The
    # journal is the part of a file system that every clone sooner or later writes all over.
    "ext4": ("-m", "0", "-J", "size=16", "-E", "nodiscard,assume_storage_prezeroed=1,lazy_itable_init=0"),
    "xfs": ("-K",),
}
_COUNTING = {"ext4": ("-O", "quota,project"), "xfs": ()}
FILE_SYSTEMS = tuple(_MAKE)
_NEW = "-new"
"""Ends the mark of a device that the kernel has had since it was made."""


class Pool:
    """Bring a pool up and down, and make, show and delete its thin devices. Its methods raise ``OSError`` too.

    Nothing here locks or remembers: the driver does.
    """

    def __init__(self, root: Path, plan: Plan, backing: Backing, mapper: Mapper) -> None:
        self.plan = plan
        self._root = root
        self._backing = backing
        self._mapper = mapper
        self._prefix = f"layerfs-{plan.tag}-"
        self._name = f"{self._prefix}pool"
        self._starting = f"{self._prefix}starting"

    # The pool

    def status(self) -> Status | None:
        """Return the pool's device, and what `Fill` reads; None where it is not up."""
        try:
            return self._mapper.status(self._name)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None

    def start(self) -> Status:
        """Give the kernel the pool under its first name, if it has none; raise what is in the way."""
        found = self._mapper.find(self._starting)
        if found is None or not found.active:
            self._create()
        return self._mapper.status(self._starting)

    def _create(self) -> None:
        with ExitStack() as stack:
            self._given()
            metadata = self._source(stack, self._backing.metadata, "metadata.img", self._metadata_size())
            data = self._source(stack, self._backing.data, "data.img", self.plan.size)
            size = blockdevices.size(data) // BLOCK
            numbers = " ".join(
                f"{os.major(it)}:{os.minor(it)}" for it in (os.stat(p).st_rdev for p in (metadata, data))
            )
            # Not "skip_block_zeroing": the rest of a block would show what a snapshot wrote there that is gone. Where
            # that is the journal of a sibling, with the numbers that come next, recovery after a crash would replay it.
            features = "1 error_if_no_space"
            parameters = f"{numbers} {BLOCK // SECTOR} {low_water(size * BLOCK) // BLOCK} {features}"
            self._mapper.create(self._starting, Target(size * BLOCK // SECTOR, "thin-pool", parameters))

    def check(self, found: Fill) -> bool:
        """Tell whether the pool has been marked as ours; raise if it is another one."""
        if found.mark not in {0, self.plan.mark}:
            raise FailedPrecondition(
                f"the metadata of {self._root} belong to another pool",
                hint="give the devices that the store was made with: --option data=DEVICE --option metadata=DEVICE",
            )
        return found.mark != 0

    def mark(self) -> None:
        """Mark a pool as ours and whole, by its transaction id, which the kernel keeps and does not use itself."""
        self._tell(f"set_transaction_id 0 {self.plan.mark}")

    def finish_start(self) -> None:
        """Give the pool its lasting name."""
        self._mapper.rename(self._starting, self._name)

    def stop(self) -> bool:
        """Take all devices and the pool from the kernel; return whether there was one. Raise `Busy` for one in use."""
        names = self._names()
        devices = sorted(names - {self._name, self._starting})
        for name in devices:
            if self._mapper.is_busy(name):
                raise Busy(f"{DIRECTORY / name} is in use", hint=f"umount {DIRECTORY / name}")
        for name in (*devices, self._name, self._starting):
            if name in names:
                self._mapper.remove(name)
        return bool(names)

    def is_formatted(self) -> bool:
        """Tell whether there are metadata of a pool, whole or not."""
        if self._backing.metadata is not None:
            return not blockdevices.is_blank(self._backing.metadata, _METADATA_HEAD)
        try:
            with open(self._root / "metadata.img", "rb") as file:
                return any(file.read(_METADATA_HEAD))
        except FileNotFoundError:
            return False

    def erase(self) -> None:
        """Start with new files, or with the given devices as blank as `check_blank` found them."""
        for device in self._given():
            blockdevices.clear(device, _BLANK)
        if not self._given():
            for name, size in (("metadata.img", self._metadata_size()), ("data.img", self.plan.size)):
                (self._root / name).unlink(missing_ok=True)
                loop.create_image(self._root / name, size)

    def check_blank(self) -> None:
        """Raise `FailedPrecondition` for given devices that may hold somebody's data."""
        for device in self._given():
            if not blockdevices.is_blank(device, _BLANK):
                raise FailedPrecondition(
                    f"{device} is not blank: it may hold somebody's data",
                    hint=f"if nobody needs it: blkdiscard -f {device}, or dd if=/dev/zero of={device} bs=128K count=1",
                )

    def make_base(self, pool: Device) -> tuple[int, int]:
        """Make the thin device of the base with an empty file system, and return its blocks and inodes."""
        self._tell(f"create_thin {BASE}")
        self.show(BASE, pool)
        place = self.path(BASE)
        try:
            kind = self.plan.file_system
            counts = _COUNTING[kind] if self.plan.quotas else ()
            loop.make_file_system(place, kind, options=(*_MAKE[kind], *counts))
            with mounting.mounted([self.mount_of(BASE, writable=True)]) as root:
                if (root / "lost+found").exists():  # a container's root starts empty
                    (root / "lost+found").rmdir()
                root.chmod(0o755)
                if self.plan.quotas:
                    counting.begin(root)
                    Counts(self._root).put(BASE, counting.used(root))
            blockdevices.flush(place)
            return self.blocks(BASE), blockdevices.used_inodes(place)
        finally:
            self.hide(BASE)

    # Its devices

    def path(self, id: SnapshotId) -> Path:  # noqa: A002  the contract's word
        """Return the place of a snapshot's device."""
        return DIRECTORY / self._device(id)

    def mount_of(self, id: SnapshotId, *, writable: bool) -> Mount:  # noqa: A002  the contract's word
        """Return the mount of a device's file system; all xfs here have one id, which the kernel allows on request."""
        options = ("rw" if writable else "ro", *(("nouuid",) if self.plan.file_system == "xfs" else ()))
        if writable and self.plan.quotas:
            options += ("prjquota",)
        return Mount(self.plan.file_system, f"{DIRECTORY}/{self._device(id)}", options)

    def snapshot(self, id: SnapshotId, origin: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Make a thin device as a snapshot of another, which must not be written to meanwhile (`quiet`)."""
        self._tell(f"create_snap {id} {origin}")

    def delete(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Delete a thin device, which must not be shown; what is gone already is no error."""
        try:
            self._tell(f"delete {id}")
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise

    def show(self, id: SnapshotId, pool: Device, *, new: bool = False) -> None:  # noqa: A002  the contract's word
        """Give the kernel a thin device as the device of a snapshot; what is there already is no error.

        ``new`` tells that it was made just now. Raise ENODATA for a thin device that the pool does not have.
        """
        name = self._device(id)
        target = Target(self.plan.device_size // SECTOR, "thin", f"{pool.source} {id}")
        try:
            self._mapper.create(name, target, mark=f"{name}{_NEW}" if new else "")
        except OSError as error:
            if error.errno != errno.EBUSY:  # the name is taken
                raise

    def hide(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Take the device of a snapshot from the kernel; raise `Busy` for one that is mounted."""
        try:
            self._mapper.remove(self._device(id))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise Busy(f"{self.path(id)} is in use", hint=f"umount {self.path(id)}, then try again") from error

    def is_open(self, id: SnapshotId) -> bool:  # noqa: A002  the contract's word
        """Tell whether somebody has a snapshot's device open or mounted, in whatever namespace."""
        return self._mapper.is_busy(self._device(id))

    def is_untouched(self, device: Device) -> bool:
        """Tell whether a snapshot's device has no blocks of its own, for nobody wrote to it since it was made."""
        return device.mark.endswith(_NEW) and device.is_unwritten()

    @contextmanager
    def quiet(self, id: SnapshotId) -> Iterator[None]:  # noqa: A002  the contract's word
        """Let the device of a snapshot rest while the block runs: what is mounted is written out and waits."""
        name = self._device(id)
        if self._mapper.find(name) is None:
            yield
            return
        with self._mapper.suspended(name):
            yield

    def resume(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Let a device go on that a killed process left resting."""
        device = self._mapper.find(self._device(id))
        if device is not None and device.suspended:
            self._mapper.resume(self._device(id))

    def device(self, id: SnapshotId) -> Device | None:  # noqa: A002  the contract's word
        """Return a snapshot's device; None where it is not there."""
        return self._mapper.find(self._device(id))

    def blocks(self, id: SnapshotId) -> int:  # noqa: A002  the contract's word
        """Return how many blocks a snapshot's device has, those that it shares among them."""
        words = self._mapper.status(self._device(id)).text.split()
        if not words or not words[0].isdecimal():
            raise Corrupt(f"{self.path(id)} has failed: {' '.join(words)}", hint="look into dmesg")
        return int(words[0]) * SECTOR // BLOCK

    def _device(self, id: SnapshotId) -> str:  # noqa: A002  the contract's word
        return f"{self._prefix}{id}"

    def _tell(self, text: str) -> None:
        try:
            self._mapper.message(self._name, text)
        except OSError as error:
            if error.errno == errno.ENXIO:
                self._mapper.message(self._starting, text)
                return
            if error.errno in {errno.EOPNOTSUPP, errno.ENOSPC}:
                raise NoSpace(
                    f"the thin pool of {self._root} takes no more changes: its metadata are full or damaged",
                    hint="look into dmesg; thin_check and thin_repair mend the metadata of a pool that is not up",
                ) from error
            raise

    def _given(self) -> tuple[Path, ...]:
        """Return the given devices, that of the metadata first; raise `Unsupported` for what is none."""
        found = tuple(device for device in (self._backing.metadata, self._backing.data) if device is not None)
        for device in found:
            if not device.is_block_device():
                raise Unsupported(f"{device} is no block device", hint="`lsblk` lists them")
        return found

    def _names(self) -> frozenset[str]:
        return frozenset(name for name in self._mapper.names() if name.startswith(self._prefix))

    def _metadata_size(self) -> int:
        return min(max(_METADATA_LEAST, self.plan.size // _METADATA_SHARE), _METADATA_MOST)

    def _source(self, stack: ExitStack, given: Path | None, name: str, size: int) -> Path:
        """Return a given device, or a loop device of a file, which the pool keeps when the stack has closed it."""
        if given is not None:
            return given
        image = self._root / name
        if not image.exists() or image.stat().st_size < size:
            raise Corrupt(f"{image} is gone or too short for the pool that it holds", hint="restore it from a backup")
        return stack.enter_context(loop.attach(image)).path
