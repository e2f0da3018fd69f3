"""Bad input: a clear error each, and nothing left behind."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import layerfs
from layerfs import FailedPrecondition, NotFound
from tests.support import invariants
from tests.support.images import BASE, EDIT, Layer, write_layout

Damage = Callable[[Path], None]


def manifest_path(layout: Path) -> Path:
    (listed,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    return blob_path(layout, listed["digest"])


def blob_path(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def manifest(layout: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(manifest_path(layout).read_bytes())
    return found


def rewrite_manifest(layout: Path, changed: dict[str, Any]) -> None:
    """Write another manifest, with digest and size right in the index."""
    raw = json.dumps(changed).encode()
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    blob_path(layout, digest).write_bytes(raw)
    index = json.loads((layout / "index.json").read_bytes())
    index["manifests"][0].update(digest=digest, size=len(raw))
    (layout / "index.json").write_text(json.dumps(index))


def layer_path(layout: Path, number: int = -1) -> Path:
    return blob_path(layout, manifest(layout)["layers"][number]["digest"])


def lose_layer(layout: Path) -> None:
    layer_path(layout).unlink()


def lose_config(layout: Path) -> None:
    blob_path(layout, manifest(layout)["config"]["digest"]).unlink()


def lose_manifest(layout: Path) -> None:
    manifest_path(layout).unlink()


def change_layer(layout: Path) -> None:
    path = layer_path(layout)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate_layer(layout: Path) -> None:
    path = layer_path(layout)
    path.write_bytes(path.read_bytes()[:-20])


def lengthen_layer(layout: Path) -> None:
    with layer_path(layout).open("ab") as file:
        file.write(b"\0" * 512)


def unknown_layer_type(layout: Path) -> None:
    changed = manifest(layout)
    changed["layers"][0]["mediaType"] = "application/vnd.example.layer.v1.tar+lz4"
    rewrite_manifest(layout, changed)


def wrong_digest_form(layout: Path) -> None:
    changed = manifest(layout)
    changed["layers"][0]["digest"] = "sha256:../../etc/passwd"
    rewrite_manifest(layout, changed)


def one_layer_less(layout: Path) -> None:
    changed = manifest(layout)
    del changed["layers"][0]
    rewrite_manifest(layout, changed)


def layers_swapped(layout: Path) -> None:
    changed = manifest(layout)
    changed["layers"].reverse()
    rewrite_manifest(layout, changed)


def negative_size(layout: Path) -> None:
    changed = manifest(layout)
    changed["layers"][0]["size"] = -1
    rewrite_manifest(layout, changed)


def no_json(layout: Path) -> None:
    (layout / "index.json").write_bytes(b"{")


def no_image(layout: Path) -> None:
    (layout / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')


def no_layout(layout: Path) -> None:
    (layout / "oci-layout").unlink()
    (layout / "index.json").unlink()


@pytest.fixture
def store(fresh_dir: Path) -> Iterator[layerfs.Store]:
    with layerfs.open(fresh_dir / "store", driver="copy") as store:
        yield store


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (lose_layer, NotFound, "has no blobs/sha256"),
        (lose_config, NotFound, "has no blobs/sha256"),
        (lose_manifest, NotFound, "has no blobs/sha256"),
        (change_layer, layerfs.Corrupt, "sha256:"),
        (truncate_layer, layerfs.Corrupt, "bytes"),
        (lengthen_layer, layerfs.Corrupt, "bytes"),
        (unknown_layer_type, layerfs.Unsupported, "lz4"),
        (wrong_digest_form, layerfs.Corrupt, "digest"),
        (one_layer_less, layerfs.Corrupt, "layers"),
        (layers_swapped, layerfs.Corrupt, "unpacks to"),
        (negative_size, layerfs.Corrupt, "size"),
        (no_json, layerfs.Corrupt, "JSON"),
        (no_image, layerfs.LayerfsError, "no image"),
        (no_layout, layerfs.InvalidArgument, "no image"),
    ],
)
def test_a_damaged_image_leaves_nothing_behind(
    store: layerfs.Store, tmp_path: Path, damage: Damage, error: type[layerfs.LayerfsError], words: str
) -> None:
    layout = write_layout(tmp_path / "layout", [BASE, EDIT])
    damage(layout)
    with pytest.raises(error, match=words):
        store.import_image(layout)
    assert store.images() == ()
    assert list(store.blobs.digests()) == []
    assert store.snapshotter.infos() == []
    assert list(store.driver.ids()) == []
    assert list((store.path / "blobs/ingest").iterdir()) == []


def test_what_was_there_before_survives_a_damaged_import(store: layerfs.Store, tmp_path: Path) -> None:
    (good,) = store.import_image(write_layout(tmp_path / "good", [BASE], name="good:1"))
    tree = invariants.tree_digest(store._parts.layer_root(good.top).path)  # type: ignore[union-attr]
    bad = write_layout(tmp_path / "bad", [BASE, EDIT], name="good:1")
    change_layer(bad)
    with pytest.raises(layerfs.Corrupt):
        store.import_image(bad)
    assert store.image("good:1").digest == good.digest
    assert invariants.tree_digest(store._parts.layer_root(good.top).path) == tree  # type: ignore[union-attr]
    invariants.check_store(store)
    assert store.plan_prune().items == ()


def test_a_path_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is no layerfs store"):
        layerfs.open(tmp_path / "missing", create=False)
    assert not (tmp_path / "missing").exists()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/dear").write_text("sir")
    with pytest.raises(FailedPrecondition, match="not empty"):
        layerfs.open(tmp_path / "letters")
    assert os.listdir(tmp_path / "letters") == ["dear"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(layerfs.LayerfsError, match="file"):
        layerfs.open(tmp_path / "file")


def test_a_store_of_a_newer_format(fresh_dir: Path) -> None:
    layerfs.open(fresh_dir / "store", driver="copy").close()
    with sqlite3.connect(fresh_dir / "store/meta.db") as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(FailedPrecondition, match="has format 999"):
        layerfs.open(fresh_dir / "store")


def test_drivers_that_are_not_there(fresh_dir: Path) -> None:
    with pytest.raises(layerfs.InvalidArgument, match="there is no driver 'floppy'"):
        layerfs.open(fresh_dir / "store", driver="floppy")
    assert not (fresh_dir / "store").exists()
    with pytest.raises(layerfs.Unsupported, match="btrfs"):
        layerfs.open(fresh_dir / "store", driver="btrfs")  # a tmpfs is none
    assert not (fresh_dir / "store").exists()


def test_another_driver_than_the_stores(fresh_dir: Path) -> None:
    layerfs.open(fresh_dir / "store", driver="copy").close()
    with pytest.raises(FailedPrecondition, match="of the driver 'copy'"):
        layerfs.open(fresh_dir / "store", driver="overlay2")


def test_options_that_a_driver_does_not_know(fresh_dir: Path) -> None:
    with pytest.raises(layerfs.InvalidArgument, match="'speed'"):
        layerfs.open(fresh_dir / "store", driver="copy", options={"speed": "9"})
    assert not (fresh_dir / "store").exists()


@pytest.mark.root
def test_no_space(fresh_dir: Path, tmp_path: Path) -> None:
    big: Layer = {"big": os.urandom(6 << 20)}
    layout = write_layout(tmp_path / "layout", [BASE, big])
    disk = fresh_dir / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", disk], check=True)
    try:
        with layerfs.open(disk / "store", driver="copy") as store:
            with pytest.raises(layerfs.NoSpace):
                store.import_image(layout)
            assert store.images() == ()
            assert list(store.blobs.digests()) == []
            (small,) = store.import_image(write_layout(tmp_path / "small", [BASE], name="small:1"))
            assert store.image("small:1").digest == small.digest
            invariants.check_store(store)
    finally:
        subprocess.run(["umount", disk], check=True)


def _open_as_somebody_else(path: Path) -> str:
    try:
        layerfs.open(path)
    except layerfs.PermissionDenied as error:
        return error.message
    return "opened"


@pytest.mark.root
@pytest.mark.rootless
def test_no_permission(fresh_dir: Path, run_rootless: Callable[..., str]) -> None:
    layerfs.open(fresh_dir / "store", driver="copy").close()
    assert str(fresh_dir / "store") in run_rootless(_open_as_somebody_else, fresh_dir / "store")


@pytest.mark.root
def test_a_busy_clone(driver_name: str, driver_root: Path, tmp_path: Path) -> None:
    with layerfs.open(driver_root / "store", driver=driver_name) as store:
        store.import_image(write_layout(tmp_path / "layout", [BASE]))
        clone = store.clone("test:1", "busy")
        actions: list[Callable[[], object]] = [
            clone.remove,
            clone.commit,
            clone.snapshot,
            clone.rollback,
            clone.fork,
            lambda: clone.mount(tmp_path),
        ]
        with clone.mounted() as root:
            (root / "kept").write_text("kept")
            for action in actions:
                with pytest.raises(layerfs.Busy, match="busy"):
                    action()
        target = tmp_path / "target"
        target.mkdir()
        clone.mount(target)
        try:
            for action in actions:
                with pytest.raises(layerfs.Busy, match=str(target)):
                    action()
            assert (target / "kept").read_text() == "kept"
        finally:
            clone.unmount()
        clone.remove()
        assert store.clones() == ()
        invariants.check_store(store)


def test_names_that_cannot_be(store: layerfs.Store, tmp_path: Path) -> None:
    store.import_image(write_layout(tmp_path / "layout", [BASE]))
    for name in ["a/b", "../x", ".hidden", "a@b", "", "x" * 129, "a b"]:
        with pytest.raises(layerfs.InvalidArgument):
            store.clone("test:1", name or "-")
    store.clone("test:1", "one")
    with pytest.raises(layerfs.AlreadyExists, match="'one'"):
        store.clone("test:1", "one")
    with pytest.raises(NotFound, match="there is no image"):
        store.clone("nothing")
    with pytest.raises(NotFound, match="there is no clone"):
        store.get_clone("two")
    with pytest.raises(FailedPrecondition, match="clones one"):
        store.remove_image("test:1")
    invariants.check_store(store)
