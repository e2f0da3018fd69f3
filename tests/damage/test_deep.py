"""`check --deep`: nothing wrong where nothing is, whatever the layers hold; the damage of single files named."""

from __future__ import annotations

from datetime import timedelta

import pytest

import layerfs
from layerfs import Problem, ProblemKind, Progress
from layerfs.kernel import mounting
from tests.damage.hurting import writable
from tests.support import invariants

pytestmark = pytest.mark.root


@pytest.mark.usefixtures("clone")
def test_nothing_is_wrong_with_what_was_not_touched(store: layerfs.Store) -> None:
    assert store.check(deep=True) == ()
    assert store.check(deep=True) == ()
    invariants.check_store(store)


def test_what_was_found_whole_is_not_read_again_for_a_while(store: layerfs.Store, clone: layerfs.Clone) -> None:
    heard: list[Progress] = []
    assert store.check(deep=True, listener=heard.append) == ()
    layers = {event.item for event in heard}
    assert f"{clone.key}@before" in layers
    heard.clear()
    assert store.check(deep=True, older_than=timedelta(hours=1), listener=heard.append) == ()
    again = {event.item for event in heard}
    assert f"{clone.key}@before" not in again
    assert again < layers, "the manifest and the configuration are small"


def test_an_interrupt_keeps_what_was_checked(store: layerfs.Store, clone: layerfs.Clone) -> None:
    seen: list[str] = []

    def interrupted(event: Progress) -> None:
        if event.item == f"{clone.key}@before":
            raise KeyboardInterrupt
        seen.append(event.item)

    with pytest.raises(KeyboardInterrupt):
        store.check(deep=True, jobs=1, listener=interrupted)
    again: list[Progress] = []
    assert store.check(deep=True, older_than=timedelta(hours=1), listener=again.append) == ()
    items = {event.item for event in again}
    assert f"{clone.key}@before" in items
    assert items != set(seen) | {f"{clone.key}@before"}, "the layers before it were not read again"


def test_a_damaged_blob_is_named_with_its_image(store: layerfs.Store, image: layerfs.Image) -> None:
    blob = image.manifest.layers[0].digest
    path = store.blobs.path(blob)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    (problem,) = store.check(deep=True)
    assert (problem.kind, problem.name, problem.hurts) == (ProblemKind.BLOB, blob, ("test:1",))


@pytest.mark.host("zfs")  # no hand reaches what a dataset holds (test_datasets.py)
def test_changed_files_are_named(store: layerfs.Store, image: layerfs.Image, clone: layerfs.Clone) -> None:
    assert store.check(deep=True) == ()  # the snapshot of the clone is sealed now, if it was not
    mark = f"{clone.key}@before"
    for name, path in ((image.config.chain_ids[0], "etc/passwd"), (mark, "own/file")):
        with writable(store, name) as root:
            (root / path).write_text("others\n")
    found = {(problem.name, problem.file) for problem in store.check(deep=True)}
    assert {(image.config.chain_ids[0], "/etc/passwd"), (mark, "/own/file")} <= found
    assert {problem.hurts for problem in store.check(deep=True)} == {("test:1", "work"), ("work",)}


def _kinds(problems: tuple[Problem, ...]) -> set[ProblemKind]:
    return {problem.kind for problem in problems}


@pytest.mark.usefixtures("clone")
def test_a_mounted_clone_is_nothing_wrong(store: layerfs.Store) -> None:
    with store.get_clone("work").mounted():
        assert _kinds(store.check(deep=True)) == set()
    assert not mounting.users(store.get_clone("work").mounts())


def test_nothing_is_wrong_right_after_an_import(store: layerfs.Store, image: layerfs.Image) -> None:
    """The index of a union, too, is that of all layers below."""
    assert store.check(deep=True) == ()
    assert image.name == "test:1"
