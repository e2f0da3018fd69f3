"""Damage done to datasets of ZFS behind the store's back, all at once: found, mended or named by one repair."""

from __future__ import annotations

from pathlib import Path

import pytest

import layerfs
from layerfs import ProblemKind
from layerfs.checking.repair import Outcome
from layerfs.contract import Mount
from layerfs.kernel.mounting import mounted
from layerfs_backends.zfs.datasets import LAYER, ZfsDriver
from tests.support import invariants
from tests.support.images import BASE, EDIT, SHRINK, Layer, write_layout
from tests.support.pools import sh

pytestmark = pytest.mark.root

_OTHER: Layer = {"opt": None, "opt/file": b"other"}
_STACKS = {"lost:1": [BASE, EDIT], "changed:1": [BASE, SHRINK], "untied:1": [BASE, _OTHER]}


@pytest.fixture(params=("zfs",))
def driver_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def _dataset(store: layerfs.Store, name: str) -> str:
    assert isinstance(store.driver, ZfsDriver)
    return f"{store.driver._place}/{store.snapshotter.snapshot(name).id}"


def _change(dataset: str) -> None:
    """Change what is committed, as somebody who takes its ZFS snapshot anew: nothing else could be changed in it."""
    with mounted([Mount("zfs", dataset, ("rw",))]) as root:
        (root / "etc/issue").write_text("others\n")
    sh("zfs", "destroy", dataset + LAYER)
    sh("zfs", "snapshot", dataset + LAYER)


def test_datasets_are_mended(store: layerfs.Store, tmp_path: Path) -> None:
    for number, (name, layers) in enumerate(_STACKS.items()):
        store.import_image(write_layout(tmp_path / str(number), layers, name=name))
    tops = {name: store.image(name).top for name in _STACKS}
    own = store.clone("lost:1", "own")
    own.snapshot("mark")
    mark = f"{own.key}@mark"
    trees = {name: invariants.image_tree(store, name) for name in _STACKS}

    sh("zfs", "destroy", "-R", _dataset(store, tops["lost:1"]))  # with all that stands on it
    _change(_dataset(store, tops["changed:1"]))
    sh("zfs", "destroy", _dataset(store, tops["untied:1"]) + LAYER)

    snapshot, content = ProblemKind.SNAPSHOT, ProblemKind.CONTENT
    found = {(problem.name, problem.kind) for problem in store.check(deep=True)}
    gone = {(name, snapshot) for name in (tops["lost:1"], tops["untied:1"], own.key, mark)}
    assert gone | {(tops["changed:1"], content)} <= found
    outcomes = {(remedy.problem.name, remedy.outcome) for remedy in store.repair(force=True)}
    assert {(name, Outcome.MENDED) for name in tops.values()} <= outcomes
    assert {name for name, outcome in outcomes if outcome is not Outcome.MENDED} == {own.key, mark}
    assert {problem.name for problem in store.check()} == {own.key, mark}
    assert {name: invariants.image_tree(store, name) for name in _STACKS} == trees
    own.remove()
    assert store.check() == ()
