"""Leases: what they name is not pruned until they end, whoever made them and whether or not that process still runs.

Work under way in a living process is safe without one (`layerfs.parts.Parts.working`). A *lease* is for what outlives
a process, or lies between two calls: a build of several commands, a job of several steps, a pull that was cut off and
is to go on. It names blobs, images and snapshots, which need not be there yet, and ends when it is removed or when its
time is over. Everybody who names something or renews holds the store shared, so that a prune, which holds it alone,
sees either all of it or nothing. The model is containerd's ``core/leases``.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from layerfs import locks
from layerfs.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from layerfs.kernel import clock
from layerfs.kernel.descriptors import Passing
from layerfs.metadata import leases
from layerfs.metadata.database import Database
from layerfs.metadata.leases import Leased, LeaseRow
from layerfs.metadata.snapshots import moment
from layerfs.names import check_name

LONGEST = timedelta(days=3650)
"""The most time that a lease may have."""


@dataclass(frozen=True, slots=True)
class Now:
    """A moment: nanoseconds since 1970, the boot (random(4)), and nanoseconds since that boot."""

    wall: int
    boot: str
    uptime: int


@dataclass(frozen=True, slots=True)
class Held:
    """What leases name: digests of blobs and of images, keys and names of snapshots."""

    blobs: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    snapshots: frozenset[str] = frozenset()


def now(wall: Callable[[], int]) -> Now:
    """Return the present moment, of which ``wall`` gives the nanoseconds since 1970."""
    return Now(wall(), clock.boot_id(), clock.uptime())


def remaining(row: LeaseRow, at: Now) -> int:
    """Return how many nanoseconds a lease still has, 0 or less if it is over.

    During the boot in which it was made the time since the boot counts, which no step of the clock changes. After
    another boot there is only the clock. One that is behind the creation of the lease, as of a machine without a
    battery before it has asked for the time, ends no lease.
    """
    return row.deadline - at.uptime if row.boot == at.boot else row.expires - at.wall


class Leases:
    """The leases of one store; ``now`` gives the present moment."""

    def __init__(self, database: Database, lock_file: Path, *, now: Callable[[], Now]) -> None:
        self._database = database
        self._lock_file = lock_file
        self._now = now

    def create(self, ttl: timedelta, lease: str | None = None) -> Lease:
        """Make a lease that ends after ``ttl``; an id is made up if none is given.

        Raise `InvalidArgument` for a bad id or a ``ttl`` that is not above 0 and at most `LONGEST`, and `AlreadyExists`
        for an id in use. One that is over gives way.
        """
        lease = os.urandom(6).hex() if lease is None else lease
        check_name(lease, "a lease's id")
        at = self._now()
        row = _ending(lease, at.wall, ttl, at)
        with self._database.write() as connection:
            other = leases.find(connection, lease)
            if other is not None and remaining(other, at) > 0:
                raise AlreadyExists(
                    f"there is a lease {lease!r} already", hint=f"`layerfs lease renew {lease}` gives it more time"
                )
            leases.delete(connection, lease)
            leases.insert(connection, row)
        return self._load(row, at)

    def get(self, lease: str) -> Lease:
        """Return the lease of an id or of a unique start of one, over or not; raise `NotFound`."""
        with self._database.read() as connection:
            return self._load(_find(connection, lease), self._now())

    def every(self) -> tuple[Lease, ...]:
        """Return all leases, the oldest first, those among them that are over and not yet pruned."""
        at = self._now()
        with self._database.read() as connection:
            return tuple(self._load(row, at) for row in leases.every(connection))

    def expired(self) -> tuple[str, ...]:
        """Return the ids of the leases that are over."""
        with self._database.read() as connection:
            return tuple(self._over(connection))

    def held(self, connection: sqlite3.Connection) -> Held:
        """Return what the leases that are not over name."""
        at = self._now()
        live = [row.id for row in leases.every(connection) if remaining(row, at) > 0]
        return Held(*(frozenset[str]().union(*(leases.named(connection, it, kind) for it in live)) for kind in Leased))

    def drop_expired(self) -> tuple[str, ...]:
        """Delete the leases that are over, and return their ids."""
        if not self.expired():
            return ()
        with self._database.write(frees=True) as connection:
            expired = self._over(connection)  # now: one may have been renewed, or made anew, a moment ago
            for lease in expired:
                leases.delete(connection, lease)
            return tuple(expired)

    def _over(self, connection: sqlite3.Connection) -> list[str]:
        at = self._now()
        return [row.id for row in leases.every(connection) if remaining(row, at) <= 0]

    # What a lease does

    def named_by(self, lease: str) -> Held:
        """Return what one lease names."""
        with self._database.read() as connection:
            return Held(*(leases.named(connection, lease, kind) for kind in Leased))

    def name(self, lease: str, names: Held) -> None:
        """Let a lease name more; raise `NotFound` for one that is gone, `FailedPrecondition` for one that is over."""
        with self._working(), self._database.write() as connection:
            if remaining(_exactly(connection, lease), self._now()) <= 0:
                raise FailedPrecondition(
                    f"the lease {lease!r} is over: what it named may be gone",
                    hint=f"`layerfs lease renew {lease}`, and see what is still there",
                )
            for kind, these in zip(Leased, (names.blobs, names.images, names.snapshots), strict=True):
                leases.name(connection, lease, kind, these)

    def renew(self, lease: str, ttl: timedelta) -> Lease:
        """Let a lease end after ``ttl`` from now; raise `NotFound` for one that is gone."""
        with self._working(), self._database.write() as connection:
            at = self._now()
            row = _ending(lease, _exactly(connection, lease).created, ttl, at)
            leases.renew(connection, row)
        return self._load(row, at)

    def remove(self, lease: str) -> None:
        """End a lease; raise `NotFound` for one that is gone."""
        with self._database.write(frees=True) as connection:
            _exactly(connection, lease)
            leases.delete(connection, lease)

    def _working(self) -> AbstractContextManager[None]:
        return locks.locked(self._lock_file, locks.STORE, exclusive=False, what="the store")

    def _load(self, row: LeaseRow, at: Now) -> Lease:
        left = remaining(row, at)
        return Lease(row.id, moment(row.created), moment(at.wall + left), left <= 0, self)


@dataclass(slots=True)
class Lease(Passing):
    """A lease, as it was when it was looked at.

    As a context manager it ends with the block, unless `keep` was called.
    """

    id: str
    created: datetime
    expires: datetime
    """When it ends, by the present clock."""
    over: bool
    _leases: Leases = field(repr=False)
    _kept: bool = False

    @property
    def names(self) -> Held:
        """Return what it names."""
        return self._leases.named_by(self.id)

    def add(self, *, blobs: Iterable[str] = (), images: Iterable[str] = (), snapshots: Iterable[str] = ()) -> None:
        """Name more: digests of blobs and images, keys or names of snapshots, whether they are there already or not.

        An image keeps its blobs and layers, a snapshot those below it. When this returns, what is there stays; ask for
        it after, not before. Raise `NotFound` where the lease is gone, `FailedPrecondition` where it is over.
        """
        self._leases.name(self.id, Held(frozenset(blobs), frozenset(images), frozenset(snapshots)))

    def renew(self, ttl: timedelta) -> None:
        """Let it end after ``ttl`` from now, also if it is over; raise `NotFound` where it is gone."""
        renewed = self._leases.renew(self.id, ttl)
        self.expires, self.over = renewed.expires, renewed.over

    def remove(self) -> None:
        """End it: what it alone kept goes with the next prune. Raise `NotFound` where it is gone."""
        self._leases.remove(self.id)


def _ending(lease: str, created: int, ttl: timedelta, at: Now) -> LeaseRow:
    if not timedelta(0) < ttl <= LONGEST:
        raise InvalidArgument(f"a lease cannot last {ttl}", hint=f"more than nothing, and {LONGEST.days} days at most")
    length = clock.nanoseconds(ttl)
    return LeaseRow(lease, created, at.wall + length, at.boot, at.uptime + length)


def _find(connection: sqlite3.Connection, lease: str) -> LeaseRow:
    found = leases.matching(connection, lease) if lease else []
    if len(found) > 1:
        raise InvalidArgument(f"several leases start with {lease!r}", hint="give more of the id")
    if not found:
        raise _unknown(lease)
    return found[0]


def _exactly(connection: sqlite3.Connection, lease: str) -> LeaseRow:
    row = leases.find(connection, lease)
    if row is None:
        raise _unknown(lease)
    return row


def _unknown(lease: str) -> NotFound:
    return NotFound(f"there is no lease {lease!r}", hint="`layerfs lease ls` lists what is there")
