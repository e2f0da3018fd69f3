"""Make the database of a store anew from what is left: its record, what can be read of the old one, the blobs.

What nobody can name any more is not deleted: it is put aside in ``lost+found``, where the old database goes as well.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from layerfs import drivers, locks
from layerfs.checking.aside import aside
from layerfs.checking.rows import layers_of
from layerfs.contract import SnapshotId, id_of, ids_of
from layerfs.errors import Corrupt, LayerfsError, NotFound
from layerfs.image.blobs import BlobStore
from layerfs.image.documents import MAX_DOCUMENT
from layerfs.image.manifest import Manifest
from layerfs.image.media_types import OCI_MANIFEST
from layerfs.image.reference import normalize
from layerfs.kernel.clock import boot_id
from layerfs.layer.digest import Digest
from layerfs.metadata import clones, database, images, record, settings, snapshots
from layerfs.metadata.database import Database
from layerfs.metadata.images import ImageRow
from layerfs.metadata.record import Rows
from layerfs.tree import LOST

_BLOBS = "blobs"
_FILES = (f"{database.NAME}-wal", f"{database.NAME}-shm", database.NAME)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of it: how many images and clones there are again, and what was put aside, under its present path."""

    images: int
    clones: int
    aside: tuple[Path, ...]


def reason(place: Path) -> str:
    """Return what is wrong with the database of a store, so that it has to be made anew; "" if nothing is."""
    path = place / database.NAME
    if not path.exists():
        there = (place / _BLOBS).is_dir() or (place / record.NAME).exists()
        return "the database is gone" if there else ""
    try:
        with closing(Database(path)) as found:
            wrong = found.problems(deep=False)
            with found.read() as connection:
                is_empty = settings.get(connection, "driver") is None
    except Corrupt as error:
        return error.message
    return wrong[0] if wrong else ("the database is empty" if is_empty else "")


def rebuild(place: Path, *, clock: Callable[[], int] = time.time_ns) -> Rebuilt:
    """Make the database anew; nobody else may have the store open, which is seen as far as they work with it.

    Raise `Busy` for a store at work, and `NotFound` where nothing tells what driver it had.
    """
    lock = place / database.LOCK
    whole, opening = (locks.STORE, locks.named("open"))
    with (
        locks.locked(lock, whole, exclusive=True, what="the store", timeout=0),
        locks.locked(lock, opening, exclusive=True, what=f"the opening of {place}"),
    ):
        rows = record.read(place / record.NAME) or record.nothing()
        record.salvage(place / database.NAME, rows)
        driver = _driver(place, rows)
        moved = [_put_aside(place, place / name) for name in _FILES if (place / name).exists()]
        with closing(Database(place / database.NAME)) as made:
            _fill(made, BlobStore(place / _BLOBS), rows, driver, clock)
            moved += _strangers(place, driver, made)
            made.rewrite_record()
            with made.read() as connection:
                return Rebuilt(len(images.every(connection)), len(clones.every(connection)), tuple(moved))


def _driver(place: Path, rows: Rows) -> str:
    """Return the name of the driver: as the record has it, else that of the one that has a directory."""
    known = rows["settings"].get(("driver",))
    if known is not None:
        return str(known["value"])
    found = [name for name in drivers.names() if (place / name).is_dir()]
    if len(found) != 1:
        raise NotFound(f"nothing in {place} tells which driver it had", hint="is it the right store?")
    return found[0]


def _fill(made: Database, blobs: BlobStore, rows: Rows, driver: str, clock: Callable[[], int]) -> None:
    with made.write() as connection:
        stuck = record.restore(connection, record.every(rows))
        settings.put(connection, "driver", driver)
        if settings.get(connection, "created") is None:
            settings.put(connection, "created", str(clock()))
        # Else the next to open the store would take what nobody names for what a power cut left, and delete it.
        settings.put(connection, "boot", boot_id())
        for row in images.every(connection):
            layers = layers_of(blobs, Digest(row.digest), row.media_type)
            if layers is not None:
                images.set_layers(connection, row.digest, layers)
        for digest in blobs.digests():
            if images.find(connection, digest) is None:
                _recover_image(connection, blobs, digest, clock())
        record.restore(connection, stuck)  # names and clones of images that only the blobs know


def _recover_image(connection: sqlite3.Connection, blobs: BlobStore, digest: Digest, now: int) -> None:
    """Write the image down that a blob is, under a name that is made up; do nothing where it is none."""
    manifest = _manifest(blobs, digest)
    layers = layers_of(blobs, digest, manifest.media_type) if manifest else None
    if manifest is None or layers is None:
        return
    config = manifest.config
    row = ImageRow(digest, manifest.media_type, len(manifest.raw), config.digest, config.size, now)
    images.put(connection, row, layers, [normalize(f"recovered:{digest.hex[:12]}")])


def _manifest(blobs: BlobStore, digest: Digest) -> Manifest | None:
    """Return the manifest that a blob is; None where it is something else, or damaged."""
    try:
        with blobs.open(digest) as stream:
            if stream.read(1) != b"{" or blobs.size(digest) > MAX_DOCUMENT:
                return None
        raw = blobs.read(digest)
    except LayerfsError:
        return None
    for media_type in (None, OCI_MANIFEST):
        try:
            return Manifest.parse(raw, media_type)
        except LayerfsError:
            continue
    return None


def _strangers(place: Path, driver: str, made: Database) -> list[Path]:
    """Put the directories of snapshots aside that nobody names, and never give away their numbers again."""
    root = place / driver
    held = ids_of(os.listdir(root)) if root.is_dir() else set[SnapshotId]()
    with made.write() as connection:
        known = snapshots.ids(connection)
        snapshots.pass_over(connection, max((*held, *known), default=SnapshotId(0)))
    return [_put_aside(place, root / str(one)) for one in sorted(held - known)]


def _put_aside(place: Path, path: Path) -> Path:
    lost = place / LOST
    lost.mkdir(mode=0o700, exist_ok=True)
    return aside(path, lost, path.name if id_of(path.name) is None else f"{path.parent.name}-{path.name}")
