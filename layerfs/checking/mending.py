"""Put rows of the database back that other rows and the blobs tell of."""

from __future__ import annotations

from functools import partial

from layerfs.checking.problem import Problem
from layerfs.checking.rows import layers_of
from layerfs.clones import name_of
from layerfs.errors import Corrupt, NotFound
from layerfs.layer.digest import Digest
from layerfs.metadata import clones, images, record, snapshots
from layerfs.metadata.clones import CloneRow
from layerfs.parts import Parts


def restore_rows(parts: Parts) -> None:
    """Put back all rows that only the record has."""
    with parts.database.write() as connection:
        rows = record.read(parts.database.record)
        record.restore(connection, record.missing(rows, connection) if rows is not None else [])
        record.drop_dangling(connection)


def mend_rows(parts: Parts, problem: Problem) -> None:
    """Put back what a problem of `layerfs.checking.rows` misses and the record does not have.

    Raise `NotFound` where nothing tells what it was.
    """
    clone = name_of(problem.name)
    if clone is not None:
        _mend_clone(parts, problem.name, clone)
    elif problem.name.startswith("sha256:"):
        _mend_layers(parts, Digest(problem.name))


def _mend_clone(parts: Parts, key: str, name: str) -> None:
    """Make the row of a clone that has its snapshot: its image is the one whose layers it stands on."""
    with parts.database.write() as connection:
        row = snapshots.find(connection, key)
        if any(clone.name == name for clone in clones.every(connection)) == (row is not None):
            return  # both are there, or neither
        if row is None:
            raise NotFound(f"the snapshot {key!r} is gone", hint="remove the clone: layerfs rm")
        below = set(snapshots.ancestor_names(connection, key))
        tops = {
            layers[-1].chain_id: (len(layers), image.digest)
            for image in images.every(connection)
            if (layers := images.layers(connection, image.digest))
        }
        standing = [tops[name] for name in below if name in tops]
        if not standing:
            raise NotFound(
                f"no image has the layers that {key!r} stands on", hint="import its image again, then repair again"
            )
        clones.insert(connection, CloneRow(name, max(standing)[1], row.created))


def _mend_layers(parts: Parts, digest: Digest) -> None:
    """Write down again which layers an image has, as its manifest lists them."""
    with parts.database.write() as connection:
        row = images.find(connection, digest)
        if row is None:
            return  # it is the name of a layer
        layers = layers_of(parts.blobs, digest, row.media_type)
        if layers is None:
            raise Corrupt(
                f"the manifest or the configuration of {digest} cannot be read",
                hint="`layerfs repair --force --from SOURCE` brings it again from what was imported",
            )
        images.set_layers(connection, digest, layers)


def forget_snapshot(parts: Parts, name: str) -> None:
    """Remove a snapshot of which nothing is there, and its clone."""
    clone = name_of(name)
    parts.snapshotter.remove(name, within=None if clone is None else partial(clones.delete, name=clone))
