"""What the machine counts: bytes at a device, free space, memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from layerfs.kernel import mountinfo

_SECTOR = 512
"""Bytes that /sys/block/*/stat counts in, whatever the device (kernel document block/stat.rst)."""
_SECTORS_READ, _SECTORS_WRITTEN = 2, 6
"""Their places in the line."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that went over a device since it is there."""

    read: int
    written: int

    def __sub__(self, other: Traffic) -> Traffic:
        """Return what went over it in between."""
        return Traffic(self.read - other.read, self.written - other.written)

    def __add__(self, other: Traffic) -> Traffic:
        """Add the traffic of two devices."""
        return Traffic(self.read + other.read, self.written + other.written)


@dataclass(frozen=True, slots=True)
class Device:
    """A block device or partition, by its directory below /sys/dev/block."""

    directory: Path

    @property
    def name(self) -> str:
        """Return the kernel's name of it: "loop3", "vda1"."""
        return self.directory.resolve().name

    def traffic(self) -> Traffic:
        """Return the bytes that went over it so far."""
        fields = (self.directory / "stat").read_text(encoding="ascii").split()
        return Traffic(int(fields[_SECTORS_READ]) * _SECTOR, int(fields[_SECTORS_WRITTEN]) * _SECTOR)


def device_of(path: Path) -> Device | None:
    """Return the block device below the file system that holds ``path``, or None where there is none to be seen.

    btrfs and ZFS show device numbers of their own, so the source of the mount is asked too.
    """
    number = os.stat(path).st_dev
    found = _device(number)
    if found is not None:
        return found
    sources = [point.source for point in mountinfo.mount_points() if _holds(point.path, path)]
    try:
        return _device(os.stat(sources[-1]).st_rdev) if sources else None
    except OSError:  # a source that is no path: tmpfs, a ZFS dataset, a share
        return None


def _holds(point: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(point)


def _device(number: int) -> Device | None:
    directory = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    return Device(directory) if number and (directory / "stat").exists() else None


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system that holds ``path``, those kept for root among them (statvfs(3))."""
    found = os.statvfs(path)
    return found.f_bfree * found.f_frsize


def available_memory() -> int:
    """Return the bytes of memory that can be had without swapping (proc_meminfo(5))."""
    return _table(Path("/proc/meminfo"), unit=1024)["MemAvailable:"]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of memory: kernel objects (slabs), page cache, and all that a control group is charged with.

    ``total`` is 0 where it was read from /proc/meminfo, which knows no groups.
    """

    kernel: int
    page_cache: int
    total: int

    def __sub__(self, other: Memory) -> Memory:
        """Return what was taken in between; others may have given some back meanwhile."""
        return Memory(self.kernel - other.kernel, self.page_cache - other.page_cache, self.total - other.total)


class MemoryMeter:
    """Read the memory of a control group, or of the whole machine where no group could be made."""

    def __init__(self, group: Path | None = None) -> None:
        self._group = group

    @property
    def is_own(self) -> bool:
        """Tell whether it reads a group of our own, in which nobody else's memory counts."""
        return self._group is not None

    def enter(self) -> None:
        """Move this process, and so all that it starts from now on, into the group; do nothing where there is none."""
        if self._group is not None:
            (self._group / "cgroup.procs").write_text(f"{os.getpid()}\n", encoding="ascii")

    def read(self) -> Memory:
        """Return what is taken now."""
        if self._group is None:
            whole = _table(Path("/proc/meminfo"), unit=1024)
            return Memory(whole["Slab:"], whole["Cached:"], 0)
        parts = _table(self._group / "memory.stat")
        if (self._group / "memory.current").exists():  # version 2
            return Memory(parts["slab"], parts["file"], _number(self._group / "memory.current"))
        kernel = self._group / "memory.kmem.usage_in_bytes"
        return Memory(
            _number(kernel) if kernel.exists() else 0,
            parts["cache"],
            _number(self._group / "memory.usage_in_bytes"),
        )


@contextmanager
def memory_meter() -> Iterator[MemoryMeter]:
    """Make a control group for the processes that measure, beside this one's own, and take it away at the end."""
    home = _own_group()
    group = home / f"layerfs-bench-{os.getpid()}" if home else None
    if home is None or group is None or not _make(group):
        yield MemoryMeter()
        return
    try:
        yield MemoryMeter(group)
    finally:
        _leave(home, group)


def _own_group() -> Path | None:
    """Return the directory of the group of this process that counts memory: version 1's, else version 2's."""
    unified = None
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path("/sys/fs/cgroup/memory", path.lstrip("/"))
        if not controllers:
            unified = Path("/sys/fs/cgroup", path.lstrip("/"))
    if unified is None or "memory" not in _words(unified / "cgroup.subtree_control"):
        return None
    return unified


def _make(group: Path) -> bool:
    """Make a group, and tell whether processes may be moved into it: not by an ordinary user, nor by everybody."""
    try:
        group.mkdir()
    except OSError:
        return False
    if os.access(group / "cgroup.procs", os.W_OK) and (group / "memory.stat").exists():
        return True
    _remove(group)
    return False


def _leave(home: Path, group: Path) -> None:
    for number in _words(group / "cgroup.procs"):
        try:
            (home / "cgroup.procs").write_text(f"{number}\n", encoding="ascii")
        except OSError:  # it has ended meanwhile
            continue
    _remove(group)


def _remove(group: Path) -> None:
    try:
        group.rmdir()
    except OSError:  # was never made; or somebody is still in it, who takes it along at their end
        return


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _table(path: Path, *, unit: int = 1) -> dict[str, int]:
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {words[0]: int(words[1]) * unit for words in lines}
