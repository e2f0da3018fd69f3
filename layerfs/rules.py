"""The rules of the state machine: which snapshot may do what, and the error for those that may not.

Source: containerd ``core/snapshots/snapshotter.go`` and ``core/snapshots/storage/bolt.go``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from layerfs.contract import Driver, Kind, Quota, Quotas, SnapshotId
from layerfs.errors import AlreadyExists, Busy, FailedPrecondition, InvalidArgument, NotFound, Unsupported
from layerfs.metadata import snapshots
from layerfs.metadata.snapshots import Row, State

LABEL_LIMIT = 4096
"""Bytes that a label's key and value may have together (containerd ``pkg/labels/validate.go``)."""


def present(connection: sqlite3.Connection, key: str) -> Row:
    """Return the snapshot of a key or name, or raise `NotFound`; one whose bytes are still being made is not there."""
    row = snapshots.find(connection, key)
    if row is None or row.state is State.CREATING:
        raise NotFound(f"there is no snapshot {key!r}")
    return row


def ready(connection: sqlite3.Connection, key: str) -> Row:
    """Return a snapshot with which nothing is under way, or raise `Busy`."""
    row = present(connection, key)
    if row.state is not State.READY:
        raise Busy(f"{key!r} is being committed", hint="wait for the commit to end, then try again")
    return row


def committable(connection: sqlite3.Connection, key: str) -> Row:
    """Return an active snapshot, or raise `FailedPrecondition`."""
    row = ready(connection, key)
    if row.kind is not Kind.ACTIVE:
        raise FailedPrecondition(f"{key!r} is a {row.kind} snapshot; only an active one can be committed or reset")
    return row


def same(connection: sqlite3.Connection, key: str, row: Row) -> None:
    """Raise `Busy` unless the key still has the snapshot that it had when ``row`` was read."""
    if committable(connection, key).id != row.id:
        raise Busy(f"{key!r} was replaced by another process meanwhile", hint="look at it, then try again")


def parent(connection: sqlite3.Connection, name: str) -> SnapshotId | None:
    """Return the committed snapshot that is to be a parent, None for "", or raise `InvalidArgument`."""
    if not name:
        return None
    row = present(connection, name)
    if row.kind is not Kind.COMMITTED:
        raise InvalidArgument(f"{name!r} is {row.kind}; only a committed snapshot can be a parent")
    return row.id


def rebase(connection: sqlite3.Connection, row: Row, name: str, driver: Driver) -> None:
    """Give a snapshot without a parent its parent; "" and the parent that it has already change nothing."""
    if not name:
        return
    if row.parent is not None:
        if snapshots.get(connection, row.parent).name != name:
            raise InvalidArgument(f"{row.name!r} has a parent already; only one without can be given one at commit")
        return
    base = present(connection, name)
    if base.kind is not Kind.COMMITTED:
        raise FailedPrecondition(f"{name!r} is {base.kind}; commit it before its children")
    if not driver.traits.rebase:
        raise Unsupported(
            f"the driver {driver.name} cannot give a snapshot its parent at commit", hint="prepare it on its parent"
        )
    snapshots.set_parent(connection, row.id, base.id)


def check_name(name: str) -> None:
    """Raise `InvalidArgument` for what can be neither a key nor a name."""
    if not name or "\x00" in name:
        raise InvalidArgument(f"{name!r} cannot name a snapshot", hint="use at least one character, and no NUL")


def check_free(connection: sqlite3.Connection, name: str) -> None:
    """Raise `AlreadyExists` for a name in use, or promised to a commit under way."""
    if snapshots.is_taken(connection, name):
        raise AlreadyExists(f"a snapshot {name!r} exists already", hint="remove it, or use another name")


def checked_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Return the labels if each is within its limit, or raise `InvalidArgument`."""
    for key, value in labels.items():
        size = len(key.encode()) + len(value.encode())
        if not key or size > LABEL_LIMIT:
            raise InvalidArgument(
                f"the label {key[:64]!r} has {size} bytes", hint=f"key and value may have {LABEL_LIMIT} together"
            )
    return labels


def check_quota(driver: Driver, quota: Quota) -> None:
    """Raise `InvalidArgument` for a quota that can never be, `Unsupported` for one that the driver cannot hold."""
    for limit in (quota.size, quota.inodes):
        if limit is not None and not 0 < limit < 1 << 63:
            raise InvalidArgument(f"{limit} is no limit of a quota", hint="give one of 1 at the least, or none")
    if quota:
        check_quotas(driver)


def check_quotas(driver: Driver) -> None:
    """Raise `Unsupported` for a driver without quotas."""
    if not isinstance(driver, Quotas):
        raise Unsupported(
            f"the driver {driver.name} has no quotas", hint="fuse has, and btrfs; see docs/how-to/quotas.md"
        )
