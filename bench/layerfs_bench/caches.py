"""The caches of the kernel: empty them, and see what is in them.

A file system that is unmounted takes all that was known of it along; one of our own is mounted anew for that. Others
are left to drop_caches, which is root's alone and concerns the whole machine (kernel document sysctl/vm.rst). The state
that was reached is recorded beside the one that was asked for, never assumed.
"""

from __future__ import annotations

import logging
import mmap
import os
from pathlib import Path

from layerfs import tree
from layerfs.errors import Busy
from layerfs.kernel import syscalls
from layerfs_bench.beds import Bed
from layerfs_bench.places import Ground
from layerfs_bench.results import CacheState, State

_log = logging.getLogger(__name__)

_DROP = Path("/proc/sys/vm/drop_caches")
_NAMES, _EVERYTHING = 2, 3
"""What to write there: drop dentries and inodes, or these and the page cache."""
_UNIONS = frozenset({syscalls.OVERLAYFS_MAGIC, 0x65735546})
"""Of overlay and FUSE (``FUSE_SUPER_MAGIC``)."""


def forget(bed: Bed, ground: Ground) -> State | None:
    """Make the kernel forget everything about a place, before a root is mounted; None where that is not possible."""
    if ground.forget is None:
        return None
    try:
        how = bed.at_rest(ground.forget)
    except Busy as error:
        _log.info("caches are dropped instead: %s", error)
        return None
    return State(CacheState.COLD, CacheState.COLD, how)


def reach(asked: CacheState, root: Path | None, place: Path) -> State:
    """Bring the caches into a state and return what was reached.

    ``root`` is what was just mounted, if anything was, and ``place`` the file system below; both are synced first, for
    what is dirty cannot be dropped.
    """
    if asked is CacheState.WARM:
        return State(asked, asked, "as the work before left it")
    for path in (root, place) if root else (place,):
        tree.syncfs(path)
    wanted = _EVERYTHING if asked is CacheState.COLD else _NAMES
    if _drop(wanted):
        return State(asked, asked, f"the root mounted anew, synced, drop_caches={wanted}")
    # A union has inodes of its own, which a fresh mount of it does not know; a bind mount shows those of the place.
    fresh = root is not None and syscalls.file_system_magic(os.fsencode(root)) in _UNIONS
    reached = CacheState.FIRST if fresh else CacheState.WARM
    return State(asked, reached, "the root mounted anew, synced; this user may not drop caches")


def _drop(what: int) -> bool:
    try:
        _DROP.write_text(f"{what}\n", encoding="ascii")
    except OSError:  # not root, or a container that shows /proc/sys read-only
        return False
    return True


def resident(path: Path) -> int:
    """Return how many bytes of a file are in the page cache (mincore(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        return syscalls.resident_pages(fd, size) * mmap.PAGESIZE if size else 0
    finally:
        os.close(fd)
