"""What lies in a store's directory, who may enter it, and which mounts show what is gone."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from functools import cached_property
from stat import S_IMODE

from layerfs import locks
from layerfs.checking.problem import Problem, ProblemKind
from layerfs.checking.users import Users
from layerfs.contract import DirectAccess, Kind, Snapshot, SnapshotId, Tidy, ids_of
from layerfs.kernel import mountinfo, mounting
from layerfs.kernel.mountinfo import MountPoint
from layerfs.metadata import snapshots
from layerfs.parts import TEMPORARY, Parts
from layerfs.tree import LOST

OWN = ("meta.", "lock", "blobs", "seals", "volume", "reserve", "migrating", LOST)
"""How the names in a store's directory begin, beside that of its driver."""
_DELETED = "//deleted"
"""What mountinfo puts behind the root of a bind mount whose directory is gone."""
_SHOWS_NOTHING = "this mount shows a snapshot that is gone"
_OTHERS = 0o077
_WRITE = 0o022
STORE_MODE = 0o700
"""Layers hold setuid programs of other users: nobody else may reach them."""


class Places:
    """The check of directories and mounts."""

    def __init__(self, parts: Parts, users: Users) -> None:
        self._parts = parts
        self._users = users
        self._root = parts.path / parts.driver.name

    def run(self) -> Iterator[Problem]:
        """Yield what is wrong."""
        yield from self._modes()
        yield from self._strangers()
        yield from self._leftovers()
        yield from self._orphans()
        yield from self._mounts()

    def _modes(self) -> Iterator[Problem]:
        for path, forbidden in ((self._parts.path, _OTHERS), (self._root, _WRITE), (self._parts.blobs.root, _WRITE)):
            mode = S_IMODE(os.stat(path).st_mode)
            if mode & forbidden:
                message = f"its mode is {mode:04o}: others may {'enter' if forbidden == _OTHERS else 'change'} it"
                hint = f"chmod {mode & ~forbidden:04o} {path}, or `layerfs repair --force`"
                yield Problem(os.fspath(path), message, hint, (), ProblemKind.MODE)

    def _strangers(self) -> Iterator[Problem]:
        driver = self._parts.driver
        beside = [
            self._parts.path / name
            for name in sorted(os.listdir(self._parts.path))
            if name != driver.name and not name.startswith(OWN)
        ]
        within = driver.strangers() if isinstance(driver, Tidy) else ()
        hint = f"`layerfs repair --force` moves it to {self._parts.path / LOST}"
        for path in (*beside, *self._parts.blobs.strangers(), *within):
            yield Problem(os.fspath(path), "it is none of the store's", hint, (), ProblemKind.FOREIGN)

    def _leftovers(self) -> Iterator[Problem]:
        hint = "`layerfs prune --force` removes it"
        for path in self._parts.blobs.abandoned():
            yield Problem(os.fspath(path), "a blob that was never finished", hint, (), ProblemKind.LEFTOVER)
        for info in self._parts.snapshotter.infos(prefix=TEMPORARY):
            if self._parts.is_left_over(info.name):
                message = "a process that died left it"
                yield Problem(info.name, message, hint, (), ProblemKind.LEFTOVER)

    def _orphans(self) -> Iterator[Problem]:
        orphans = self._without_row()
        for orphan in orphans:  # who deletes bytes without a row holds their lock meanwhile
            place = locks.named(f"bytes/{orphan}")
            with locks.locked(self._parts.lock_file, place, exclusive=True, what=f"snapshot {orphan}"):
                pass
        for orphan in sorted(orphans & self._without_row() if orphans else orphans):
            message = f"bytes of a snapshot {orphan}, which no row names"
            hint = "`layerfs repair --force` deletes them"
            yield Problem(str(orphan), message, hint, (), ProblemKind.ORPHAN)

    def _without_row(self) -> set[SnapshotId]:
        held = self._parts.snapshotter.holdings.ids()
        with self._parts.database.write(durable=False) as connection:  # who makes bytes is in such a transaction
            return held - snapshots.ids(connection)

    def _mounts(self) -> Iterator[Problem]:
        if not isinstance(self._parts.driver, DirectAccess):
            yield from self._mounts_of_devices()
            return
        with self._parts.database.read() as connection:
            there = {row.id: row.name for row in (*snapshots.ready(connection), *snapshots.unfinished(connection))}
        for point in mountinfo.mount_points():
            used = self._ids(point)
            if not used or point.path.is_relative_to(self._root):  # what snapshots share goes by itself
                continue
            if is_dead(point):
                message = "the process that served this mount has ended: every access fails"
            elif used - there.keys() or point.root.endswith(_DELETED):
                message = _SHOWS_NOTHING
            else:
                continue
            hurts = {user for one in used & there.keys() for user in self._users.of_snapshot(there[one])}
            yield _mount(point, message, hurts)

    def _mounts_of_devices(self) -> Iterator[Problem]:
        """Yield the mounts of devices and datasets that no row names; one that is gone cannot be mounted."""
        for orphan in sorted(self._without_row()):
            for point in mounting.users(self._parts.driver.mounts(Snapshot(orphan, Kind.ACTIVE))):
                yield _mount(point, _SHOWS_NOTHING)

    def _ids(self, point: MountPoint) -> set[SnapshotId]:
        """Return the snapshots of this store that a mount shows, by the directories that its line names."""
        home = f"{os.path.realpath(self._root)}/"
        named = (point.source, point.upper, *point.lowers)
        found = {path.removeprefix(home).partition("/")[0] for path in named if path.startswith(home)}
        device, inside = self._home
        bound = point.root.removesuffix(_DELETED)
        if point.device == device and bound.startswith(inside):
            found.add(bound.removeprefix(inside).partition("/")[0])
        return ids_of(found)

    @cached_property
    def _home(self) -> tuple[tuple[int, int] | None, str]:
        """Return the file system that the snapshots lie on, and the start of their paths in it, as mountinfo has them.

        A name alone will not do: another store may have the same.
        """
        origin = mountinfo.origin(self._root) if self._root.is_dir() else None
        return (origin[0], os.path.join(origin[1], "")) if origin else (None, "")


def _mount(point: MountPoint, message: str, hurts: Collection[str] = ()) -> Problem:
    hint = f"umount {point.path}, or `layerfs repair --force`"
    return Problem(os.fspath(point.path), message, hint, tuple(sorted(hurts)), ProblemKind.MOUNT)


def is_dead(point: MountPoint) -> bool:
    """Tell whether the process that served a FUSE mount has ended."""
    if not point.type.startswith("fuse"):
        return False
    try:
        os.statvfs(point.path)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False
