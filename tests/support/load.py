"""A load on a store that tells what it was told is done, and what must then hold whatever kills it."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import layerfs
from tests.support import invariants
from tests.support.images import BASE, EDIT, SHRINK, Layer


@dataclass
class Acknowledged:
    """What a worker said that it had done; ``doubtful`` are the names that it was about to change."""

    images: dict[str, str] = field(default_factory=dict[str, str])
    doubtful: set[str] = field(default_factory=set[str])
    snapshots: dict[str, str] = field(default_factory=dict[str, str])

    def read(self, text: str) -> None:
        for line in text.splitlines():
            match line.split():
                case ["image", name, digest]:
                    self.images[name] = digest
                    self.doubtful.discard(name)
                case ["beginning", name]:
                    self.doubtful.add(name)
                case ["snapshot", label, state]:
                    self.snapshots[label] = state
                case ["removed", name]:
                    self.images.pop(name, None)
                    self.doubtful.discard(name)
                case _:
                    continue  # the last line, cut by the kill


def work(path: Path, layouts: list[Path], seed: int, told: int) -> NoReturn:
    """Import, change, commit and remove for ever; tell each result when the call has returned."""
    chance = random.Random(seed)

    def tell(*words: str) -> None:
        os.write(told, (" ".join(words) + "\n").encode())

    tempfile.tempdir = str(layouts[0].parent)  # where a killed worker leaves the directories that it mounted at
    with layerfs.open(path) as store:
        while True:
            name = f"test:{chance.randrange(12)}"
            images = [image for image in store.images() if image.names]
            match chance.randrange(5):
                case 0:
                    tell("beginning", name)
                    (image,) = store.import_image(chance.choice(layouts), names=[name])
                    tell("image", name, image.digest)
                case 1 if images:
                    with store.clone(chance.choice(images).digest) as clone:
                        with clone.mounted() as root:
                            (root / "written").write_text(str(chance.random()))
                            (root / "etc/issue").unlink(missing_ok=True)
                        tell("beginning", name)
                        committed = clone.commit(name)
                    tell("image", name, committed.digest)
                case 2 if images:
                    clone = find_or_make(store, chance.choice(images).digest)
                    with clone.mounted() as root:
                        (root / "state").write_text(str(chance.random()))
                        state = (root / "state").read_text()
                    label = clone.snapshot()
                    tell("snapshot", label, state)
                case 3 if store.clones():
                    clone = store.get_clone("lasting")
                    clone.rollback(chance.choice([None, *clone.snapshots()]))
                case _ if images:
                    gone = chance.choice(images)
                    for name in gone.names:
                        tell("beginning", name)
                        try:
                            store.remove_image(name)
                        except layerfs.FailedPrecondition:
                            break  # a clone that an earlier kill left stands on it
                        tell("removed", name)
                case _:
                    continue


def find_or_make(store: layerfs.Store, image: str) -> layerfs.Clone:
    try:
        return store.get_clone("lasting")
    except layerfs.NotFound:
        return store.clone(image, "lasting")


def stacks() -> Iterator[list[Layer]]:
    yield [BASE]
    yield [BASE, EDIT]
    yield [BASE, EDIT, SHRINK]


def check_lasting(store: layerfs.Store, known: Acknowledged) -> None:
    """Check that the clone still has every snapshot, and that each holds what it held; sometimes start it anew."""
    if not store.clones():
        assert not known.snapshots
        return
    clone = store.get_clone("lasting")
    assert set(known.snapshots) <= set(clone.snapshots())
    for label, state in list(known.snapshots.items())[-3:]:
        clone.rollback(label)
        with clone.mounted() as root:
            assert (root / "state").read_text() == state
    if len(known.snapshots) > 20:
        clone.remove()
        known.snapshots.clear()
        invariants.check_store(store)
        assert store.snapshotter.infos(prefix="clone/") == []


def check(store: layerfs.Store, known: Acknowledged, trees: dict[str, str]) -> None:
    """Check that the store is sound and has all that was acknowledged; ``trees`` are those seen, by image."""
    invariants.unmount_all(store)
    for clone in store.clones():
        if clone.name != "lasting":
            clone.remove()
    invariants.check_store(store)
    check_lasting(store, known)
    for name, digest in known.images.items():
        if name not in known.doubtful:
            assert store.image(name).digest == digest
    for image in store.images():
        tree = invariants.image_tree(store, image.digest)
        assert trees.setdefault(image.digest, tree) == tree
