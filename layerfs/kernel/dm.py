"""Device-mapper: block devices that the kernel puts together (the ioctls of ``linux/dm-ioctl.h``).

A *device* has a name and a *table* of one *target* here, such as "thin-pool" or "thin"; a target takes *messages* and
tells its *status* as text (the kernel's Documentation/admin-guide/device-mapper). A *sector* is 512 bytes everywhere.

No udev is needed: the node in ``/dev/mapper`` is made and taken away here. Where udev runs, its rules leave a device
alone that comes without libdevmapper's cookie (10-dm.rules, "dm_disable"), so nobody probes it meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from layerfs.errors import PermissionDenied, Unsupported, os_error
from layerfs.kernel.descriptors import Holder, opened

DIRECTORY = Path("/dev/mapper")
SECTOR = 512

_CONTROL = DIRECTORY / "control"
_CONTROL_NUMBER = os.makedev(10, 236)
"""``MAPPER_CTRL_MINOR`` of ``linux/miscdevice.h``."""
_HEADER = struct.Struct("=5IIiIIIQ128s129s7x")
"""``struct dm_ioctl``: version (3), size, data start; targets, opened, flags, event, padding; device, name, uuid."""
_FLAGS = struct.Struct("=I")
_START_AT, _FLAGS_AT = 16, 28
_TARGET = struct.Struct("=QQiI16s")
"""``struct dm_target_spec``: first sector, sectors, status, offset of the next one, type; its parameters follow."""
_MESSAGE = struct.Struct("=Q")
_LISTED = struct.Struct("=QI")
"""``struct dm_name_list``: device and offset of the next one; the name follows."""
_VERSION = (4, 0, 0)

_LIST_DEVICES = 2
_CREATE = 3
_REMOVE = 4
_RENAME = 5
_SUSPEND = 6
_STATUS = 7
_LOAD = 9
_TABLE_STATUS = 12
_MESSAGE_TARGET = 14
_TARGET_VERSION = 17

_SUSPENDED = 1 << 1
_ACTIVE = 1 << 5
_BUFFER_FULL = 1 << 8
_NO_FLUSH = 1 << 11

_PAGE = 4096
_WRITES, _DISCARDS = 4, 11
"""Fields of a block device's ``stat``; kernels before 4.18 do not count discards."""
_ROOM = 1024 - _HEADER.size
"""Bytes for an answer at first; one that does not fit is asked for again with twice the room.

With a buffer of more than 1,024 bytes Python's ioctl keeps the interpreter's lock, so all threads would wait for it.
"""
_BUSY_TRIES = 40
_BUSY_PAUSE = 0.025
"""Seconds: somebody who looks at every new device, as udev does, lets go soon."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a device does with its sectors."""

    sectors: int
    type: str
    parameters: str


@dataclass(frozen=True, slots=True)
class Device:
    """A device that the kernel has: its number as in ``st_rdev``, how often it is open, and whether it rests.

    Only one that is ``active`` has a table: others are half made. ``mark`` is what it was made with.
    """

    number: int
    opened: int
    suspended: bool
    active: bool
    mark: str

    @property
    def source(self) -> str:
        """Return it as another table names it."""
        return f"{os.major(self.number)}:{os.minor(self.number)}"

    def is_unwritten(self) -> bool:
        """Tell whether nobody has written to it since it was made, or discarded anything.

        Source: the kernel's Documentation/block/stat.rst.
        """
        if not self.active:
            return True
        with opened(os.open(f"/sys/dev/block/{self.source}/stat", os.O_RDONLY | os.O_CLOEXEC)) as fd:
            counts = os.read(fd, _PAGE).split()
        return counts[_WRITES] == b"0" and counts[_DISCARDS : _DISCARDS + 1] in ([], [b"0"])


@dataclass(frozen=True, slots=True)
class Status:
    """A device, and what its target tells of itself."""

    device: Device
    text: str


class Mapper(Holder):
    """The kernel's device-mapper, opened; a context manager. Its methods raise ``OSError``, ENXIO for no such device.

    Raise `Unsupported` where the kernel has none, and `PermissionDenied` without root. After `close` the next call
    opens it again.
    """

    def __init__(self) -> None:
        super().__init__(_open_control())

    def has_target(self, kind: str) -> bool:
        """Tell whether the kernel has a type of target, after loading its module."""
        try:
            self._call(_TARGET_VERSION, kind)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def names(self) -> frozenset[str]:
        """Return the names of all devices."""
        answer = self._call(_LIST_DEVICES, "")
        return frozenset(_listed(answer, _start(answer)))

    def find(self, name: str) -> Device | None:
        """Return a device; None where there is none of that name."""
        try:
            return _device(self._call(_STATUS, name))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None

    def create(self, name: str, target: Target, mark: str = "") -> Device:
        """Make a device, ready for use, with its node; leave nothing on failure. Raise EBUSY for a name in use.

        One that a killed process left half made is made anew. No two devices have the same mark (dm's "uuid").
        """
        try:
            self._call(_CREATE, name, mark=mark)
        except OSError as error:
            found = self.find(name) if error.errno == errno.EBUSY else None
            if found is None or found.active:
                raise
            self.remove(name)
            self._call(_CREATE, name, mark=mark)
        try:
            parameters = target.parameters.encode() + b"\0"
            parameters += bytes(-len(parameters) % 8)
            size = _TARGET.size + len(parameters)
            load = _TARGET.pack(0, target.sectors, 0, size, target.type.encode()) + parameters
            self._call(_LOAD, name, payload=load, targets=1)
            device = _device(self._call(_SUSPEND, name))  # without the flag it starts a device
            _make_node(name, device.number)
        except BaseException:
            self.remove(name)
            raise
        return device

    def remove(self, name: str) -> None:
        """Take a device away; what is gone already is no error. Raise EBUSY for one that is mounted or open."""
        try:
            self._call(_REMOVE, name)
        except OSError as error:
            if error.errno == errno.EBUSY and not self.is_busy(name):
                return self.remove(name)
            if error.errno != errno.ENXIO:
                raise
        with suppress(FileNotFoundError):
            os.unlink(f"{DIRECTORY}/{name}")
        return None

    def is_busy(self, name: str) -> bool:
        """Tell whether a device is mounted or held open; somebody who only has a look is waited for."""
        for _ in range(_BUSY_TRIES):
            device = self.find(name)
            if device is None or not device.opened:
                return False
            if _is_mounted(device):
                break
            time.sleep(_BUSY_PAUSE)
        return True

    def rename(self, name: str, new: str) -> None:
        """Give a device another name, and no node of it."""
        (DIRECTORY / name).unlink(missing_ok=True)
        self._call(_RENAME, name, payload=new.encode() + b"\0")

    def suspend(self, name: str) -> None:
        """Let a device rest: its file system is frozen and written out, later writes wait until `resume`."""
        self._call(_SUSPEND, name, flags=_SUSPENDED)

    def resume(self, name: str) -> None:
        """Let a device go on; one that does not rest is no error."""
        self._call(_SUSPEND, name)

    @contextmanager
    def suspended(self, name: str) -> Iterator[None]:
        """Let a device rest while the block runs."""
        self.suspend(name)
        try:
            yield
        finally:
            self.resume(name)

    def status(self, name: str) -> Status:
        """Return what the device's target tells of itself, without waiting for the disk."""
        answer = self._call(_TABLE_STATUS, name, flags=_NO_FLUSH)
        begin = _start(answer) + _TARGET.size
        return Status(_device(answer), answer[begin : answer.index(b"\0", begin)].decode())

    def message(self, name: str, text: str) -> None:
        """Send the device's target a message."""
        self._call(_MESSAGE_TARGET, name, payload=_MESSAGE.pack(0) + text.encode() + b"\0")

    def _call(
        self, command: int, name: str, *, mark: str = "", flags: int = 0, payload: bytes = b"", targets: int = 0
    ) -> bytearray:
        """Return what the kernel answers: the header, and what was asked for."""
        room = max(_ROOM, len(payload))
        if self._fd < 0:
            self._fd = _open_control()
        request = 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | command  # _IOWR(DM_IOCTL, command, struct dm_ioctl)
        while True:
            size = _HEADER.size + room
            buffer = bytearray(size)
            names = name.encode(), mark.encode()
            _HEADER.pack_into(buffer, 0, *_VERSION, size, _HEADER.size, targets, 0, flags, 0, 0, 0, *names)
            buffer[_HEADER.size : _HEADER.size + len(payload)] = payload
            try:
                fcntl.ioctl(self._fd, request, buffer)
            except OSError as error:
                raise OSError(error.errno, error.strerror, name or None) from error
            if not _FLAGS.unpack_from(buffer, _FLAGS_AT)[0] & _BUFFER_FULL:
                return buffer
            room *= 2


def _start(answer: bytearray) -> int:
    """Return where what was asked for begins."""
    return int(_FLAGS.unpack_from(answer, _START_AT)[0])


def _device(answer: bytearray) -> Device:
    _, _, _, _, _, _, opened, state, _, _, number, _, mark = _HEADER.unpack_from(answer)
    return Device(number, opened, bool(state & _SUSPENDED), bool(state & _ACTIVE), mark.rstrip(b"\0").decode())


def _listed(data: bytearray, offset: int) -> Iterator[str]:
    while True:
        device, step = _LISTED.unpack_from(data, offset)
        if not device:  # there is none at all
            return
        begin = offset + _LISTED.size
        yield data[begin : data.index(b"\0", begin)].decode()
        if not step:
            return
        offset += step


def _open_control() -> int:
    try:
        try:
            return os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return _make_control()
    except PermissionError as error:
        hint = f"run it as root; a container must be allowed {_CONTROL} and block devices"
        raise PermissionDenied("device-mapper is for root", hint=hint) from error
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
            raise Unsupported("this kernel has no device-mapper", hint="modprobe dm-mod dm-thin-pool") from error
        raise os_error("open device-mapper's control node", error) from error


def _make_control() -> int:
    """Make the control node where nothing else did, and open it, at which the kernel loads its module."""
    DIRECTORY.mkdir(mode=0o755, exist_ok=True)
    with suppress(FileExistsError):  # loaded meanwhile
        os.mknod(_CONTROL, stat.S_IFCHR | 0o600, _CONTROL_NUMBER)
    try:
        return os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        _CONTROL.unlink(missing_ok=True)
        with suppress(OSError):
            DIRECTORY.rmdir()
        raise


def _make_node(name: str, number: int) -> None:
    """Point the name in /dev/mapper to the device; a node of its own is for a /dev that the kernel does not fill."""
    place, made = f"{DIRECTORY}/{name}", f"dm-{os.minor(number)}"
    if _number(f"/dev/{made}") != number:
        with suppress(FileNotFoundError):
            os.unlink(place)
        os.mknod(place, stat.S_IFBLK | 0o600, number)
        return
    try:
        os.symlink(f"../{made}", place)
    except FileExistsError:  # udev's, or one that a crash left
        if _number(place) != number:
            os.unlink(place)
            os.symlink(f"../{made}", place)


def _number(place: str) -> int | None:
    with suppress(FileNotFoundError):
        return os.stat(place).st_rdev
    return None


def _is_mounted(device: Device) -> bool:
    """Tell whether a file system on the device is mounted in this mount namespace."""
    number = device.source.encode()
    with open("/proc/self/mountinfo", "rb") as lines:
        return any(line.split(b" ", 3)[2] == number for line in lines)
