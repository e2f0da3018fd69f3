"""The tables of images, their tags and their layers."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image: the digest, media type and size of its manifest, the digest and size of its configuration."""

    digest: str
    media_type: str
    size: int
    config: str
    config_size: int
    created: int


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of an image, where ``blob`` is the digest and ``size`` the bytes of its (compressed) blob."""

    blob: str
    size: int
    diff_id: str
    chain_id: str


_COLUMNS = "digest, media_type, size, config, config_size, created"


def put(connection: sqlite3.Connection, image: ImageRow, layers: Iterable[LayerRow], names: Iterable[str]) -> None:
    """Record an image, once, and give it its names; a name that another image had moves over."""
    values = (image.digest, image.media_type, image.size, image.config, image.config_size, image.created)
    connection.execute(f"INSERT OR IGNORE INTO images ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", values)  # noqa: S608  constant
    connection.executemany(
        "INSERT OR IGNORE INTO layers (image, position, blob, size, diff_id, chain_id) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (image.digest, position, layer.blob, layer.size, layer.diff_id, layer.chain_id)
            for position, layer in enumerate(layers)
        ],
    )
    for name in names:
        tag(connection, name, image.digest)


def set_layers(connection: sqlite3.Connection, digest: str, layers: Iterable[LayerRow]) -> None:
    """Write down anew which layers an image has, the lowest first."""
    connection.execute("DELETE FROM layers WHERE image = ?", (digest,))
    connection.executemany(
        "INSERT INTO layers (image, position, blob, size, diff_id, chain_id) VALUES (?, ?, ?, ?, ?, ?)",
        [(digest, place, layer.blob, layer.size, layer.diff_id, layer.chain_id) for place, layer in enumerate(layers)],
    )


def every(connection: sqlite3.Connection) -> list[ImageRow]:
    """Return all images, the oldest first."""
    query = f"SELECT {_COLUMNS} FROM images ORDER BY created, digest"  # noqa: S608  constant
    return [ImageRow(**row) for row in connection.execute(query)]


def find(connection: sqlite3.Connection, digest: str) -> ImageRow | None:
    """Return the image of a digest, or None."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM images WHERE digest = ?", (digest,)).fetchone()  # noqa: S608
    return None if row is None else ImageRow(**row)


def by_prefix(connection: sqlite3.Connection, prefix: str) -> list[str]:
    """Return the digests that start with ``prefix``, two at the most: enough to tell whether it is unique."""
    query = "SELECT digest FROM images WHERE substr(digest, 1, length(?1)) = ?1 LIMIT 2"
    return [row["digest"] for row in connection.execute(query, (prefix,))]


def tagged(connection: sqlite3.Connection, name: str) -> str | None:
    """Return the digest of the image that has a name, or None."""
    row = connection.execute("SELECT image FROM tags WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row["image"])


def tags(connection: sqlite3.Connection, digest: str) -> tuple[str, ...]:
    """Return the names of an image, sorted."""
    query = "SELECT name FROM tags WHERE image = ? ORDER BY name"
    return tuple(row["name"] for row in connection.execute(query, (digest,)))


def tag(connection: sqlite3.Connection, name: str, digest: str) -> None:
    """Give an image a name, taking it from another one that may have it."""
    connection.execute("INSERT OR REPLACE INTO tags (name, image) VALUES (?, ?)", (name, digest))


def untag(connection: sqlite3.Connection, name: str) -> None:
    """Take a name away."""
    connection.execute("DELETE FROM tags WHERE name = ?", (name,))


def delete(connection: sqlite3.Connection, digest: str) -> None:
    """Delete an image that has no name left, and its list of layers."""
    connection.execute("DELETE FROM images WHERE digest = ?", (digest,))


def layers(connection: sqlite3.Connection, digest: str) -> tuple[LayerRow, ...]:
    """Return the layers of an image, the lowest first."""
    query = "SELECT blob, size, diff_id, chain_id FROM layers WHERE image = ? ORDER BY position"
    return tuple(LayerRow(**row) for row in connection.execute(query, (digest,)))


def needing(connection: sqlite3.Connection, name: str) -> list[str]:
    """Return the images, by digest and the oldest first, that have this blob or a layer of this ChainID."""
    query = """
        SELECT digest FROM images
        WHERE ?1 IN (digest, config)
           OR digest IN (SELECT image FROM layers WHERE chain_id = ?1)
           OR digest IN (SELECT image FROM layers WHERE blob = ?1)
        ORDER BY created, digest
    """
    return [row[0] for row in connection.execute(query, (name,))]


def chain_ids(connection: sqlite3.Connection) -> set[str]:
    """Return the ChainID of every layer that an image names."""
    return {row[0] for row in connection.execute("SELECT DISTINCT chain_id FROM layers")}


def blobs(connection: sqlite3.Connection) -> set[str]:
    """Return the digest of every blob that an image names: manifests, configurations, layers."""
    query = "SELECT digest FROM images UNION SELECT config FROM images UNION SELECT blob FROM layers"
    return {row[0] for row in connection.execute(query)}


def blob_sizes(connection: sqlite3.Connection) -> dict[str, int]:
    """Return the digests of the blobs that images name, with their bytes."""
    query = """
        SELECT digest, size FROM images UNION SELECT config, config_size FROM images UNION SELECT blob, size FROM layers
    """
    return {row[0]: row[1] for row in connection.execute(query)}
