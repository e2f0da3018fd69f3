"""apply(diff(a, b), a) == b on every driver, through the mounts that a container would have, and out and in again."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

import layerfs
from layerfs.contract import LayerRoot, Whiteouts
from layerfs.layer.apply import apply
from layerfs.layer.changes import Change, changes
from tests.guest import machine
from tests.layer import trees
from tests.layer.any_trees import pairs, without_marks
from tests.layer.trees import Spec
from tests.support.images import write_layout

pytestmark = pytest.mark.root


@pytest.fixture
def store(driver_name: str, driver_root: Path) -> Iterator[layerfs.Store]:
    with layerfs.open(driver_root / "store", driver=driver_name) as store:
        yield store


def listed(found: Iterator[Change]) -> list[tuple[str, bytes, int]]:
    return [(change.kind, change.path, change.size) for change in found]


@settings(
    max_examples=int(os.environ.get("LAYERFS_EXAMPLES", "8" if machine.emulated() else "15")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(pair=pairs())
def test_a_diff_turns_one_tree_into_the_other(store: layerfs.Store, trees_dir: Path, pair: tuple[Spec, Spec]) -> None:
    with tempfile.TemporaryDirectory(dir=trees_dir) as name:
        top = Path(name)
        before, after = (trees.make(top / name, without_marks(spec)) for name, spec in zip("ab", pair, strict=True))
        store.import_image(write_layout(top / "image", [trees.layer_of(None, before)], name="test:1"))
        with store.clone("test:1") as clone:
            with clone.mounted() as root:
                assert not trees.difference(trees.describe(root), trees.describe(before))
                apply(io.BytesIO(trees.layer_of(before, after)), LayerRoot(root, Whiteouts.REMOVE))
                assert not trees.difference(trees.describe(root), trees.describe(after))
            assert listed(clone.changes(verify_content=True)) == listed(changes(before, after, verify_content=True))
            committed = clone.commit("test:2")
        layer = committed.manifest.layers[-1].digest
        with store.blobs.open(layer) as stream:
            apply(stream, LayerRoot(before, Whiteouts.REMOVE))
        assert not trees.difference(trees.describe(before), trees.describe(after))
        with store.clone("test:2") as clone, clone.mounted() as root:
            assert not trees.difference(trees.describe(root), trees.describe(after))
        for image in ("test:1", "test:2"):
            store.remove_image(image)
        store.prune(store.plan_prune())
