"""Loop devices: a file as a disk, for a store on a file system of its own (loop(4)).

A device with *autoclear* goes by itself once nobody has it open and nothing on it is mounted, so neither a crash nor a
forgotten detach leaves one behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from pathlib import Path

from layerfs import process
from layerfs.errors import AlreadyExists, InvalidArgument, LayerfsError, PermissionDenied, Unsupported, os_error
from layerfs.kernel.descriptors import Holder

_CONTROL = "/dev/loop-control"
_LOOP_MAJOR = 7
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CLR_FD = 0x4C01
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
_LO_FLAGS_DIRECT_IO = 16
_NAME_SIZE = 64
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
"""``struct loop_info64``: device, inode, rdevice, offset, size; number, encryption (2), flags; names (2), key, init."""
_CONFIG_RESERVED = 64
_BLOCK_SIZE = 512
"""What mkfs takes a file to have; xfs refuses a device with larger blocks than it was made for (ENOSYS)."""
_TRIES = 50
"""How often to look for a free device while others look too."""

_MAKERS: dict[str, tuple[tuple[str, ...], str]] = {
    "btrfs": (("mkfs.btrfs", "-q", "-f"), "btrfs-progs"),
    "ext4": (("mkfs.ext4", "-q", "-F"), "e2fsprogs"),
    "xfs": (("mkfs.xfs", "-q", "-f"), "xfsprogs"),
}
"""The command that makes a file system, and the Debian package that brings it."""


class LoopDevice(Holder):
    """An attached loop device: ``path`` is its node in /dev.

    It keeps the device open, which keeps one with autoclear attached, until `close`; as a context manager it closes at
    the end. Whatever is mounted from it then keeps it.
    """

    def __init__(self, path: Path, fd: int) -> None:
        super().__init__(fd)
        self.path = path


def create_image(path: Path, size: int) -> None:
    """Make a sparse file of ``size`` bytes, mode 0600; raise `AlreadyExists` rather than touch one that is there."""
    if size <= 0:
        raise InvalidArgument(f"an image of {size} bytes")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise AlreadyExists(f"{path} is there already") from error
    except OSError as error:
        raise os_error(f"make the image {path}", error) from error
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        os.unlink(path)
        raise os_error(f"make the image {path} of {size} bytes", error) from error
    finally:
        os.close(fd)


def make_file_system(path: Path, kind: str, *, options: tuple[str, ...] = ()) -> None:
    """Make a file system on an image or device, whatever was on it; ``kind`` is btrfs, ext4 or xfs."""
    if kind not in _MAKERS:
        raise InvalidArgument(f"cannot make a file system {kind!r}", hint=f"one of {', '.join(sorted(_MAKERS))}")
    command, package = _MAKERS[kind]
    process.run([*command, *options, str(path)], package=package)


def attach(path: Path, *, autoclear: bool = True, read_only: bool = False) -> LoopDevice:
    """Attach a file to a free loop device.

    Reading and writing go around the page cache of the file where its file system can (direct I/O), so that nothing is
    cached twice. Raise `PermissionDenied` without root, `Unsupported` where the kernel has no loop devices.
    """
    flags = (_LO_FLAGS_AUTOCLEAR if autoclear else 0) | (_LO_FLAGS_READ_ONLY if read_only else 0)
    try:
        backing = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        raise os_error(f"attach {path} to a loop device", error) from error
    try:
        return _attach(path, backing, flags)
    except OSError as error:
        raise _explained(path, error) from error
    finally:
        os.close(backing)


def _attach(path: Path, backing: int, flags: int) -> LoopDevice:
    for _ in range(_TRIES):
        device, fd = _open_free()
        try:
            # udev opens a device only under this lock and would otherwise look at it half configured.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _configure(fd, backing, path, flags)
        except OSError as error:
            os.close(fd)
            if error.errno not in {errno.EBUSY, errno.EAGAIN}:  # somebody else was faster
                raise
            time.sleep(0.01)
            continue
        fcntl.flock(fd, fcntl.LOCK_UN)
        return LoopDevice(device, fd)
    raise OSError(errno.EBUSY, "others took every free loop device")


def _open_free() -> tuple[Path, int]:
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)
    device = Path(f"/dev/loop{number}")
    if not device.exists():  # a /dev without udev, as in many containers
        os.mknod(device, stat.S_IFBLK | 0o600, os.makedev(_LOOP_MAJOR, number))
    return device, os.open(device, os.O_RDWR | os.O_CLOEXEC)


def _configure(fd: int, backing: int, path: Path, flags: int) -> None:
    """Attach in one step, ready for use (LOOP_CONFIGURE, Linux 5.8), by direct I/O where that works."""
    name = os.fsencode(path)[: _NAME_SIZE - 1]
    for wanted in (flags | _LO_FLAGS_DIRECT_IO, flags):
        info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, wanted, name, b"", b"", 0, 0)
        config = struct.pack("=II", backing, _BLOCK_SIZE) + info + bytes(_CONFIG_RESERVED)
        try:
            fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
        except OSError as error:
            if error.errno != errno.EINVAL or wanted == flags:
                raise
        else:
            return


def _explained(path: Path, error: OSError) -> LayerfsError:
    if error.errno in {errno.ENOENT, errno.ENXIO, errno.ENODEV}:
        return Unsupported(f"cannot attach {path}: this host has no loop devices", hint="modprobe loop")
    if error.errno in {errno.EPERM, errno.EACCES}:
        return PermissionDenied(
            f"cannot attach {path} to a loop device: {error.strerror}", hint="loop devices need root"
        )
    return os_error(f"attach {path} to a loop device", error)


def find(path: Path) -> tuple[Path, ...]:
    """Return the loop devices that a file is attached to now."""
    try:
        wanted = os.stat(path)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise os_error(f"find the loop device of {path}", error) from error
    found: list[Path] = []
    for place in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        try:
            backing = os.stat(place.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n"))
        except OSError:  # detached meanwhile, or a file of a name that is gone
            continue
        if (backing.st_dev, backing.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(Path("/dev") / place.parts[-3])
    return tuple(found)


def backing_file(device: Path) -> str | None:
    """Return the file that a loop device is attached to; None for a device that is free, or no loop device."""
    try:
        text = Path("/sys/block", device.name, "loop/backing_file").read_text(
            encoding="utf-8", errors="surrogateescape"
        )
    except OSError:
        return None
    return text.rstrip("\n") or None


def detach(device: Path) -> None:
    """Detach a device; one that is mounted or open goes as soon as that ends. One that is free is no error."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _LOOP_CLR_FD)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise os_error(f"detach {device}", error) from error
