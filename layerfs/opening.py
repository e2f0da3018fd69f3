"""Opening a store: find the one of a directory, or make it there, with its driver, its volume and its id map."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from layerfs import drivers, locks, privilege, volume
from layerfs.errors import Corrupt, FailedPrecondition, NotFound, PermissionDenied, os_error
from layerfs.image.blobs import BlobStore
from layerfs.kernel import userns
from layerfs.kernel.userns import IdMap
from layerfs.metadata import record, settings
from layerfs.metadata.database import LOCK as _LOCK
from layerfs.metadata.database import NAME as _DATABASE
from layerfs.metadata.database import Database
from layerfs.parts import Parts
from layerfs.snapshotter import Snapshotter
from layerfs.store import Store

AUTO = "auto"
"""Stands for the store's own driver, and for the first that works where a store is made."""

_BLOBS = "blobs"
_VOLUME = "volume"
"""The setting that names the file system of the store's volume."""
_UNPRIVILEGED = "unprivileged"
"""The setting of a store that an ordinary user made without a user namespace."""
_UIDMAP, _GIDMAP = "uidmap", "gidmap"
"""The settings that hold the store's id map, as `layerfs.layer.owners.format_ranges` writes it."""
_OTHERS_WRITE, _OTHERS = 0o022, 0o077

_log = logging.getLogger(__name__)


def default_path() -> Path:
    """Return where the store is if nobody says: ``LAYERFS_STORE``, else ``/var/lib/layerfs``, or the user's own."""
    chosen = privilege.environment().get("LAYERFS_STORE")
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0 and userns.is_initial():
        return Path("/var/lib/layerfs")
    return Path(privilege.environment().get("XDG_DATA_HOME") or privilege.home() / ".local/share") / "layerfs"


def open_store(
    path: str | os.PathLike[str] | None = None,
    *,
    driver: str = AUTO,
    options: Mapping[str, str] | None = None,
    create: bool = True,
    loop: volume.LoopVolume | None = None,
    id_map: IdMap | None = None,
    clock: Callable[[], int] = time.time_ns,
) -> Store:
    """Open the store in a directory, and make one there if it is missing or empty and ``create`` allows it.

    ``driver`` "auto" is the store's own one, or for a new store the first that works there. ``options`` are the
    driver's; a new store remembers them. ``loop`` puts the snapshots of a new store on a file system of their own.
    ``id_map`` gives every layer of a new store the owners that it has outside a user namespace of that map; a store
    keeps its map for good, since it shares layers between images.

    Raise `InvalidArgument` for a map that has no root, `NotFound` for no store, `FailedPrecondition` for a directory
    with other things in it, for another driver or id map than the store's, and for a store of a newer layerfs.
    """
    place = Path(os.path.abspath(path if path is not None else default_path()))
    wishes = _Wishes(driver, options or {}, loop, id_map)
    _enter(place, create=create)
    with ExitStack() as undo:
        database = Database(place / _DATABASE)
        undo.callback(database.close)
        lock_file = place / _LOCK
        with locks.locked(lock_file, locks.named("open"), exclusive=True, what=f"the opening of {place}"):
            own = _own_driver(place, database, wishes, clock)
            _attach_volume(place, database, own)
        with database.read() as connection:
            remembered = settings.below(connection, "option.")
            own_map = _read_id_map(connection)
        wishes.check(place, own, own_map)
        opened = drivers.open_driver(own, place / own, {**remembered, **wishes.options})
        undo.callback(opened.close)
        snapshotter = Snapshotter(opened, database, lock_file, clock=clock)
        blobs = BlobStore(place / _BLOBS)
        store = Store(Parts(place, lock_file, database, opened, snapshotter, blobs, own_map, clock), clock=clock)
        undo.pop_all()
    database.reserve.keep()
    return store


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What a store is to be, as for `open_store`: a new one becomes that, one that is there must be that."""

    driver: str
    options: Mapping[str, str]
    loop: volume.LoopVolume | None
    id_map: IdMap | None

    def __post_init__(self) -> None:
        """Raise `InvalidArgument` for a map that no store can have."""
        if self.id_map is not None:
            from layerfs.layer.owners import Owners  # noqa: PLC0415  few stores have a map

            Owners(self.id_map)

    def check(self, place: Path, driver: str, id_map: IdMap | None) -> None:
        """Raise `FailedPrecondition` for a store of another driver or id map."""
        if self.driver not in {AUTO, driver}:
            raise FailedPrecondition(
                f"{place} is a store of the driver {driver!r}, not {self.driver!r}",
                hint="leave the driver out, or use another store",
            )
        if self.id_map not in {None, id_map}:
            raise FailedPrecondition(
                f"{place} is a store with another id map", hint="leave the map out, or make another store"
            )


def needs_namespace(path: Path, driver: str = AUTO) -> bool:
    """Tell whether an ordinary user works with this store, or makes one of this driver there, as root of a namespace.

    A store that was made without one is used without one: in a namespace its owners would be others.
    """
    if _is_store(path):
        database = Database(path / _DATABASE)
        try:
            with database.read() as connection:
                return settings.get(connection, _UNPRIVILEGED) is None
        finally:
            database.close()
    if driver == AUTO:
        return True
    there = next(place for place in (path, *path.parents) if place.is_dir())
    return not drivers.works_unprivileged(driver, there)


def _enter(place: Path, *, create: bool) -> None:
    """See that a store may be opened in a directory, or make the directory for a new one if that is allowed."""
    if _is_store(place):
        _check_private(place)
        return
    _check_not_lost(place, "gone")
    if not create:
        raise NotFound(f"{place} is no layerfs store", hint="make one: layerfs store create")
    _make_directory(place)


def _is_store(place: Path) -> bool:
    try:
        return (place / _DATABASE).exists()
    except OSError as error:
        raise os_error(f"open the store {place}", error) from error


def _check_not_lost(place: Path, what: str) -> None:
    """Raise `Corrupt` for a directory that has all of a store but what its database should say."""
    if (place / _BLOBS).is_dir() or (place / record.NAME).exists():
        raise Corrupt(
            f"{place} is a store of which the database is {what}",
            hint="`layerfs repair --force` makes a new one of what is left",
        )


def _make_directory(place: Path) -> None:
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        others = [name for name in os.listdir(place) if not name.startswith((_DATABASE, _LOCK, "lost+found"))]
    except OSError as error:
        raise os_error(f"make the store {place}", error) from error
    if others:
        raise FailedPrecondition(
            f"{place} is no layerfs store, and it is not empty", hint="name the store's directory, or an empty one"
        )
    _check_owner(place, os.stat(place))
    # Layers hold setuid programs of other users: nobody else may reach them.
    place.chmod(0o700)


def _check_private(place: Path) -> None:
    """Raise `PermissionDenied` for a store that is somebody else's or that others may write to."""
    try:
        status = os.stat(place)
    except OSError as error:
        raise os_error(f"open the store {place}", error) from error
    _check_owner(place, status)
    if status.st_mode & _OTHERS_WRITE:
        raise PermissionDenied(
            f"others may write to the store {place} (mode {status.st_mode & 0o7777:04o})",
            hint=f"see that it is as you left it (`layerfs check --deep`) after `chmod 700 {place}`",
        )
    if status.st_mode & _OTHERS:
        _log.warning("others may enter the store %s, where layers may hold setuid programs: chmod 700 it", place)


def _check_owner(place: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise PermissionDenied(
            f"{place} belongs to user {status.st_uid}, who could put anything there", hint="run it as that user"
        )


def _own_driver(place: Path, database: Database, wishes: _Wishes, clock: Callable[[], int]) -> str:
    """Return the driver of a store, which is decided here for a new one."""
    with database.read() as connection:
        own = settings.get(connection, "driver")
    if own is None:
        _check_not_lost(place, "empty")
        return _initialize(place, database, wishes, clock)
    if wishes.loop is not None:
        raise FailedPrecondition(f"{place} is a store already", hint="a loop volume is for a new one")
    return own


def _initialize(place: Path, database: Database, wishes: _Wishes, clock: Callable[[], int]) -> str:
    """Decide a new store's driver, write it down, and return it; leave no store on failure."""
    driver, options, loop = wishes.driver, wishes.options, wishes.loop
    try:
        if loop is not None:
            driver = loop.driver(driver)
            options = {**options, **loop.options}
            if not loop.is_pool:
                loop.create(place)
                volume.attach(place, driver, loop.file_system)
        if driver == AUTO:
            driver, new = drivers.open_first(place, options)
        else:
            new = drivers.open_driver(driver, place / driver, options)
        with closing(new) as opened:
            unprivileged = opened.traits.unprivileged and os.geteuid() != 0
        with database.write() as connection:
            settings.put(connection, "driver", driver)
            if unprivileged:
                settings.put(connection, _UNPRIVILEGED, "yes")
            settings.put(connection, "created", str(clock()))
            for key, value in options.items():
                settings.put(connection, f"option.{key}", value)
            if loop is not None and not loop.is_pool:
                settings.put(connection, _VOLUME, loop.file_system)
            if wishes.id_map is not None:
                _write_id_map(connection, wishes.id_map)
    except BaseException:
        database.close()
        _unmake(place, driver)
        raise
    return driver


def _write_id_map(connection: sqlite3.Connection, id_map: IdMap) -> None:
    from layerfs.layer.owners import format_ranges  # noqa: PLC0415  few stores have a map

    settings.put(connection, _UIDMAP, format_ranges(id_map.users))
    settings.put(connection, _GIDMAP, format_ranges(id_map.groups))


def _read_id_map(connection: sqlite3.Connection) -> IdMap | None:
    users, groups = (settings.get(connection, key) for key in (_UIDMAP, _GIDMAP))
    if users is None or groups is None:
        return None
    from layerfs.layer.owners import parse_ranges  # noqa: PLC0415  few stores have a map

    return IdMap(parse_ranges(users.split()), parse_ranges(groups.split()))


def _attach_volume(place: Path, database: Database, driver: str) -> None:
    with database.read() as connection:
        file_system = settings.get(connection, _VOLUME)
    if file_system is not None:
        volume.attach(place, driver, file_system)


def _unmake(place: Path, driver: str) -> None:
    """Take back what `_initialize` made, and the directory itself if nothing else is in it."""
    if (place / volume.IMAGE).exists():
        volume.detach(place, driver)
        volume.remove(place)
    for name in (f"{_DATABASE}-wal", f"{_DATABASE}-shm", _DATABASE, _LOCK, record.NAME):
        (place / name).unlink(missing_ok=True)
    for directory in (place / driver, place):
        with suppress(OSError):
            directory.rmdir()
