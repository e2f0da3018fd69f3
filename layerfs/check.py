"""What is wrong with a store, as far as it shows without reading the contents of layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from layerfs.clones import Clone, Clones
from layerfs.images import Images
from layerfs.layer.digest import Digest
from layerfs.metadata import snapshots
from layerfs.parts import Parts


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is gone or broken: a snapshot or blob by its name, what it is, what to do, and whom it hurts.

    ``hurts`` names the images and clones that cannot be used, or not as they were. The name is "" for all of the store.
    """

    name: str
    message: str
    hint: str
    hurts: tuple[str, ...]


class Check:
    """Look for problems of a store. Nothing is changed."""

    def __init__(self, parts: Parts, images: Images, clones: Clones) -> None:
        self._parts = parts
        self._images = images
        self._clones = clones

    def run(self) -> tuple[Problem, ...]:
        """Return what is wrong with snapshots and blobs."""
        return (*self._snapshots(), *self._blobs())

    def _snapshots(self) -> Iterator[Problem]:
        found = self._parts.snapshotter.check()
        users = self._users() if found else {}
        for name, damage in found:
            yield Problem(name, damage.message, damage.hint, tuple(users.get(name, ())))

    def _blobs(self) -> Iterator[Problem]:
        held = set(self._parts.blobs.digests())
        users: dict[Digest, list[str]] = {}
        for image in self._images.every():
            for digest in {image.digest, *(blob.digest for blob in image.manifest.blobs)} - held:
                users.setdefault(digest, []).append(image.name)
        for digest, names in users.items():
            yield Problem(digest, "the blob is gone", "import the image again", tuple(names))

    def _users(self) -> dict[str, list[str]]:
        """Return the images and clones that stand on each snapshot, by its name."""
        users: dict[str, list[str]] = {}
        for image in self._images.every():
            for chain in image.config.chain_ids:
                users.setdefault(chain, []).append(image.name)
        tops = {clone.name: (clone.key, *_marks(clone)) for clone in self._clones.every()}
        with self._parts.database.read() as connection:
            for clone, keys in tops.items():
                for name in {below for key in keys for below in (key, *snapshots.ancestor_names(connection, key))}:
                    users.setdefault(name, []).append(clone)
        return users


def _marks(clone: Clone) -> Iterator[str]:
    return (f"{clone.key}@{label}" for label in clone.snapshots())
