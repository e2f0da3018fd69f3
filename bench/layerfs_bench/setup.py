"""Before and after a run: a directory to work in, mounts that nobody else sees, cells, and a plan of what to do."""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from layerfs.errors import InvalidArgument, LayerfsError, NoSpace, Unsupported, os_error
from layerfs.kernel import syscalls, userns
from layerfs_bench import counters, lanes, places, scenarios, storebed
from layerfs_bench.child import End, run
from layerfs_bench.events import Listener, Preparing
from layerfs_bench.lanes import Lane
from layerfs_bench.profiles import Profile
from layerfs_bench.results import LeftOut
from layerfs_bench.runner import Plan

_log = logging.getLogger(__name__)

_PREFIX = "layerfs-bench-"
_LOCK = "lock"
_MEMORY, _DISK = Path("/dev/shm"), Path("/var/tmp")  # noqa: S108  a directory of our own is made there
_ROOM = 512 << 20
"""Bytes that should stay free beside what a run may take."""
_NEEDS_ROOT = "loop devices need root"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What somebody asks of a run; empty tuples and None leave it to the profile.

    ``work`` is the directory below which file systems are made, ``store`` the user's own store to be measured instead.
    """

    profile: Profile
    cells: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    seed: int = 1
    budget: float | None = None
    work: Path | None = None
    store: Path | None = None
    command: tuple[str, ...] = ()


@contextmanager
def prepared(wishes: Wishes, listener: Listener) -> Iterator[Plan]:
    """Make everything that a run needs, and take it away when the block ends.

    Raise `InvalidArgument` for cells and scenarios that do not exist, `NoSpace` where nothing fits, `Unsupported` where
    no cell works.
    """
    profile = wishes.profile
    chosen = scenarios.matching(wishes.scenarios or profile.scenarios)
    rooted = os.geteuid() == 0 and userns.is_initial()
    if unknown := lanes.unknown(wishes.cells, anywhere=not rooted or wishes.store is not None):
        names = ", ".join(one.name for one in lanes.CELLS)
        raise InvalidArgument(f"there is no cell {unknown[0]!r}", hint=f"one of {names}, or a driver")
    with ExitStack() as undo:
        memory = undo.enter_context(counters.memory_meter())
        work = undo.enter_context(working_directory(wishes.work or workplace(_needed(wishes) if rooted else None)))
        there, left_out = _lanes(wishes, work, undo, listener, rooted=rooted)
        if not any(not lane.cell.is_baseline for lane in there):
            reasons = "; ".join(f"{one.what}: {one.reason}" for one in left_out)
            raise Unsupported(f"no driver can be measured here: {reasons}", hint="`layerfs doctor` says what to do")
        budget = wishes.budget or profile.budget
        yield Plan(profile, tuple(there), chosen, work, wishes.seed, budget, tuple(left_out), wishes.command, memory)


def _needed(wishes: Wishes) -> int | None:
    """Return the bytes that the file systems of a run may take, or None if it makes none."""
    if wishes.store is not None:
        return None
    wanted = {one.place for one in lanes.selected(wishes.cells or wishes.profile.cells)}
    return wishes.profile.place * sum(places.may_exist(place) for place in wanted)


def _lanes(
    wishes: Wishes, work: Path, undo: ExitStack, listener: Listener, *, rooted: bool
) -> tuple[list[Lane], list[LeftOut]]:
    """Make the cells that are wished for, until ``undo`` is closed, and say what is left out."""
    if wishes.store is not None:
        return undo.enter_context(_own_store(wishes.store, work)), []
    wanted = lanes.selected(wishes.cells or wishes.profile.cells)
    if rooted:
        return lanes.on_loops(wanted, work, wishes.profile.place, undo, lambda what: listener(Preparing(what)))
    return lanes.on_directory(work, wishes.cells, wanted, _NEEDS_ROOT)


def isolate() -> None:
    """Let mounts from now on be seen by this process and its children only, and end with them (unshare(2)).

    So nothing stays mounted whatever befalls the run. An ordinary user becomes root of a user namespace for that; where
    the host forbids it, only drivers that need none are measured.
    """
    if os.geteuid() != 0:
        try:
            userns.enter()
        except Unsupported as error:
            _log.info("%s; going on without", error)
        return
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    except OSError as error:
        raise os_error("make a mount namespace", error) from error


@contextmanager
def working_directory(parent: Path) -> Iterator[Path]:
    """Make a directory of our own below ``parent``, and delete it at the end with all that is mounted in it.

    Those of runs that were killed are deleted first.
    """
    _sweep(parent)
    try:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise os_error(f"make a working directory in {parent}", error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    finally:
        places.discard(path)
        os.close(lock)


def _sweep(parent: Path) -> None:
    """Delete the working directories of this user whose processes are gone: nobody holds their locks."""
    for path in parent.glob(f"{_PREFIX}*"):
        try:
            if os.lstat(path).st_uid != os.geteuid():  # in /dev/shm anybody may put something by this name
                continue
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # gone meanwhile, or just being made
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            places.discard(path)
        except (BlockingIOError, LayerfsError):
            continue
        finally:
            os.close(lock)


def workplace(needed: int | None) -> Path:
    """Return where to work: in memory where ``needed`` bytes fit, so that no disk's noise is measured, else on disk.

    None is for somebody who makes no file systems: they work in memory where that takes the attributes of a union.
    """
    if needed is None:
        return _MEMORY if _keeps_attributes(_MEMORY) else temporary()
    if _MEMORY.is_dir() and min(counters.free_bytes(_MEMORY), counters.available_memory()) > needed + _ROOM:
        return _MEMORY
    disk = temporary()
    if counters.free_bytes(disk) < needed // 2 + _ROOM:  # the files are sparse, and no run fills them
        raise NoSpace(
            f"the file systems of this run may take {needed >> 30} GiB, and {disk} has less",
            hint="name another directory (--work), fewer cells (--cell), or a smaller profile",
        )
    return disk


def _keeps_attributes(directory: Path) -> bool:
    """Tell whether a user's file there can have extended attributes: on tmpfs since Linux 6.6."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            os.setxattr(file.fileno(), "user.layerfs", b"try")
    except OSError:
        return False
    return True


def temporary() -> Path:
    """Return where people have room for big temporary files."""
    return Path(os.environ.get("TMPDIR", _DISK))


@contextmanager
def _own_store(path: Path, work: Path) -> Iterator[list[Lane]]:
    """Give the lanes of a store of the user's; all that was put there is removed at the end."""
    import layerfs  # noqa: PLC0415  beside its only use

    with layerfs.open(path, create=False) as store:
        driver = store.driver.name
    plain = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=path / driver))  # where a volume of the store's is mounted
    there = lanes.of_store(path, driver, (), plain)
    try:
        yield there
    finally:
        places.discard(plain)
        _clear(there[-1], work)


@dataclass(frozen=True, slots=True)
class _Cleared:
    """What the child that clears a store returns: nothing."""


def _clear(lane: Lane, work: Path) -> None:
    def clear() -> _Cleared:
        with lane.opened(work) as bed:
            bed.tidy()
            if isinstance(bed, storebed.StoreBed):
                bed.remove_images()
        return _Cleared()

    ended = run(clear, _Cleared, limit=600)
    if ended.end is not End.DONE:
        raise LayerfsError(
            f"what the benchmark put into {lane.path} could not be removed: {ended.reason}",
            hint=f"`layerfs --store {lane.path} ls` and `image ls` show it: names that start with {storebed.PREFIX}",
        )
