"""Who is hurt by damage: the images and clones that stand on a snapshot or need a blob, as the database has it."""

from __future__ import annotations

import sqlite3
from functools import cached_property

from layerfs.clones import PREFIX
from layerfs.image.reference import familiar
from layerfs.metadata import clones, images, snapshots
from layerfs.metadata.database import Database


class Users:
    """The users of snapshots and blobs, looked up when they are first asked for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of_snapshot(self, name: str) -> tuple[str, ...]:
        """Return the images and clones that stand on a snapshot."""
        return self._found.get(name, ())

    def of_blob(self, digest: str) -> tuple[str, ...]:
        """Return the images that need a blob."""
        return self._found.get(digest, ())

    @cached_property
    def _found(self) -> dict[str, tuple[str, ...]]:
        users: dict[str, dict[str, None]] = {}
        with self._database.read() as connection:
            for row in images.every(connection):
                name = image_name(connection, row.digest)
                layers = images.layers(connection, row.digest)
                for used in (
                    row.digest,
                    row.config,
                    *(part for layer in layers for part in (layer.blob, layer.chain_id)),
                ):
                    users.setdefault(used, {})[name] = None
            for clone in clones.every(connection):
                for key in (PREFIX + clone.name, *_marks(connection, clone.name)):
                    for used in (key, *snapshots.ancestor_names(connection, key)):
                        users.setdefault(used, {})[clone.name] = None
        return {used: tuple(names) for used, names in users.items()}


def image_name(connection: sqlite3.Connection, digest: str) -> str:
    """Return what people call an image: its first name, or the start of its digest."""
    names = sorted(map(familiar, images.tags(connection, digest)))
    return names[0] if names else digest.removeprefix("sha256:")[:12]


def _marks(connection: sqlite3.Connection, name: str) -> list[str]:
    return snapshots.names(connection, f"{PREFIX}{name}@")
