"""What a store takes, and who takes it: bytes and inodes of images, layers and clones, alone and together with others.

The *parts* of a store add up to what it takes: every snapshot, blob and file of its own is in one of them. Beside that
a driver has directories of its own, some inodes a snapshot, which no part counts.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from operator import add
from pathlib import Path

from layerfs.checking.places import OWN
from layerfs.checking.users import image_name
from layerfs.clones import PREFIX
from layerfs.contract import Kind, Usage
from layerfs.errors import Corrupt, NotFound
from layerfs.layer.digest import Digest
from layerfs.metadata import clones, images, snapshots
from layerfs.metadata.images import ImageRow, LayerRow
from layerfs.metadata.snapshots import Row
from layerfs.parts import Parts
from layerfs.reclaim import ItemKind
from layerfs.tree import usage
from layerfs.unpacking import LAYER_LABEL

_BLOCK = 512
_COUNTED = ("blobs", "volume")
"""What starts so in a store's directory holds the other parts."""


class Part(StrEnum):
    """What a store is made of."""

    LAYERS = "layers"
    """Layers of images, unpacked."""
    BLOBS = "blobs"
    """Manifests, configurations and layers as they came."""
    CLONES = "clones"
    """What clones hold beyond their images, and their snapshots."""
    SNAPSHOTS = "snapshots"
    """All others: of containerd, and what is under way or left over."""
    METADATA = "metadata"
    """The database, the seals, the space in reserve, and what a repair put aside."""


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """What one image, layer or clone takes: alone, so that its removal frees it, and together with others.

    A layer is its snapshot and its blob; ``users`` are the images that have it.
    """

    kind: ItemKind
    name: str
    exclusive: Usage
    shared: Usage
    users: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """What a store takes: its parts, which add up, and ``items``, of which some are counted in several."""

    parts: Mapping[Part, Usage]
    items: Sequence[DiskUsage]

    @property
    def total(self) -> Usage:
        """Return what all of it takes."""
        return reduce(add, self.parts.values(), Usage())

    def of(self, *kinds: ItemKind) -> tuple[DiskUsage, ...]:
        """Return the items of these kinds."""
        return tuple(item for item in self.items if item.kind in kinds)


@dataclass(frozen=True, slots=True)
class _Book:
    """What the database says: snapshots by name, their parents' names, which are layers, images and their layers."""

    rows: Mapping[str, Row]
    parents: Mapping[str, str]
    unpacked: frozenset[str]
    images: Sequence[tuple[str, ImageRow, Sequence[LayerRow]]]
    clones: Sequence[str]


class Accounts:
    """Measure a store. Committed snapshots were measured once; what vanishes meanwhile counts as nothing."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._known: dict[str, Usage] = {}

    def run(self) -> StoreUsage:
        """Measure everything."""
        book = self._read()
        blobs = {str(digest): self._blob(digest) for digest in self._parts.blobs.digests()}
        self._known = {**blobs, **{name: self._snapshot(name, row) for name, row in book.rows.items()}}
        items = (*self._images(book), *self._layers(book), *self._clones(book))
        parts = dict.fromkeys(Part, Usage())
        for name in book.rows:
            parts[_part(name, book)] += self._known[name]
        parts[Part.BLOBS] = reduce(add, blobs.values(), Usage())
        parts[Part.METADATA] = self._metadata()
        return StoreUsage(parts, items)

    def _read(self) -> _Book:
        with self._parts.database.read() as connection:
            rows = {row.name: row for row in snapshots.ready(connection)}
            names = {row.id: row.name for row in rows.values()}
            labelled = {names[found] for found in snapshots.with_label(connection, LAYER_LABEL) if found in names}
            found = [
                (image_name(connection, row.digest), row, images.layers(connection, row.digest))
                for row in images.every(connection)
            ]
            keys = [PREFIX + row.name for row in clones.every(connection)]
        parents = {row.name: names.get(row.parent, "") if row.parent else "" for row in rows.values()}
        return _Book(rows, parents, frozenset(labelled), found, [key for key in keys if key in rows])

    # Measuring

    def _snapshot(self, name: str, row: Row) -> Usage:
        if row.usage is not None:
            return row.usage
        if row.kind is Kind.VIEW:
            return Usage()
        with suppress(NotFound, Corrupt):  # removed meanwhile, or damaged: `layerfs check` tells
            return self._parts.snapshotter.usage(name)
        return Usage()

    def _blob(self, digest: Digest) -> Usage:
        return _of_file(self._parts.blobs.path(digest))

    def _metadata(self) -> Usage:
        found = Usage()
        for entry in os.scandir(self._parts.path):
            if entry.name.startswith(OWN) and not entry.name.startswith(_COUNTED):
                with suppress(NotFound):
                    found += usage(Path(entry.path)) if entry.is_dir() else _of_file(Path(entry.path))
        return found

    # Who takes it

    def _images(self, book: _Book) -> Iterator[DiskUsage]:
        pieces = {row.digest: _pieces(row, layers) for _, row, layers in book.images}
        sharers = Counter(piece for each in pieces.values() for piece in each)
        for name, row, _ in book.images:
            yield DiskUsage(ItemKind.IMAGE, name, *self._split(pieces[row.digest], sharers))

    def _layers(self, book: _Book) -> Iterator[DiskUsage]:
        users: dict[str, dict[str, None]] = {}
        owners: dict[str, str] = {}
        for name, _, layers in book.images:
            for layer in layers:
                users.setdefault(layer.chain_id, {})[name] = None
                owners.setdefault(layer.blob, layer.chain_id)  # a layer that comes twice has its blob once
        blobs = {chain: blob for blob, chain in owners.items()}
        for chain, names in users.items():
            pieces = [chain, blobs[chain]] if chain in blobs else [chain]
            sharers = Counter(dict.fromkeys(pieces, len(names)))
            yield DiskUsage(ItemKind.LAYER, chain, *self._split(pieces, sharers), tuple(names))

    def _clones(self, book: _Book) -> Iterator[DiskUsage]:
        pieces = {key: (key, *_below(key, book.parents)) for key in book.clones}
        sharers = Counter(piece for each in pieces.values() for piece in each)
        for key, each in pieces.items():
            yield DiskUsage(ItemKind.CLONE, key.removeprefix(PREFIX), *self._split(each, sharers))

    def _split(self, pieces: Iterable[str], sharers: Mapping[str, int]) -> tuple[Usage, Usage]:
        """Add up what is one's own, and what is others' too."""
        exclusive, shared = Usage(), Usage()
        for piece in pieces:
            if sharers[piece] == 1:
                exclusive += self._known.get(piece, Usage())
            else:
                shared += self._known.get(piece, Usage())
        return exclusive, shared


def _part(name: str, book: _Book) -> Part:
    if name in book.unpacked:
        return Part.LAYERS
    return Part.CLONES if name.startswith(PREFIX) else Part.SNAPSHOTS


def _pieces(row: ImageRow, layers: Iterable[LayerRow]) -> tuple[str, ...]:
    """Return the snapshots and blobs of an image, each once."""
    parts = (part for layer in layers for part in (layer.chain_id, layer.blob))
    return tuple(dict.fromkeys((row.digest, row.config, *parts)))


def _below(key: str, parents: Mapping[str, str]) -> Iterator[str]:
    """Return the clones' snapshots below one."""
    name = parents[key]
    while name.startswith(PREFIX):
        yield name
        name = parents[name]


def _of_file(path: Path) -> Usage:
    with suppress(FileNotFoundError):
        return Usage(os.stat(path).st_blocks * _BLOCK, 1)
    return Usage()
