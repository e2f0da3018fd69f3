"""What is mounted now, as ``/proc/self/mountinfo`` tells it: the only truth about mounts (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from layerfs.errors import os_error
from layerfs.kernel import syscalls
from layerfs.kernel.descriptors import opened
from layerfs.kernel.options import split_lowerdirs, unescape_path

_OCTAL = re.compile(rb"\\([0-7]{3})")
_PLAIN = re.compile(rb"[A-Za-z0-9_./-]+")
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_SELF = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class MountPoint:
    r"""One line of mountinfo.

    ``root`` is the directory of the file system that shows at ``path``. ``options`` are those of the mount,
    ``super_options`` those of the file system, still with the escapes of `layerfs.kernel.options` where it has such.
    """

    id: int
    parent: int
    device: tuple[int, int]
    root: str
    path: Path
    options: tuple[str, ...]
    type: str
    source: str
    super_options: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        """Tell whether the mount or its file system forbids writing."""
        return "ro" in self.options or "ro" in self.super_options

    @property
    def volatile(self) -> bool:
        """Tell whether it is an overlay that never syncs; Linux 6.18 shows fsync=volatile, earlier ones volatile."""
        return not {"volatile", "fsync=volatile"}.isdisjoint(self.super_options)

    @property
    def upper(self) -> str:
        """Return the upper directory of an overlay, as the kernel tells it, or ""."""
        return next((_decoded(option[9:]) for option in self.super_options if option.startswith("upperdir=")), "")

    @property
    def lowers(self) -> tuple[str, ...]:
        """Return the lower directories of an overlay, the uppermost first, as the kernel tells them."""
        return overlay_lowers(self.super_options)


def overlay_lowers(options: tuple[str, ...]) -> tuple[str, ...]:
    r"""Return the lowers that an overlay's options tell: one by one, or joined with escapes as mount(2) got them.

    There commas were escaped as well, which reading ``\x`` as x for any x covers.
    """
    single = tuple(option[10:] for option in options if option.startswith("lowerdir+="))
    joined = next((option for option in options if option.startswith("lowerdir=")), "")
    return single or (split_lowerdirs(joined) if joined else ())


def _decoded(value: str) -> str:
    r"""Undo the escapes of an upper directory; the kernel shows them where it was mounted by a string.

    One that was given by descriptor has none, so a value is taken as it is if there is such a directory.
    """
    return value if "\\" not in value or os.path.lexists(value) else unescape_path(value)


def _text(field: bytes) -> str:
    if b"\\" not in field:
        return os.fsdecode(field)
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))


def _options(field: bytes) -> tuple[str, ...]:
    r"""Split before the octal escapes are undone: a comma inside a value is ``\054``."""
    return tuple(_text(option) for option in _joined(field.split(b",")))


def _joined(parts: list[bytes]) -> list[bytes]:
    r"""Put parts together again where a kernel shows an escaped comma as ``\134,``."""
    whole: list[bytes] = []
    for part in parts:
        if whole and whole[-1].endswith(b"\\134") and whole[-1].count(b"\\134") % 2:
            whole[-1] += b"," + part
        else:
            whole.append(part)
    return whole


def parse_line(line: bytes) -> MountPoint:
    """Read one line of mountinfo."""
    left, _, right = line.rstrip(b"\n").partition(b" - ")
    identity, parent, device, root, path, options = left.split(b" ")[:6]
    kind, source, super_options = (*right.split(b" "), b"", b"")[:3]
    major, _, minor = device.partition(b":")
    return MountPoint(
        int(identity),
        int(parent),
        (int(major), int(minor)),
        _text(root),
        Path(_text(path)),
        _options(options),
        _text(kind),
        _text(source),
        _options(super_options),
    )


def lines() -> list[bytes]:
    """Return the raw lines of this process's mount namespace, in the order of mounting."""
    try:
        return _SELF.read_bytes().splitlines()
    except OSError as error:
        raise os_error("read the list of mounts", error) from error


def mount_points() -> tuple[MountPoint, ...]:
    """Return every mount of this process's mount namespace."""
    return tuple(parse_line(line) for line in lines())


def escaped(path: str | Path) -> bytes:
    """Return a path as it stands in mountinfo."""
    return re.sub(rb"[ \t\n\\]", lambda match: b"\\%03o" % match[0][0], os.fsencode(path))


def at(path: Path) -> tuple[MountPoint, ...]:
    """Return the mounts whose place is exactly ``path`` (symbolic links resolved), the topmost last."""
    wanted = escaped(os.path.realpath(path))
    return tuple(parse_line(line) for line in lines() if line.split(b" ", 5)[4] == wanted)


def lowers_at(path: Path) -> tuple[str, ...]:
    """Return the lowers of a read-only overlay mounted exactly at ``path``, looking at nothing but that mount.

    It is empty where there is none, and where this kernel cannot tell (before Linux 6.11); then read `at`.
    """
    try:
        with opened(os.open(path, _PLACE)) as here, opened(os.open("..", _PLACE, dir_fd=here)) as above:
            identity = syscalls.mount_id(here)
            if identity is None or identity == syscalls.mount_id(above):
                return ()
            options = _options(syscalls.mount_options(identity))
    except OSError:
        return ()
    return () if any(option.startswith("upperdir=") for option in options) else overlay_lowers(options)


def below(path: Path) -> tuple[MountPoint, ...]:
    """Return the mounts at places inside ``path``, itself not among them, in the order of mounting."""
    start = escaped(os.path.realpath(path)).rstrip(b"/") + b"/"
    found = (line for line in lines() if line.split(b" ", 5)[4].startswith(start))
    return tuple(point for point in map(parse_line, found) if os.fspath(point.path) != "/")


def mentioning(*texts: str | Path) -> Iterator[MountPoint]:
    """Yield the mounts whose line may speak of one of ``texts``, in the order of mounting.

    Reading a line in full takes some 70 µs, so with a thousand clones only those are read that hold the longest run of
    characters of a text which no kernel escapes.
    """
    needles = [max(_PLAIN.findall(os.fsencode(text)), key=len, default=b"") for text in texts]
    for line in lines():
        if any(needle in line for needle in needles):
            yield parse_line(line)


def showing(device: tuple[int, int], root: str) -> tuple[MountPoint, ...]:
    """Return the mounts that show the directory ``root`` of the file system on ``device``."""
    wanted = [b"%d:%d" % device, escaped(root)]
    return tuple(parse_line(line) for line in lines() if line.split(b" ", 4)[2:4] == wanted)


def origin(path: Path) -> tuple[tuple[int, int], str] | None:
    """Return the device of a path, and where it is in that file system: as a bind mount of it is listed.

    The device of stat(2) will not do: btrfs gives every subvolume one of its own. Return None for a mount out of this
    process's sight; raise ``OSError`` where there is nothing at the path.
    """
    home = holding(path)
    if home is None:
        return None
    inside = os.path.relpath(os.path.realpath(path), home.path)
    return home.device, os.path.normpath(os.path.join(home.root, inside))


def holding(path: Path) -> MountPoint | None:
    """Return the mount that the directory or file at ``path`` is on; None for a mount out of this process's sight."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
            identity = re.search(rb"^mnt_id:\s*(\d+)", info.read(), flags=re.MULTILINE)
    finally:
        os.close(fd)
    if identity is None:
        return None
    return next((parse_line(line) for line in lines() if line.startswith(identity[1] + b" ")), None)
