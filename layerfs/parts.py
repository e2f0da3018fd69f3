"""What a store is made of, as its images, clones and housekeeping share it, and the trees of its snapshots."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs import locks
from layerfs.contract import Candidates, DirectAccess, Driver, Flattenable, Kind, LayerRoot, NativeChanges, Whiteouts
from layerfs.errors import Busy, LayerfsError, Unsupported
from layerfs.image.blobs import BlobStore
from layerfs.kernel import mounting
from layerfs.kernel.userns import IdMap
from layerfs.metadata.database import Database
from layerfs.snapshotter import Snapshotter

if TYPE_CHECKING:
    from layerfs.leases import Leases

TEMPORARY = "tmp/"
"""Starts the keys of snapshots that live no longer than the process that made them; its token follows, and a number."""
_TEMPORARY = re.compile(TEMPORARY + r"([0-9]{1,18})/[0-9a-f]{16}")

MIGRATING = "migrating/"
"""Starts the keys of snapshots that a migration is filling here; the name follows that they are to have."""

_COURTESY = 2.0
"""Seconds that somebody who is to work with the store lets those pass who wait for it to be empty."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """The pieces of one open store."""

    path: Path
    lock_file: Path
    database: Database
    driver: Driver
    snapshotter: Snapshotter
    blobs: BlobStore
    id_map: IdMap | None = None
    """The ids that layers have in this store; None for those that they say."""
    clock: Callable[[], int] = time.time_ns
    """Gives nanoseconds since 1970."""

    @property
    def leases(self) -> Leases:
        """Return the leases of the store."""
        from layerfs.leases import Leases, now  # noqa: PLC0415  neither a clone nor a mount asks for them

        return Leases(self.database, self.lock_file, now=partial(now, self.clock))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the store against what deletes the bytes that nobody names yet."""
        # Those who come let those pass who wait for it to be empty, else these might wait for ever; but not for long,
        # for a caller that works already would wait for itself.
        with suppress(Busy), self._locked(locks.GATE, exclusive=False, timeout=_COURTESY):
            pass
        with self._locked(locks.STORE, exclusive=False, timeout=None):
            yield

    @contextmanager
    def alone(self, *, wait: bool) -> Iterator[None]:
        """Hold the store for oneself; raise `Busy` if somebody works with it and ``wait`` is false."""
        if not wait:
            with self._locked(locks.STORE, exclusive=True, timeout=0):
                yield
            return
        with ExitStack() as stack:
            with self._locked(locks.GATE, exclusive=True, timeout=None):
                stack.enter_context(self._locked(locks.STORE, exclusive=True, timeout=None))
            yield

    def _locked(self, place: locks.Place, *, exclusive: bool, timeout: float | None) -> AbstractContextManager[None]:
        return locks.locked(self.lock_file, place, exclusive=exclusive, what="the store", timeout=timeout)

    @contextmanager
    def holding(self, key: str, what: str) -> Iterator[None]:
        """Hold the writable directory of an active snapshot; raise `Busy` where another process does."""
        while True:
            snapshot = self.snapshotter.snapshot(key)
            with locks.locked(self.lock_file, locks.upper(snapshot.id), exclusive=True, what=what, timeout=0):
                # Who held it before may have put another snapshot in its place (rollback, snapshot).
                if self.snapshotter.snapshot(key).id == snapshot.id:
                    yield
                    return

    @contextmanager
    def writing(self, key: str, what: str) -> Iterator[None]:
        """Hold an active snapshot that nobody has mounted; raise `Busy` that says where it is mounted otherwise."""
        with self.holding(key, what):
            used = mounting.users(self.snapshotter.mounts(key))
            if used:
                where = ", ".join(str(point.path) for point in used)
                raise Busy(f"{what} is mounted at {where}", hint=f"unmount it first: layerfs umount {where}")
            yield

    @contextmanager
    def steady(self, *keys: str) -> Iterator[None]:
        """Read snapshots that nobody is kept from changing; raise `Busy` or `NotFound` if one was replaced meanwhile.

        What is being removed would else look like a tree from which files were deleted.
        """
        before = [self.snapshotter.snapshot(key).id for key in keys if key]
        try:
            yield
        except (OSError, LayerfsError) as error:
            self._check_steady(keys, before, error)
            raise
        self._check_steady(keys, before, None)

    def _check_steady(self, keys: Sequence[str], before: Sequence[int], cause: Exception | None) -> None:
        for key, old in zip(filter(None, keys), before, strict=True):
            if self.snapshotter.snapshot(key).id != old:
                raise Busy(f"{key!r} was replaced by another process meanwhile", hint="try again") from cause

    def layer_root(self, key: str) -> LayerRoot | None:
        """Return a snapshot's own directory where the driver shows it and it holds whole files."""
        if not isinstance(self.driver, DirectAccess):
            return None
        snapshot = self.snapshotter.snapshot(key)
        if isinstance(self.driver, Flattenable) and not self.driver.is_flat(snapshot):
            return None
        return self.driver.layer_root(snapshot)

    def flatten(self, key: str) -> int:
        """Make a snapshot keep whole files and return how many it did not; the caller is inside `writing` for it."""
        if not isinstance(self.driver, Flattenable):
            return 0
        return self.driver.flatten(self.snapshotter.snapshot(key))

    def candidates(self, lower: str, upper: str) -> Candidates | None:
        """Return where two snapshots may differ as far as the driver knows; None where all of both must be compared."""
        if not lower or not isinstance(self.driver, NativeChanges):
            return None
        base, snapshot = (self.snapshotter.snapshot(key) for key in (lower, upper))
        if base.id not in snapshot.parents:
            return None  # they have nothing to do with each other: everything would be a candidate
        try:
            return self.driver.changed_paths(snapshot, base.id)
        except Unsupported as error:
            _log.warning("comparing the whole trees, which takes longer: %s", error)
            return None

    @contextmanager
    def tree(self, key: str, *, held: bool = False, place: Path | None = None) -> Iterator[Path]:
        """Give the whole tree of a snapshot for reading; "" is an empty one.

        ``held`` tells that the caller is inside `writing` for the key. ``place`` is where to mount what must be
        mounted, by default a private temporary directory.
        """
        root = self.layer_root(key) if key else None
        if root is not None and root.whiteouts is Whiteouts.REMOVE:
            yield root.path
        elif key and self.snapshotter.snapshot(key).kind is not Kind.COMMITTED:
            used = mounting.users(self.snapshotter.mounts(key))
            if used:
                yield used[0].path
                return
            hold = nullcontext() if held else self.writing(key, f"the snapshot {key!r}")
            with hold, mounting.mounted(mounting.scratch(self.snapshotter.mounts(key)), place) as mounted:
                yield mounted
        else:
            with self.temporary_view(key, place) as mounted:
                yield mounted

    def temporary_key(self) -> str:
        """Return the key of a snapshot that lives no longer than this process."""
        return f"{TEMPORARY}{self.snapshotter.owner}/{os.urandom(8).hex()}"

    def is_left_over(self, key: str) -> bool:
        """Tell whether a snapshot was to live as long as a process that has ended; keys of others may begin so, too."""
        made = _TEMPORARY.fullmatch(key)
        return made is not None and not self.snapshotter.is_alive(int(made[1]))

    @contextmanager
    def temporary_view(self, parent: str, place: Path | None = None) -> Iterator[Path]:
        """Give a read-only mount of a committed snapshot ("" for an empty tree) as long as the block runs."""
        key = self.temporary_key()
        mounts = self.snapshotter.view(key, parent)
        try:
            with mounting.mounted(mounting.scratch(mounts), place) as mounted:
                yield mounted
        finally:
            mounting.release_shared(mounts)
            self.snapshotter.remove(key)
