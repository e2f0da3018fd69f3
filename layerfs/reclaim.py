"""What nobody needs any more of a store."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from layerfs.clones import PREFIX, Clones, remove_unused
from layerfs.contract import Info
from layerfs.errors import Busy, Corrupt, LayerfsError, NotFound
from layerfs.images import Image, Images
from layerfs.layer.digest import Digest
from layerfs.leases import Held
from layerfs.metadata import clones, images
from layerfs.parts import MIGRATING, Parts
from layerfs.unpacking import LAYER_LABEL, UNPACKING

_log = logging.getLogger(__name__)


class ItemKind(StrEnum):
    """What can be pruned, or takes space."""

    IMAGE = "image"
    CLONE = "clone"
    LAYER = "layer"
    SNAPSHOT = "snapshot"
    BLOB = "blob"
    LEASE = "lease"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that nobody needs, and the bytes that its removal frees."""

    kind: ItemKind
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What `Reclaim.prune` would remove."""

    items: tuple[Item, ...]

    @property
    def size(self) -> int:
        """Return the bytes that would be free."""
        return sum(item.size for item in self.items)


class Reclaim:
    """Prune a store."""

    def __init__(self, parts: Parts, images: Images, clones: Clones) -> None:
        self._parts = parts
        self._images = images
        self._clones = clones

    def plan(self) -> PrunePlan:
        """Return what nobody needs: images without a name and a clone, layers and blobs of no image, leftovers.

        Nothing is changed. What a lease names is needed until the lease is over.
        """
        return self._plan(self._unnamed_images())

    def prune(self, plan: PrunePlan) -> PrunePlan:
        """Remove what a plan names and is still not needed, wait for those who work with the store, and return it.

        Bytes that no row names, such as a crash leaves, are deleted too, and leases that are over.
        """
        wanted = {(item.kind, item.name) for item in plan.items}
        with self._parts.alone(wait=True):
            gone = [Item(ItemKind.LEASE, lease, 0) for lease in self._parts.leases.drop_expired()]
            gone += self._remove_images(name for kind, name in wanted if kind is ItemKind.IMAGE)
            rest = [item for item in self._plan(()).items if (item.kind, item.name) in wanted]
            self._remove(
                [item.name for item in rest if item.kind in {ItemKind.LAYER, ItemKind.SNAPSHOT}],
                [Digest(item.name) for item in rest if item.kind is ItemKind.BLOB],
            )
            return PrunePlan((*gone, *rest))

    def collect(self) -> None:
        """Remove layers and blobs of no image, unless somebody works with the store just now: `prune` gets them."""
        with suppress(Busy), self._parts.alone(wait=False):
            self._parts.leases.drop_expired()
            unneeded, blobs = self._unneeded(self._images.every())
            self._remove([info.name for info in unneeded], blobs)

    def collect_after_error(self) -> None:
        """Do so without hiding the error; what cannot be removed now, the next `prune` gets."""
        try:
            self.collect()
        except LayerfsError as error:
            _log.warning("left for a prune: %s", error)

    def _plan(self, doomed: Collection[Image]) -> PrunePlan:
        gone = {image.digest for image in doomed}
        unneeded, blobs = self._unneeded(image for image in self._images.every() if image.digest not in gone)
        return PrunePlan(
            (
                *(Item(ItemKind.LEASE, lease, 0) for lease in self._parts.leases.expired()),
                *(Item(ItemKind.IMAGE, image.digest, 0) for image in doomed),
                *map(self._snapshot_item, unneeded),
                *map(self._blob_item, blobs),
            )
        )

    def _unneeded(self, kept: Iterable[Image]) -> tuple[list[Info], list[Digest]]:
        """Return the snapshots and the blobs that nobody needs where these images stay; nothing is measured for it."""
        held = self._held()
        layers, blobs = set(held.snapshots), set(held.blobs)
        for image in kept:
            layers.update(map(str, image.config.chain_ids))
            blobs.update(_blobs(image))
        return self._removable(layers), sorted(set(self._parts.blobs.digests()) - blobs)

    def _held(self) -> Held:
        with self._parts.database.read() as connection:
            return self._parts.leases.held(connection)

    def _remove_images(self, digests: Iterable[str]) -> Iterator[Item]:
        """Delete the rows of images that are still nobody's: a name or a clone may have come meanwhile."""
        with self._parts.database.write(frees=True) as connection:
            held = self._parts.leases.held(connection).images
            for digest in digests:
                used = images.tags(connection, digest) or clones.of_image(connection, digest) or digest in held
                if not used and images.find(connection, digest):
                    images.delete(connection, digest)
                    yield Item(ItemKind.IMAGE, digest, 0)

    def _remove(self, names: Iterable[str], blobs: Iterable[Digest]) -> None:
        """Remove snapshots and blobs."""
        self._parts.database.settle()  # an image whose recording failed is not there for good
        # Blobs before snapshots: on a full disk their space is what the database needs to go on.
        for blob in blobs:
            self._parts.blobs.remove(blob)
        self._parts.blobs.cleanup()
        remove_unused(self._parts, names)
        self._parts.snapshotter.cleanup()

    def _unnamed_images(self) -> list[Image]:
        with self._parts.database.read() as connection:
            used = {row.image for row in clones.every(connection)} | self._parts.leases.held(connection).images
        return [image for image in self._images.every() if not image.names and image.digest not in used]

    def _removable(self, needed: set[str]) -> list[Info]:
        """Return the snapshots that are nobody's, the uppermost first; ``needed`` are those of images and leases.

        A layer that no image names still goes only when nothing stands on it, and so on downwards.
        """
        infos = self._parts.snapshotter.infos()
        with self._parts.database.read() as connection:
            owned = {PREFIX + row.name for row in clones.every(connection)}
        children = Counter(info.parent for info in infos)
        by_name = {info.name: info for info in infos}
        waiting = [info for info in infos if not children[info.name] and self._is_unneeded(info, needed, owned)]
        removable: list[Info] = []
        while waiting:
            info = waiting.pop()
            removable.append(info)
            children[info.parent] -= 1
            parent = by_name.get(info.parent)
            if parent and not children[info.parent] and self._is_unneeded(parent, needed, owned):
                waiting.append(parent)
        return removable

    def _is_unneeded(self, info: Info, needed: set[str], owned: set[str]) -> bool:
        if info.name in needed:
            return False
        if LAYER_LABEL in info.labels:
            return True
        if info.name.startswith(PREFIX):
            return info.name.partition("@")[0] not in owned
        if info.name.startswith((UNPACKING, MIGRATING)):
            return True  # only asked by those who hold the store alone, so nobody is unpacking
        return self._parts.is_left_over(info.name)

    def _snapshot_item(self, info: Info) -> Item:
        kind = ItemKind.LAYER if LAYER_LABEL in info.labels else ItemKind.SNAPSHOT
        try:
            size = self._parts.snapshotter.usage(info.name).size
        except (NotFound, Corrupt):  # what is damaged can be removed all the same
            size = 0
        return Item(kind, info.name, size)

    def _blob_item(self, digest: Digest) -> Item:
        size = 0
        with suppress(NotFound):  # somebody else removed it meanwhile
            size = self._parts.blobs.size(digest)
        return Item(ItemKind.BLOB, digest, size)


def _blobs(image: Image) -> tuple[Digest, ...]:
    manifest = image.manifest
    return (manifest.digest, manifest.config.digest, *(layer.digest for layer in manifest.layers))
