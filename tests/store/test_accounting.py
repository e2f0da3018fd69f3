"""What a store takes: its parts add up to what is on the disk, and each image, layer and clone gets its share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import layerfs
from layerfs import Store, tree
from layerfs.accounting import Part
from layerfs.reclaim import ItemKind
from tests.support.images import BASE, EDIT, SHRINK, write_layout


@pytest.fixture
def store(fresh_dir: Path) -> Iterator[Store]:
    """Give a store of whole trees, of which every byte can be counted by a walk."""
    with layerfs.open(fresh_dir / "store", driver="copy") as store:
        yield store


def stock(store: Store, path: Path) -> None:
    """Give it two images that share a layer, and clones that share snapshots."""
    store.import_image(write_layout(path / "one", [BASE, EDIT, SHRINK], name="test:1"))
    store.import_image(write_layout(path / "two", [BASE], name="test:2"))
    store.clone("test:1", "web").snapshot("first")
    store.get_clone("web").fork("fork")
    store.get_clone("web").snapshot("second")


def test_parts_add_up_to_what_is_on_the_disk(store: Store, tmp_path: Path) -> None:
    stock(store, tmp_path)
    store.snapshotter.prepare("plain", "")
    taken = store.du()
    walked = tree.usage(store.path / "blobs/sha256")
    assert taken.parts[Part.BLOBS].inodes == walked.inodes - 1
    assert taken.parts[Part.BLOBS].size <= walked.size
    ids = [entry for entry in (store.path / "copy").iterdir() if entry.name.isdecimal()]
    walked = sum((tree.usage(one) for one in ids), layerfs.Usage())
    snapshots = (Part.LAYERS, Part.CLONES, Part.SNAPSHOTS)
    assert sum((taken.parts[part] for part in snapshots), layerfs.Usage()) == walked
    assert taken.parts[Part.SNAPSHOTS].inodes == 1
    assert taken.parts[Part.METADATA].size >= (store.path / "meta.db").stat().st_size
    assert taken.total.size == sum(part.size for part in taken.parts.values())


def test_who_shares_what(store: Store, tmp_path: Path) -> None:
    stock(store, tmp_path)
    taken = store.du()
    layers = {item.name: item for item in taken.of(ItemKind.LAYER)}
    base, edit, _ = store.image("test:1").config.chain_ids
    assert layers[base].users == ("test:1", "test:2")
    assert layers[base].exclusive == layerfs.Usage()
    assert layers[base].shared.inodes > layers[edit].shared.inodes == 0
    assert layers[edit].exclusive.inodes == store.snapshotter.usage(edit).inodes + 1
    images = {item.name: item for item in taken.of(ItemKind.IMAGE)}
    assert images["test:2"].shared == layers[base].shared
    assert images["test:2"].exclusive.inodes == 2  # its manifest and its configuration
    clones = {item.name: item for item in taken.of(ItemKind.CLONE)}
    first = store.snapshotter.usage("clone/web@first")
    assert clones["fork"].shared == clones["web"].shared == first + store.snapshotter.usage("clone/web@fork-fork")
    assert clones["web"].exclusive == store.snapshotter.usage("clone/web") + store.snapshotter.usage("clone/web@second")


def test_layers_are_measured_once(store: Store, tmp_path: Path) -> None:
    stock(store, tmp_path)
    before = store.du()
    for entry in (store.path / "copy").iterdir():
        if entry.name == "1":
            (entry / "etc/issue").unlink()
    assert store.du().parts[Part.LAYERS] == before.parts[Part.LAYERS]


def test_a_part_that_is_gone_counts_as_nothing(store: Store, tmp_path: Path) -> None:
    stock(store, tmp_path)
    digest = store.image("test:2").manifest.config.digest
    store.blobs.path(digest).unlink()
    images = {item.name: item for item in store.du().of(ItemKind.IMAGE)}
    assert images["test:2"].exclusive.inodes == 1
