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
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from layerfs.contract import Mount, SnapshotId
from layerfs.errors import Busy, Corrupt, FailedPrecondition, NoSpace, Unsupported
from layerfs.kernel import blockdevices, loop, mounting
from layerfs.kernel.dm import DIRECTORY, SECTOR, Mapper, Target

BLOCK = 64 << 10
"""Bytes of a block: what the first write to a shared one copies. Docker's and containerd's choice."""

_METADATA_BLOCK = 4096
_METADATA_SHARE = 256
"""The file of the metadata is one part in so many of the data's: 4 times what one device mapped in full takes."""
_METADATA_LEAST, _METADATA_MOST = 16 << 20, 16 << 30
_BLANK = 128 << 10
"""Bytes at the start of a given device that must be zero: file systems, LVM and dm-thin have their marks there."""

_MAKE: dict[str, tuple[str, ...]] = {
    # A new thin device reads as zeros, so nothing needs zeroing: neither now nor by a thread in every clone. The
    # journal is the part of a file system that every clone sooner or later writes all over.
    "ext4": ("-m", "0", "-J", "size=16", "-E", "nodiscard,assume_storage_prezeroed=1,lazy_itable_init=0"),
    "xfs": ("-K",),
}
FILE_SYSTEMS = tuple(_MAKE)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pool is made with; ``size`` of the data and ``device_size`` of each snapshot's file system in bytes.

    ``size`` is 0 where the devices are given, ``tag`` and ``mark`` tell the pool from others.
    """

    tag: str
    mark: int
    size: int
    device_size: int
    file_system: str

    @classmethod
    def new(cls, size: int, device_size: int, file_system: str) -> Plan:
        """Return one with a tag and a mark of its own."""
        return cls(secrets.token_hex(4), 1 + secrets.randbits(62), size, device_size, file_system)

    @classmethod
    def load(cls, place: Path) -> Plan | None:
        """Read what was saved; None where nothing was; raise `Corrupt`."""
        try:
            return cls(**json.loads(place.read_text(encoding="ascii")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise Corrupt(f"{place} is damaged: {error}") from error

    def save(self, place: Path) -> None:
        """Write it down, all of it or nothing."""
        new = place.with_name(f".{place.name}.new")
        with open(new, "w", encoding="ascii") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        new.rename(place)


@dataclass(frozen=True, slots=True)
class Fill:
    """How full a pool is, in bytes, and its ``mode``: rw, ro, out_of_data_space, Fail."""

    mark: int
    mode: str
    free: int
    total: int
    metadata_free: int
    metadata_total: int

    @classmethod
    def parse(cls, status: str) -> Fill:
        """Read what the target "thin-pool" tells; all figures are 0 for a pool that failed."""
        words = status.split()
        if len(words) < 5:  # noqa: PLR2004  "Fail" or "Error" alone
            return cls(0, words[0] if words else "Fail", 0, 0, 0, 0)
        (metadata_used, metadata_total), (used, total) = (map(int, word.split("/")) for word in words[1:3])
        mode = next((word for word in words if word in {"rw", "ro", "out_of_data_space"}), "Fail")
        if "needs_check" in words:
            mode = "needs_check"
        return cls(
            int(words[0]),
            mode,
            (total - used) * BLOCK,
            total * BLOCK,
            (metadata_total - metadata_used) * _METADATA_BLOCK,
            metadata_total * _METADATA_BLOCK,
        )


@dataclass(frozen=True, slots=True)
class Backing:
    """The devices of data and metadata; None for the files of the driver's own."""

    data: Path | None = None
    metadata: Path | None = None


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

    def fill(self) -> Fill | None:
        """Tell how full it is; None where it is not up."""
        try:
            return Fill.parse(self._mapper.status(self._name))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None

    def start(self) -> None:
        """Give the kernel the pool under its first name, if it has none; raise what is in the way."""
        if self._mapper.find(self._starting) is not None:
            return
        with ExitStack() as stack:
            self._given()
            metadata = self._source(stack, self._backing.metadata, "metadata.img", self._metadata_size())
            data = self._source(stack, self._backing.data, "data.img", self.plan.size)
            size = blockdevices.size(data) // BLOCK
            numbers = " ".join(
                f"{os.major(it)}:{os.minor(it)}" for it in (os.stat(p).st_rdev for p in (metadata, data))
            )
            # Blocks are not zeroed when they are handed out: what a file system has not written, it does not show.
            features = "2 skip_block_zeroing error_if_no_space"
            parameters = f"{numbers} {BLOCK // SECTOR} {low_water(size * BLOCK) // BLOCK} {features}"
            self._mapper.create(self._starting, Target(size * BLOCK // SECTOR, "thin-pool", parameters))

    def check(self) -> bool:
        """Tell whether the pool under its first name has been marked as ours; raise if it is another one."""
        found = Fill.parse(self._mapper.status(self._starting))
        if found.mark not in {0, self.plan.mark}:
            raise FailedPrecondition(
                f"the metadata of {self._root} belong to another pool",
                hint="give the devices that the store was made with: --option data=DEVICE --option metadata=DEVICE",
            )
        return found.mark != 0

    def mark(self) -> None:
        """Mark a new pool as ours, by its transaction id, which the kernel keeps and does not use itself."""
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

    def erase(self) -> None:
        """Start with new files, or with the given devices as blank as `check_blank` found them."""
        for device in self._given():
            blockdevices.clear(device, _BLANK)
        if not self._given():
            for name, size in (("data.img", self.plan.size), ("metadata.img", self._metadata_size())):
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

    def make_base(self) -> tuple[int, int]:
        """Make thin device 0 with an empty file system, and return its blocks and inodes."""
        name = f"{self._prefix}base"
        self._mapper.remove(name)  # left by a crash
        try:
            self._tell("create_thin 0")
        except FileExistsError:  # a crash left it, in whatever state
            self.delete(0)
            self._tell("create_thin 0")
        self._show(name, 0)
        place = DIRECTORY / name
        try:
            loop.make_file_system(place, self.plan.file_system, options=_MAKE[self.plan.file_system])
            with mounting.mounted([self.mount_of(place, writable=True)]) as root:
                if (root / "lost+found").exists():  # a container's root starts empty
                    (root / "lost+found").rmdir()
                root.chmod(0o755)
            blockdevices.flush(place)
            return self._blocks(name), blockdevices.used_inodes(place)
        finally:
            self._mapper.remove(name)

    # Its devices

    def path(self, id: SnapshotId) -> Path:  # noqa: A002  the contract's word
        """Return the place of a snapshot's device."""
        return DIRECTORY / f"{self._prefix}{id}"

    def mount_of(self, place: Path, *, writable: bool) -> Mount:
        """Return the mount of a device's file system; all xfs here have one id, which the kernel allows on request."""
        options = ("rw" if writable else "ro", *(("nouuid",) if self.plan.file_system == "xfs" else ()))
        return Mount(self.plan.file_system, str(place), options)

    def snapshot(self, number: int, origin: int) -> None:
        """Make a thin device as a snapshot of another, which must not be written to meanwhile (`quiet`)."""
        self._tell(f"create_snap {number} {origin}")

    def delete(self, number: int) -> None:
        """Delete a thin device, which must not be shown; what is gone already is no error."""
        try:
            self._tell(f"delete {number}")
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise

    def show(self, id: SnapshotId, number: int) -> None:  # noqa: A002  the contract's word
        """Give the kernel a thin device as the device of a snapshot; what is there already is no error."""
        if self._mapper.find(f"{self._prefix}{id}") is None:
            self._show(f"{self._prefix}{id}", number)

    def hide(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Take the device of a snapshot from the kernel; raise `Busy` for one that is mounted."""
        try:
            self._mapper.remove(f"{self._prefix}{id}")
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise Busy(f"{self.path(id)} is in use", hint=f"umount {self.path(id)}, then try again") from error

    def is_open(self, id: SnapshotId) -> bool:  # noqa: A002  the contract's word
        """Tell whether somebody has a snapshot's device open or mounted, in whatever namespace."""
        return self._mapper.is_busy(f"{self._prefix}{id}")

    @contextmanager
    def quiet(self, id: SnapshotId) -> Iterator[None]:  # noqa: A002  the contract's word
        """Let the device of a snapshot rest while the block runs: what is mounted is written out and waits."""
        name = f"{self._prefix}{id}"
        if self._mapper.find(name) is None:
            yield
            return
        with self._mapper.suspended(name):
            yield

    def resume(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Let a device go on that a killed process left resting."""
        device = self._mapper.find(f"{self._prefix}{id}")
        if device is not None and device.suspended:
            self._mapper.resume(f"{self._prefix}{id}")

    def device(self, id: SnapshotId) -> tuple[int, int] | None:  # noqa: A002  the contract's word
        """Return major and minor number of a snapshot's device, as mountinfo has them; None where it is not there."""
        found = self._mapper.find(f"{self._prefix}{id}")
        return None if found is None else (os.major(found.number), os.minor(found.number))

    def blocks(self, id: SnapshotId) -> int:  # noqa: A002  the contract's word
        """Return how many blocks a snapshot's device has, those that it shares among them."""
        return self._blocks(f"{self._prefix}{id}")

    def _blocks(self, name: str) -> int:
        words = self._mapper.status(name).split()
        if not words or not words[0].isdecimal():
            raise Corrupt(f"{DIRECTORY / name} has failed: {' '.join(words)}", hint="look into dmesg")
        return int(words[0]) * SECTOR // BLOCK

    def _show(self, name: str, number: int) -> None:
        pool = self._mapper.find(self._name) or self._mapper.find(self._starting)
        if pool is None:
            raise OSError(errno.ENXIO, "the pool is not there", self._name)
        self._mapper.create(name, Target(self.plan.device_size // SECTOR, "thin", f"{pool.source} {number}"))

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
        """Return the given devices; raise `Unsupported` for what is none."""
        found = tuple(device for device in (self._backing.data, self._backing.metadata) if device is not None)
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


def low_water(total: int) -> int:
    """Return how many bytes must be free for a new writable snapshot, of a pool or of a disk of so many bytes."""
    return min(total // 20, 1 << 30)
