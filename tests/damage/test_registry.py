"""Blobs that are damaged or gone come again from the registry of their image; where none has them, it is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import layerfs
from layerfs import ProblemKind
from layerfs.checking.repair import Outcome
from layerfs.checking.supply import Supply
from layerfs.errors import NotFound
from layerfs.events import ignore
from layerfs.layer.digest import Digest
from layerfs.registry.options import Options
from tests.damage import odd_layers
from tests.damage.hurting import flip, writable
from tests.support.images import write_layout
from tests.support.registry import registry

pytestmark = pytest.mark.root

NAME = "team/test:1"
OPTIONS = Options(find=lambda _host: None, timeout=20, tries=1)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give a registry that has the image."""
    root = tmp_path_factory.mktemp("registry")
    write_layout(root / "layout", [odd_layers.base(), odd_layers.top()])
    with registry(root) as host, layerfs.open(root / "store", driver="copy") as store:
        store.import_image(root / "layout", unpack=False)
        store.push_image("test:1", f"{host}/{NAME}", options=OPTIONS)
        yield host


@pytest.fixture
def pulled(fresh_dir: Path, host: str) -> Iterator[layerfs.Store]:
    with layerfs.open(fresh_dir / "store", driver="overlay2") as store:
        store.pull_image(f"{host}/{NAME}", options=OPTIONS)
        yield store


def test_every_blob_comes_again(pulled: layerfs.Store) -> None:
    """Manifest, configuration and layers, flipped or gone; and with them a layer that was changed meanwhile."""
    (image,) = pulled.images()
    manifest = image.manifest
    flip(pulled.blobs.path(manifest.digest))
    pulled.blobs.remove(manifest.config.digest)
    flip(pulled.blobs.path(manifest.layers[0].digest))
    pulled.blobs.path(manifest.layers[1].digest).write_bytes(b"cut")
    with writable(pulled, image.config.chain_ids[0]) as root:
        (root / "etc/passwd").write_text("changed\n")
    path = pulled.path
    pulled.close()

    with layerfs.open(path) as store:
        wrong = {problem.name for problem in store.check(deep=True) if problem.kind is ProblemKind.BLOB}
        assert wrong == {manifest.digest, *(blob.digest for blob in manifest.blobs)}
        remedies = store.repair(force=True, options=OPTIONS)
        assert {remedy.outcome for remedy in remedies} == {Outcome.MENDED}, remedies
        # While the first blob was damaged nobody could say that the layer is, too.
        assert ProblemKind.CONTENT in {remedy.problem.kind for remedy in remedies}
        assert store.check(deep=True) == ()
        with store.clone(image.digest) as clone, clone.mounted() as root:
            assert (root / "etc/passwd").read_text() == "root:x:0:0\n"


def test_what_no_registry_has_is_named(pulled: layerfs.Store) -> None:
    (image,) = pulled.images()
    pulled.tag(image.digest, "127.0.0.1:1/team/elsewhere:1")
    for name in image.names:
        pulled.remove_image(name)
    blob = image.manifest.layers[0].digest
    pulled.blobs.remove(blob)
    (remedy,) = pulled.repair(options=OPTIONS)
    assert (remedy.problem.name, remedy.outcome) == (blob, Outcome.PLANNED)
    (remedy,) = pulled.repair(force=True, options=OPTIONS)
    assert (remedy.problem.name, remedy.outcome) == (blob, Outcome.FAILED)
    (remedy,) = pulled.repair(force=True)
    assert (remedy.problem.name, remedy.outcome) == (blob, Outcome.LOST)


def test_a_blob_that_nobody_needs_any_more_is_not_asked_for(pulled: layerfs.Store) -> None:
    """Its image was removed since the check."""
    supply = Supply(pulled._parts, OPTIONS, (), ignore)
    with pytest.raises(NotFound, match="no image needs"):
        supply.bring(Digest(f"sha256:{'0' * 64}"))


def test_blobs_come_again_from_what_was_imported(fresh_dir: Path) -> None:
    layout = write_layout(fresh_dir / "layout", [odd_layers.base(), odd_layers.top()])
    with layerfs.open(fresh_dir / "store", driver="overlay2") as store:
        (image,) = store.import_image(layout)
        store.export_image(["test:1"], fresh_dir / "image.tar")
        for number, source in enumerate((layout, fresh_dir / "image.tar")):
            flip(store.blobs.path(image.manifest.layers[number].digest))
            (remedy,) = store.repair(force=True)
            assert remedy.outcome is Outcome.LOST
            (remedy,) = store.repair(force=True, files=[source])
            assert remedy.outcome is Outcome.MENDED, remedy
            assert store.check(deep=True) == ()
