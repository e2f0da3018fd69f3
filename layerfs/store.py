"""The store: what people open to import images, clone writable roots from them, and commit what they changed."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs import drivers, locks, volume
from layerfs.clones import PREFIX, Clone, Clones
from layerfs.contract import Detachable, Driver
from layerfs.errors import FailedPrecondition, NotFound, os_error
from layerfs.events import Listener, ignore
from layerfs.image.blobs import BlobStore
from layerfs.image.files import ArchiveFormat
from layerfs.image.platform import Platform
from layerfs.image.reference import Reference
from layerfs.images import Image, Images, Intake
from layerfs.kernel import userns
from layerfs.kernel.descriptors import Closing
from layerfs.kernel.userns import IdMap
from layerfs.metadata import settings
from layerfs.metadata.database import Database
from layerfs.parts import Parts
from layerfs.snapshotter import Snapshotter

if TYPE_CHECKING:
    from layerfs.check import Problem
    from layerfs.layer.changes import Change
    from layerfs.layer.limits import Limits
    from layerfs.reclaim import DiskUsage, PrunePlan, Reclaim
    from layerfs.registry.options import Options as RegistryOptions

AUTO = "auto"
"""Stands for the store's own driver, and for the first that works where a store is made."""

_DATABASE = "meta.db"
_LOCK = "lock"
_BLOBS = "blobs"
_VOLUME = "volume"
"""The setting that names the file system of the store's volume."""
_UNPRIVILEGED = "unprivileged"
"""The setting of a store that an ordinary user made without a user namespace."""
_UIDMAP, _GIDMAP = "uidmap", "gidmap"
"""The settings that hold the store's id map, as `layerfs.layer.owners.format_ranges` writes it."""


def default_path() -> Path:
    """Return where the store is if nobody says: ``LAYERFS_STORE``, else ``/var/lib/layerfs``, or the user's own."""
    chosen = os.environ.get("LAYERFS_STORE")
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0 and userns.is_initial():
        return Path("/var/lib/layerfs")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "layerfs"


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
    place = Path(path) if path is not None else default_path()
    place = Path(os.path.abspath(place))
    if id_map is not None:
        _check_id_map(id_map)
    if not _is_store(place):
        if not create:
            raise NotFound(f"{place} is no layerfs store", hint="make one: layerfs store create")
        _make_directory(place)
    with ExitStack() as undo:
        database = Database(place / _DATABASE)
        undo.callback(database.close)
        lock_file = place / _LOCK
        with locks.locked(lock_file, locks.named("open"), exclusive=True, what=f"the opening of {place}"):
            with database.read() as connection:
                own = settings.get(connection, "driver")
            if own is None:
                own = _initialize(place, database, driver, options or {}, loop, id_map, clock)
            elif loop is not None:
                raise FailedPrecondition(f"{place} is a store already", hint="a loop volume is for a new one")
            _attach_volume(place, database, own)
        if driver not in {AUTO, own}:
            raise FailedPrecondition(
                f"{place} is a store of the driver {own!r}, not {driver!r}",
                hint="leave the driver out, or use another store",
            )
        with database.read() as connection:
            remembered = settings.below(connection, "option.")
            own_map = _read_id_map(connection)
        if id_map not in {None, own_map}:
            raise FailedPrecondition(
                f"{place} is a store with another id map", hint="leave the map out, or make another store"
            )
        opened = drivers.open_driver(own, place / own, {**remembered, **(options or {})})
        undo.callback(opened.close)
        snapshotter = Snapshotter(opened, database, lock_file, clock=clock)
        blobs = BlobStore(place / _BLOBS)
        store = Store(Parts(place, lock_file, database, opened, snapshotter, blobs, own_map), clock=clock)
        undo.pop_all()
    return store


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


class Store(Closing):
    """An open store; a context manager that closes it. Use `open_store`."""

    def __init__(self, parts: Parts, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._parts = parts
        self._images = Images(parts, clock=clock)
        self._clones = Clones(parts, self._images, clock=clock)

    @property
    def path(self) -> Path:
        """Return its directory."""
        return self._parts.path

    @property
    def driver(self) -> Driver:
        """Return its driver."""
        return self._parts.driver

    @property
    def id_map(self) -> IdMap | None:
        """Return the map by which its layers got their owners; None for the owners that the layers say."""
        return self._parts.id_map

    @property
    def snapshotter(self) -> Snapshotter:
        """Return what runtimes use: prepare, view, mounts, commit, remove and so on."""
        return self._parts.snapshotter

    @property
    def blobs(self) -> BlobStore:
        """Return where manifests, configurations and layers are kept as they came."""
        return self._parts.blobs

    def close(self) -> None:
        """Close it; doing it twice is no error. What is mounted stays mounted."""
        self._parts.snapshotter.close()
        self._parts.database.close()

    def detach(self) -> bool:
        """Close it; unmount its volume (`LoopVolume`) or take its pool from the kernel: until opened it is but files.

        Return whether there was one; raise `Busy` while snapshots are mounted or others work with the store.
        """
        with self._parts.alone(wait=False):
            detached = volume.detach(self.path, self.driver.name)
            if isinstance(self.driver, Detachable):
                detached = self.driver.detach() or detached
            self.close()
            return detached

    # Images

    def import_image(
        self,
        source: str | os.PathLike[str],
        *,
        names: Sequence[str] = (),
        platform: Platform | None = None,
        unpack: bool = True,
        limits: Limits | None = None,
        jobs: int | None = None,
        listener: Listener = ignore,
    ) -> tuple[Image, ...]:
        """Import the images of an OCI layout (directory or tar) or a docker-archive.

        ``names`` replace those that the archive gives to its single image; ``platform`` selects from an index, the
        host's by default. Every digest and size is verified. ``limits`` bound what a layer may cost when it is
        unpacked, now; a later `clone` of an image that was not unpacked uses the default ones. ``jobs`` layers are
        unpacked at a time where the driver allows it, by default as many as the processors can do with; then several
        threads call the listener. Raise `Corrupt`, `Unsupported`, `NoSpace`, `LimitExceeded`; nothing of an image that
        fails is kept.
        """
        try:
            return self._images.import_from(Path(source), Intake(names, platform, unpack, limits, jobs, listener))
        except BaseException:
            self._reclaim.collect()
            raise

    def pull_image(
        self,
        name: str,
        *,
        names: Sequence[str] = (),
        platform: Platform | None = None,
        unpack: bool = True,
        limits: Limits | None = None,
        jobs: int | None = None,
        options: RegistryOptions | None = None,
        listener: Listener = ignore,
    ) -> Image:
        """Bring an image from its registry, under its name or under ``names``; the rest is as for `import_image`.

        ``options`` say how to speak to the registry. Raise `NotFound`, `PermissionDenied`, `Busy` (too many requests)
        and `OperationFailed` for what the registry says or does not; nothing of an image that fails is kept.
        """
        from layerfs.registry.options import Options  # noqa: PLC0415  20 ms that those who never pull need not pay

        try:
            how = Intake(names, platform, unpack, limits, jobs, listener)
            return self._images.pull(Reference.parse(name), options or Options(), how)
        except BaseException:
            self._reclaim.collect()
            raise

    def push_image(
        self,
        image: str,
        name: str | None = None,
        *,
        options: RegistryOptions | None = None,
        listener: Listener = ignore,
    ) -> None:
        """Send an image to the registry that its name says, or another name; errors as for `pull_image`."""
        from layerfs.registry.options import Options  # noqa: PLC0415  as above

        with self._parts.working():
            self._images.push(image, Reference.parse(name or image), options or Options(), listener=listener)

    def export_image(
        self,
        images: Sequence[str],
        destination: str | os.PathLike[str],
        *,
        format: ArchiveFormat = ArchiveFormat.OCI_ARCHIVE,  # noqa: A002  the field's word
        listener: Listener = ignore,
    ) -> None:
        """Write images to a file or a new directory, every blob byte for byte as it came.

        A docker-archive holds the layers uncompressed. The same images give the same bytes.
        """
        with self._parts.working():
            self._images.export_to(images, Path(destination), format, listener=listener)

    def images(self) -> tuple[Image, ...]:
        """Return all images, the oldest first."""
        return self._images.every()

    def image(self, reference: str) -> Image:
        """Return the image of a name ("debian:12"), a digest, or a unique prefix of a digest; raise `NotFound`."""
        return self._images.get(reference)

    def tag(self, reference: str, name: str) -> Image:
        """Give an image one more name, taking it from the image that has it."""
        return self._images.tag(reference, name)

    def remove_image(self, reference: str) -> None:
        """Take a name from an image, and remove the image with its last one; a digest removes it with all names.

        Raise `FailedPrecondition` that lists the clones of an image that has some.
        """
        self._images.remove(reference)
        self._reclaim.collect()

    # Clones

    def clone(self, image: str, name: str | None = None) -> Clone:
        """Make a writable root on top of an image; a name is made up if none is given."""
        return self._clones.make(self._images.get(image), name)

    def clones(self) -> tuple[Clone, ...]:
        """Return all clones by name."""
        return self._clones.every()

    def get_clone(self, name: str) -> Clone:
        """Return the clone of a name, or of a unique start of one; raise `NotFound`."""
        return self._clones.get(name)

    def changes(self, first: str, second: str | None = None, *, verify_content: bool = False) -> Iterator[Change]:
        """List what differs from ``first`` to ``second``: images, clones, ``CLONE@LABEL``, or layers by ChainID.

        With one argument, a clone is compared with its image, and an image with nothing. ``verify_content`` reads the
        files that look equal, to find an edit that kept size and modification time.
        """
        from layerfs.layer.changes import changes  # noqa: PLC0415  late, as in `layerfs.clones`

        if second is None:
            key = self._key(first)
            if key.startswith(PREFIX) and "@" not in key:
                yield from self._clones.get(first).changes(verify_content=verify_content)
                return
            first, second = "", first
        lower, upper = self._key(first) if first else "", self._key(second)
        with self._parts.working(), self._parts.tree(lower) as old, self._parts.tree(upper) as new:
            candidates = self._parts.candidates(lower, upper)
            yield from changes(old, new, verify_content=verify_content, candidates=candidates)

    # Housekeeping

    def plan_prune(self) -> PrunePlan:
        """Return what nobody needs: images without a name and a clone, layers and blobs of no image, leftovers."""
        return self._reclaim.plan()

    def prune(self, plan: PrunePlan) -> PrunePlan:
        """Remove what a plan names and is still not needed; wait for those who work with the store."""
        return self._reclaim.prune(plan)

    def du(self) -> tuple[DiskUsage, ...]:
        """Return what each image and each clone takes, alone and together with others."""
        return self._reclaim.usage()

    def check(self) -> tuple[Problem, ...]:
        """Return what is gone or broken, as far as it shows without reading contents, and whom it hurts."""
        from layerfs.check import Check  # noqa: PLC0415  only those who look for problems need it

        return Check(self._parts, self._images, self._clones).run()

    @cached_property
    def _reclaim(self) -> Reclaim:
        from layerfs.reclaim import Reclaim  # noqa: PLC0415  only those who clean up need it

        return Reclaim(self._parts, self._images, self._clones)

    def _key(self, name: str) -> str:
        """Return the snapshot that a name of people means, unpacking an image where that has not been done."""
        base, at, label = name.partition("@")
        if at and not label.startswith("sha256:"):
            return f"{self._clones.get(base).key}@{label}"
        try:
            return self._clones.get(name).key
        except NotFound:
            pass
        try:
            image = self._images.get(name)
        except NotFound:
            return self._chain(name)
        with self._parts.working():  # a prune takes what is half unpacked for a leftover
            self._images.unpack(image)
        return image.top

    def _chain(self, name: str) -> str:
        try:
            return self._parts.snapshotter.stat(name).name
        except NotFound as error:
            raise NotFound(
                f"{name!r} is no clone, image, snapshot or layer", hint="`layerfs ls` and `layerfs image ls` list them"
            ) from error


def _is_store(place: Path) -> bool:
    try:
        return (place / _DATABASE).exists()
    except OSError as error:
        raise os_error(f"open the store {place}", error) from error


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
    # Layers hold setuid programs of other users: nobody else may reach them.
    place.chmod(0o700)


def _initialize(
    place: Path,
    database: Database,
    driver: str,
    options: Mapping[str, str],
    loop: volume.LoopVolume | None,
    id_map: IdMap | None,
    clock: Callable[[], int],
) -> str:
    """Decide a new store's driver, write it down, and return it; leave no store on failure."""
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
            if id_map is not None:
                _write_id_map(connection, id_map)
    except BaseException:
        database.close()
        _unmake(place, driver)
        raise
    return driver


def _check_id_map(id_map: IdMap) -> None:
    from layerfs.layer.owners import Owners  # noqa: PLC0415  few stores have a map

    Owners(id_map)


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
    for name in (f"{_DATABASE}-wal", f"{_DATABASE}-shm", _DATABASE, _LOCK):
        (place / name).unlink(missing_ok=True)
    for directory in (place / driver, place):
        with suppress(OSError):
            directory.rmdir()
