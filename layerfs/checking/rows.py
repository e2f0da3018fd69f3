"""Whether the database is sound, and says of images, clones and layers what their blobs and each other say."""

from __future__ import annotations

from collections.abc import Iterator

from layerfs.checking.problem import Problem, ProblemKind
from layerfs.checking.users import Users
from layerfs.clones import PREFIX, name_of
from layerfs.contract import Kind
from layerfs.errors import LayerfsError
from layerfs.image.blobs import BlobStore
from layerfs.image.config import ImageConfig
from layerfs.image.manifest import Manifest
from layerfs.layer.digest import Digest
from layerfs.metadata import clones, images, record, snapshots
from layerfs.metadata.images import LayerRow
from layerfs.parts import Parts

MEND = "`layerfs repair --force` puts back what is missing"
_REBUILD = "`layerfs repair --force` makes a new database of what is left"


class Rows:
    """The check of the database."""

    def __init__(self, parts: Parts, users: Users) -> None:
        self._parts = parts
        self._users = users

    def run(self, *, deep: bool) -> Iterator[Problem]:
        """Yield what is wrong; ``deep`` also reads every index of the database."""
        for message in self._parts.database.problems(deep=deep):
            yield Problem("", f"the database: {message}", _REBUILD, (), ProblemKind.DATABASE)
        for table, parent in self._parts.database.dangling():
            message = f"rows of the table {table} refer to rows of {parent} that are gone"
            yield Problem(table, message, MEND, (), ProblemKind.ROWS)
        yield from self._recorded()
        yield from self._clones()
        yield from self._images()

    def _recorded(self) -> Iterator[Problem]:
        """Hold the database against its record, which has a row as long as the database should."""
        with self._parts.database.write(durable=False) as connection:  # nobody is between the two meanwhile
            rows = record.read(self._parts.database.record)
            lost = record.missing(rows, connection) if rows is not None else []
        for table, row in lost:
            name = record.title(table, row)
            yield Problem(name, f"a row of the table {table} is gone", MEND, (), ProblemKind.ROWS)

    def _clones(self) -> Iterator[Problem]:
        with self._parts.database.read() as connection:
            rows = {PREFIX + row.name: row for row in clones.every(connection)}
            there = {row.name: row for row in snapshots.ready(connection)}
            busy = {row.name for row in snapshots.unfinished(connection)}
        for key, row in rows.items():
            if key not in there.keys() | busy:
                yield Problem(key, "the row of its snapshot is gone", MEND, (row.name,), ProblemKind.ROWS)
        for key, snapshot in there.items():
            if name_of(key) is not None and snapshot.kind is Kind.ACTIVE and key not in rows:
                yield Problem(key, "the row of the clone is gone", MEND, (), ProblemKind.ROWS)

    def _images(self) -> Iterator[Problem]:
        with self._parts.database.read() as connection:
            rows = [(row, images.layers(connection, row.digest)) for row in images.every(connection)]
        for row, layers in rows:
            expected = layers_of(self._parts.blobs, Digest(row.digest), row.media_type)
            if expected is not None and expected != layers:
                hurts = self._users.of_snapshot(row.digest)
                message = "the rows of its layers are gone or changed"
                yield Problem(row.digest, message, MEND, hurts, ProblemKind.ROWS)


def layers_of(blobs: BlobStore, digest: Digest, media_type: str | None = None) -> tuple[LayerRow, ...] | None:
    """Return the rows of an image's layers as its documents list them; None where these cannot be read."""
    try:
        manifest = Manifest.parse(blobs.read(digest), media_type)
        config = ImageConfig.parse(blobs.read(manifest.config))
        manifest.check_config(config)
    except LayerfsError:
        return None
    stacked = zip(manifest.layers, config.diff_ids, config.chain_ids, strict=True)
    return tuple(LayerRow(blob.digest, blob.size, diff_id, chain) for blob, diff_id, chain in stacked)
