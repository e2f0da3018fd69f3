"""Many layers and many clones: 128 of the first, as many as the driver can, and 1,000 of the second.

In the guest fewer have to do, for there each takes seconds; the contract has 128 layers on every driver, bench/zfs.py
and bench/thin.py have 1,000 clones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import layerfs
from layerfs import ArchiveFormat
from tests.acceptance import trees
from tests.acceptance.conftest import Stopwatch
from tests.guest import machine
from tests.support import invariants, leftovers
from tests.support.images import Layer, write_layout

pytestmark = [pytest.mark.root, pytest.mark.slow]

DEPTH = 6 if machine.emulated() else 16 if machine.inside() else 128
CLONES = 20 if machine.emulated() else 50 if machine.inside() else 1000
BEYOND = 501
"""One more layer than the kernel's overlayfs stacks (fs/overlayfs/params.c, OVL_MAX_STACK)."""


@pytest.fixture
def store(driver_name: str, driver_root: Path) -> Iterator[layerfs.Store]:
    with layerfs.open(driver_root / "store", driver=driver_name) as store:
        yield store
        invariants.check_store(store)


def layers(number: int) -> Sequence[Layer]:
    """Return layers that each bring a file, change one that all have, and take away the file of the one before."""
    first: Layer = {"all": b"0", "own-0": b"0", "d": None}
    return [first] + [
        {"all": str(n).encode(), f"own-{n}": b"", f".wh.own-{n - 1}": b"", f"d/{n}": str(n).encode()}
        for n in range(1, number)
    ]


def check_layers(root: Path, number: int) -> None:
    """Check the tree of `layers` as one sees it from above."""
    assert (root / "all").read_text() == str(number - 1)
    assert [path.name for path in root.glob("own-*")] == [f"own-{number - 1}"]
    assert {path.name for path in (root / "d").iterdir()} == {str(n) for n in range(1, number)}
    assert all(path.read_text() == path.name for path in (root / "d").iterdir())


def change(root: Path, number: int) -> None:
    """Do to a clone what the layer of this number in `layers` does."""
    (root / "all").write_text(str(number))
    (root / f"own-{number}").touch()
    (root / f"own-{number - 1}").unlink()
    (root / f"d/{number}").write_text(str(number))


def test_many_layers_by_clone_change_and_commit(
    store: layerfs.Store, driver_root: Path, tmp_path: Path, stopwatch: Stopwatch
) -> None:
    (image,) = store.import_image(write_layout(tmp_path / "one", layers(1), name="deep:1"))
    with stopwatch(f"{DEPTH - 1} rounds of clone, change and commit, {store.driver.name}"):
        for number in range(1, DEPTH):
            with store.clone(image.name) as clone:
                with clone.mounted() as root:
                    change(root, number)
                image = clone.commit(f"deep:{number + 1}")
    assert len(image.manifest.layers) == DEPTH
    with store.clone(image.name) as clone:
        with clone.mounted() as root:
            check_layers(root, DEPTH)
            tree = trees.read(root)
            (root / "all").write_text("again")
        assert {change.path for change in clone.changes()} == {b"all"}
    store.export_image([image.name], tmp_path / "deep.tar", format=ArchiveFormat.OCI_ARCHIVE)
    with layerfs.open(driver_root / "other", driver=store.driver.name) as other:
        with stopwatch(f"import of {DEPTH} layers, {store.driver.name}"):
            (back,) = other.import_image(tmp_path / "deep.tar")
        assert back.digest == image.digest
        with other.clone(back.name) as clone, clone.mounted() as root:
            trees.check_same(tree, trees.read(root), "the image of 128 layers in another store")
        invariants.check_store(other)


@pytest.mark.host
def test_as_many_layers_as_the_driver_takes_and_not_one_more(store: layerfs.Store, tmp_path: Path) -> None:
    limit = store.driver.traits.max_layers
    most = limit or BEYOND
    (image,) = store.import_image(write_layout(tmp_path / "most", layers(most), name="deep:most"))
    with store.clone(image.name) as clone:
        with clone.mounted() as root:
            check_layers(root, most)
            change(root, most)
        with clone.mounted() as root:
            check_layers(root, most + 1)
        assert ("deleted", f"own-{most - 1}".encode()) in [(str(found.kind), found.path) for found in clone.changes()]
        clone.commit("deep:committed")
    store.import_image(write_layout(tmp_path / "beyond", layers(most + 1), name="deep:imported"))
    for name in ("deep:committed", "deep:imported"):
        if limit is None:
            with store.clone(name) as clone, clone.mounted() as root:
                check_layers(root, most + 1)
            continue
        with pytest.raises(layerfs.Unsupported, match=rf"{limit + 1} layers.* {limit}") as caught:
            store.clone(name)
        assert caught.value.hint
        assert store.clones() == ()
        store.export_image([name], tmp_path / f"{name[5:]}.tar")  # it can go to where it can be mounted


def test_a_thousand_clones(
    store: layerfs.Store, request: pytest.FixtureRequest, tmp_path: Path, stopwatch: Stopwatch
) -> None:
    """Clone the Debian image where a clone costs the same whatever the image.

    The copy driver copies it whole. A btrfs snapshot of it by itself, without layerfs, takes 6 ms at first and 40 after
    400 of them (0.6 and 2 of a small tree): the kernel counts the references to each block of the tree's second level.
    """
    small = store.driver.traits.copy_unit is not layerfs.CopyUnit.FILE
    layout: Path = write_layout(tmp_path / "small", layers(3)) if small else request.getfixturevalue("debian_layout")
    (image,) = store.import_image(layout, names=["base:1"])
    standing = leftovers.find([store.path])  # a pool, where the driver has one
    before = set(store.driver.ids()), sorted(path.name for path in store.path.iterdir())
    what = f"{CLONES} clones of {'a small' if small else 'the Debian'} image, {store.driver.name}"
    with stopwatch(f"{what}: made"):
        clones = [store.clone("base:1", f"c{number}") for number in range(CLONES)]
    assert len(store.clones()) == CLONES
    for clone in clones[:: CLONES // 10]:
        with clone.mounted() as root:
            (root / "mine").write_text(clone.name)
    for clone in clones[:: CLONES // 10]:
        with clone.mounted() as root:
            assert (root / "mine").read_text() == clone.name
    with clones[1].mounted() as root:
        assert not (root / "mine").exists()
    with stopwatch(f"{what}: removed"):
        for clone in clones:
            clone.remove()
    assert store.clones() == ()
    assert (set(store.driver.ids()), sorted(path.name for path in store.path.iterdir())) == before
    assert {info.name for info in store.snapshotter.infos()} == set(image.config.chain_ids)
    assert leftovers.find([store.path]) == standing
