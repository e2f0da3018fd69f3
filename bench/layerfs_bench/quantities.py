"""The names of what is counted beside the time, and what each means."""

from __future__ import annotations

from dataclasses import dataclass

from layerfs_bench.results import Unit


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing that can be counted: its name in results, its unit, and what it is in words."""

    name: str
    unit: Unit
    text: str


DEVICE_WRITTEN = Kind(
    "device_written",
    Unit.BYTES,
    "bytes that reached the device from before the operation to after a syncfs, by /sys/block/*/stat, one operation",
)
DEVICE_READ = Kind("device_read", Unit.BYTES, "bytes read from the device in the same time, one operation")
SPACE_USAGE = Kind("space_usage", Unit.BYTES, "what the driver says that a clone takes afterwards")
SPACE_STATFS = Kind("space_statfs", Unit.BYTES, "by how much the free space of the file system shrank, by statfs")
INODES = Kind("inodes", Unit.COUNT, "inodes that a clone takes, by the driver")
MEMORY_KERNEL = Kind("memory_kernel", Unit.BYTES, "kernel memory that was taken, by the slabs of /proc/meminfo")
MEMORY_CGROUP = Kind("memory_cgroup", Unit.BYTES, "memory that the control group was charged with, page cache included")
PAGE_CACHE = Kind("page_cache", Unit.BYTES, "page cache that was taken, by the difference of /proc/meminfo")
RESIDENT = Kind("resident", Unit.BYTES, "bytes of the file that are in the page cache, by mincore, all clones together")
SYNC = Kind("sync", Unit.SECONDS, "how long the syncfs after the operation took")

KINDS = {
    kind.name: kind
    for kind in (
        DEVICE_WRITTEN,
        DEVICE_READ,
        SPACE_USAGE,
        SPACE_STATFS,
        INODES,
        MEMORY_KERNEL,
        MEMORY_CGROUP,
        PAGE_CACHE,
        RESIDENT,
        SYNC,
    )
}
