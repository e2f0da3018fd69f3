"""What a migration carries: images with their layers, clones, and snapshots; those that others stand on first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from layerfs.clones import PREFIX, Clone, Clones
from layerfs.contract import NO_QUOTA, Quota
from layerfs.errors import NotFound
from layerfs.images import Image, Images
from layerfs.metadata import clones as clone_rows
from layerfs.metadata import quotas, snapshots
from layerfs.metadata.clones import CloneRow
from layerfs.metadata.snapshots import Row
from layerfs.parts import MIGRATING, TEMPORARY, Parts
from layerfs.unpacking import LAYER_LABEL, UNPACKING


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two stores: what it is made of, its images and its clones."""

    parts: Parts
    images: Images
    clones: Clones


@dataclass(frozen=True, slots=True)
class Carried:
    """A snapshot to be carried: its row, its parent's name or "", its labels, whose clone it is, and its quota."""

    row: Row
    parent: str
    labels: Mapping[str, str]
    clone: CloneRow | None
    quota: Quota

    @property
    def name(self) -> str:
        """Return its key or name, which it keeps."""
        return self.row.name

    @property
    def shown(self) -> str:
        """Return what people call it."""
        kind = "layer" if LAYER_LABEL in self.labels else "snapshot"
        return f"the clone {self.clone.name!r}" if self.clone else f"the {kind} {self.name!r}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be carried; ``snapshots`` stand after their parents, ``layers`` are those of the images, by ChainID.

    ``clones`` and ``named`` are the clones and the images that were asked for; other images are what these need.
    """

    images: Sequence[Image]
    layers: Mapping[str, Carried]
    snapshots: Sequence[Carried]
    clones: Sequence[Clone]
    named: Sequence[Image]


def make_plan(side: Side, names: Sequence[str] = ()) -> Plan:
    """Plan to carry everything, or the images and clones of these names with what they stand on; raise `NotFound`."""
    named, asked = _asked(side, names) if names else (side.images.every(), side.clones.every())
    images: dict[str, Image] = {image.digest: image for image in named}
    images.update({clone.image: side.images.get(clone.image) for clone in asked})
    layers = {str(chain) for image in images.values() for chain in image.config.chain_ids}
    keys = {clone.key for clone in asked}
    with side.parts.database.read() as connection:
        rows = {row.name: row for row in snapshots.ready(connection)}
        by_id = {row.id: row.name for row in rows.values()}
        parents = {row.name: by_id[row.parent] if row.parent else "" for row in rows.values()}
        owners = {PREFIX + row.name: row for row in clone_rows.every(connection)}
        labels = {name: snapshots.labels(connection, row.id) for name, row in rows.items()}
        limits = quotas.every(connection)
        every = {
            name: Carried(row, parents[name], labels[name], owners.get(name), limits.get(row.id, NO_QUOTA))
            for name, row in rows.items()
        }
    wanted = [name for name in rows if _is_wanted(name, labels[name], keys if names else None)]
    ordered = _in_order(wanted, parents, layers & rows.keys())
    return Plan(
        tuple(images.values()),
        {chain: every[chain] for chain in layers & rows.keys()},
        [every[name] for name in ordered],
        asked,
        named,
    )


def _asked(side: Side, names: Iterable[str]) -> tuple[tuple[Image, ...], tuple[Clone, ...]]:
    """Find the images and the clones of these names; a clone's goes first."""
    images: dict[str, Image] = {}
    clones: dict[str, Clone] = {}
    for name in names:
        try:
            clone = side.clones.get(name)
        except NotFound:
            image = side.images.get(name)
            images[image.digest] = image
        else:
            clones[clone.name] = clone
    return tuple(images.values()), tuple(clones.values())


def _is_wanted(name: str, labels: Collection[str], clones: Collection[str] | None) -> bool:
    """Tell whether a snapshot is to be carried for its own sake: those of these clones, None stands for all."""
    if clones is not None:
        return name.partition("@")[0] in clones
    return LAYER_LABEL not in labels and not name.startswith((TEMPORARY, UNPACKING, MIGRATING)) and "\x00" not in name


def _in_order(wanted: Iterable[str], parents: Mapping[str, str], layers: Collection[str]) -> list[str]:
    """Return these and all that they stand on but layers, parents first, children of one parent together."""
    depths: dict[str, int] = {"": 0, **dict.fromkeys(layers, 0)}
    for each in wanted:
        way, name = list[str](), each
        while name not in depths:
            way.append(name)
            name = parents[name]
        for above in reversed(way):
            depths[above] = depths[parents[above]] + 1
    return sorted(depths.keys() - {"", *layers}, key=lambda name: (depths[name], parents[name], name))
