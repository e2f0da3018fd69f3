"""A store of every driver with an image and a clone that has snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import layerfs
from tests.damage import odd_layers
from tests.support.images import write_layout


@pytest.fixture
def store(driver_name: str, driver_root: Path) -> Iterator[layerfs.Store]:
    with layerfs.open(driver_root / "store", driver=driver_name) as store:
        yield store


@pytest.fixture
def image(store: layerfs.Store, tmp_path: Path) -> layerfs.Image:
    layers = [odd_layers.base(), odd_layers.top()]
    (image,) = store.import_image(write_layout(tmp_path / "image", layers, name="test:1"))
    return image


@pytest.fixture
def clone(store: layerfs.Store, image: layerfs.Image) -> layerfs.Clone:
    """Give a clone with a snapshot, and changes before and after it."""
    made = store.clone(image.name, "work")
    with made.mounted() as root:
        (root / "etc/issue").write_text("changed before\n")
        (root / "own").mkdir()
        (root / "own/file").write_text("own\n")
    made.snapshot("before")
    with made.mounted() as root:
        (root / "own/file").unlink()
        (root / "own/later").write_text("later\n")
    return made
