"""Whose a path is: a file of a store, a mount, a device or a dataset, with the images and clones behind it.

A path outside of the store is followed to what it shows: a mount to the directories or the device that it is made of, a
loop device to its file.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from layerfs.checking.places import OWN
from layerfs.checking.users import image_name
from layerfs.clones import PREFIX
from layerfs.contract import Kind, Snapshot, SnapshotId, id_of
from layerfs.errors import os_error
from layerfs.kernel import loop, mountinfo
from layerfs.kernel.mountinfo import MountPoint
from layerfs.metadata import clones, images, snapshots
from layerfs.metadata.snapshots import Row
from layerfs.parts import Parts

_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_INGEST = re.compile(r"blobs/ingest/.+")
_STEPS = 8
"""How often a path is followed to what it shows: a mount of a mount of a loop device, and so on."""


class OwnerKind(StrEnum):
    """What a path belongs to."""

    SNAPSHOT = "snapshot"
    BLOB = "blob"
    STORE = "store"
    """The store as a whole: its database, its volume, a driver's own files."""
    NOBODY = "nobody"
    """Something of the store's that nobody needs, such as a crash leaves: `layerfs prune` removes it."""
    FOREIGN = "foreign"
    """Nothing of this store."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a path is: of a snapshot or blob its name, its id, and the images and clones that need it."""

    kind: OwnerKind
    name: str = ""
    id: SnapshotId | None = None
    users: tuple[str, ...] = ()


class Owning:
    """Find whose paths are, in one store."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._root = Path(os.path.realpath(parts.path))

    def of(self, path: str) -> Owner:
        """Return whose a path, a device or a dataset of that name is; raise `NotFound` where there is none of these."""
        if not path.startswith("/") and (row := self._of_source(path)) is not None:
            return self._snapshot(row)
        _demand(path)
        place = Path(os.path.realpath(path))
        for _ in range(_STEPS):
            if place == self._root or self._root in place.parents:
                return self._inside(place.relative_to(self._root))
            shown = _shown(place)
            row = self._of_source(shown or os.fspath(place))
            if row is not None:
                return self._snapshot(row)
            if shown is None or not shown.startswith("/"):
                break
            place = Path(os.path.realpath(shown))
        return Owner(OwnerKind.FOREIGN)

    def _inside(self, path: Path) -> Owner:
        """Tell whose a path below the store's directory is."""
        text = os.fspath(path)
        if (blob := _BLOB.fullmatch(text)) is not None:
            return self._blob(f"sha256:{blob[1]}")
        if path.parts[:1] == (self._parts.driver.name,):
            return self._of_driver(path.parts[1:])
        if _INGEST.fullmatch(text):
            return Owner(OwnerKind.NOBODY, "a blob that is being written, or was when its writer died")
        inside_blobs = path.parts[:1] == ("blobs",)
        if text in {".", "blobs", "blobs/sha256", "blobs/ingest"} or (text.startswith(OWN) and not inside_blobs):
            return Owner(OwnerKind.STORE, os.fspath(self._parts.path))
        return Owner(OwnerKind.FOREIGN)

    def _blob(self, digest: str) -> Owner:
        with self._parts.database.read() as connection:
            users = _images(connection, digest)
            leased = digest in self._parts.leases.held(connection).blobs
        return Owner(OwnerKind.BLOB if users or leased else OwnerKind.NOBODY, digest, users=users)

    def _of_driver(self, parts: tuple[str, ...]) -> Owner:
        """Tell whose a path below the driver's directory is: snapshots have numbers, also where they come and go."""
        names = parts[1:2] if parts and parts[0].startswith(".") else parts[:1]
        found = id_of(names[0]) if names else None
        if found is None:
            return Owner(OwnerKind.STORE, os.fspath(self._parts.path))
        with self._parts.database.read() as connection:
            row = snapshots.get(connection, found) if snapshots.is_named(connection, found) else None
        return Owner(OwnerKind.NOBODY, id=found) if row is None else self._snapshot(row)

    def _snapshot(self, row: Row) -> Owner:
        with self._parts.database.read() as connection:
            above = snapshots.descendant_names(connection, row.id)
            found = {name.removeprefix(PREFIX).partition("@")[0] for name in above if name.startswith(PREFIX)}
            owners = [clone.name for clone in clones.every(connection) if clone.name in found]
            return Owner(OwnerKind.SNAPSHOT, row.name, row.id, (*_images(connection, row.name), *owners))

    def _of_source(self, name: str) -> Row | None:
        """Return the snapshot that is kept in a device or a dataset of this name."""
        if "/" not in name or os.path.isdir(name):
            return None
        real = os.path.realpath(name) if name.startswith("/") else name
        for row, snapshot in self._every():
            source = self._parts.driver.mounts(snapshot)[-1].source
            if source == name or (source.startswith("/") and os.path.realpath(source) == real):
                return row
        return None

    def _every(self) -> Iterator[tuple[Row, Snapshot]]:
        with self._parts.database.read() as connection:
            rows = [(row, snapshots.snapshot(connection, row)) for row in snapshots.ready(connection)]
        for row, known in rows:
            yield row, Snapshot(known.id, Kind.ACTIVE, known.parents)


def _images(connection: sqlite3.Connection, name: str) -> tuple[str, ...]:
    """Return the images that need a blob or a layer of this name."""
    return tuple(image_name(connection, digest) for digest in images.needing(connection, name))


def _shown(place: Path) -> str | None:
    """Return what a mount or a loop device shows: a directory, a device, a dataset, or a file; None for others."""
    if place.is_block_device():
        return loop.backing_file(place)
    point = mountinfo.holding(place)
    if point is None:
        return None
    if point.type == "overlay":
        return point.upper or next(iter(point.lowers), None)
    return _behind(point) or (point.source if "/" in point.source else None)


def _behind(point: MountPoint) -> str | None:
    """Return the directory that a bind mount shows, as another mount of its file system shows it, too."""
    for other in mountinfo.mount_points():
        inside = os.path.relpath(point.root, other.root)
        if other.device == point.device and other.path != point.path and not inside.startswith(".."):
            found = os.path.normpath(other.path / inside)
            with suppress(OSError):
                if os.path.samefile(found, point.path):
                    return found
    return None


def _demand(path: str) -> None:
    try:
        os.lstat(path)
    except OSError as error:
        raise os_error(f"look at {path}", error) from error
