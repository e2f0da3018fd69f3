"""Layers unpacked together, side by side: the same bytes on disk as one by one, and nothing left by those that fail."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import resource
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import layerfs
from layerfs import tree
from layerfs.contract import LayerRoot, Whiteouts
from layerfs.events import Progress
from layerfs.kernel.children import fork
from layerfs.layer.apart import LowerNeeded
from layerfs.layer.apply import apply
from tests.layer import trees
from tests.layer.archives import END, directory, file, hard_link, pax, symlink, unpack

pytestmark = [pytest.mark.root, pytest.mark.driver("overlay2")]

BASE = (
    directory(b"./", mode=0o751, uid=3, gid=4),
    directory(b"usr"),
    directory(b"usr/lib", mode=0o700, uid=5),
    symlink(b"lib", b"usr/lib"),
    file(b"usr/lib/a", b"a"),
    file(b"gone", b"x"),
)
LAYERS: dict[str, tuple[bytes, ...]] = {
    "lists everything": (directory(b"usr"), directory(b"usr/new", mode=0o711), file(b"usr/new/f", b"1")),
    "lists its root": (pax({b"SCHILY.xattr.user.k": b"v"}) + directory(b"./", mode=0o700), file(b"f", b"2")),
    "only in the root": (file(b"g", b"3"), symlink(b"s", b"g"), hard_link(b"h", b"g")),
    "implied directory": (file(b"usr/lib/b", b"4"),),
    "through a lower link": (file(b"lib/c", b"5"),),
    "hard link to lower": (hard_link(b"linked", b"usr/lib/a"),),
    "whiteout": (file(b".wh.gone"),),
    "opaque": (directory(b"usr"), file(b"usr/.wh..wh..opq"), file(b"usr/only", b"6")),
    "replaces": (file(b"usr", b"7"), directory(b"gone"), file(b"gone/x", b"8")),
    "nothing": (),
}
NEEDY = {"implied directory", "through a lower link", "hard link to lower", "whiteout", "opaque"}


def _layout(path: Path, layers: Sequence[Sequence[bytes]]) -> Path:
    """Write an OCI layout of raw layers."""
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    # The bytes at the end make each layer another one.
    archives = [b"".join(entries) + END + bytes(512 * number) for number, entries in enumerate(layers)]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(archive).hexdigest()}" for archive in archives],
        },
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": [put(gzip.compress(archive, mtime=0), "layer.v1.tar+gzip") for archive in archives],
    }
    listed = {
        **put(json.dumps(manifest).encode(), "manifest.v1+json"),
        "annotations": {"org.opencontainers.image.ref.name": "test:1"},
    }
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
    (path / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    return path


@contextmanager
def _few_descriptors() -> Iterator[None]:
    """Leave so few descriptors that each layer is unpacked by itself, below a mount of the lower ones."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (250, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _unpacked(place: Path, layout: Path, jobs: int) -> list[object]:
    """Import with so many jobs, none being one by one, and describe every layer's directory and the whole."""
    with layerfs.open(place, driver="overlay2") as store:
        with nullcontext() if jobs else _few_descriptors():
            (image,) = store.import_image(layout, jobs=jobs or 1)
        seen: list[object] = []
        for chain in image.config.chain_ids:
            snapshot = store.snapshotter.snapshot(chain)
            assert isinstance(store.driver, layerfs.DirectAccess)
            files = trees.describe(store.driver.layer_root(snapshot).path)
            # A whiteout has the time at which it was made, which nobody can see.
            seen.append({name: replace(one, mtime=0) if one.kind == "char" else one for name, one in files.items()})
            info = store.snapshotter.stat(chain)
            seen.append((info.parent, dict(info.labels), store.snapshotter.usage(chain)))
        with store.clone("test:1") as clone, clone.mounted() as root:
            seen.append(trees.describe(root))
        assert set(store.driver.ids()) == {
            store.snapshotter.snapshot(info.name).id for info in store.snapshotter.infos()
        }
    return seen


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_every_kind_of_layer_is_the_same(fresh_dir: Path, tmp_path: Path, jobs: int) -> None:
    layout = _layout(tmp_path / "layout", [BASE, *LAYERS.values(), *([LAYERS["nothing"]] * 20)])
    assert _unpacked(fresh_dir / "one", layout, 0) == _unpacked(fresh_dir / "many", layout, jobs)


@settings(
    max_examples=int(os.environ.get("LAYERFS_EXAMPLES", "15")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(names=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=5))
def test_any_stack_is_the_same(fresh_dir: Path, tmp_path: Path, names: list[str]) -> None:
    number = len(os.listdir(fresh_dir))
    # "replaces" takes away what the others refer to.
    layers = [LAYERS[name] for name in names if name not in {"replaces", "hard link to lower"}]
    layout = _layout(tmp_path / f"layout{number}", [BASE, *layers])
    expected = _unpacked(fresh_dir / f"{number}-one", layout, 0)
    assert _unpacked(fresh_dir / f"{number}-together", layout, 1) == expected
    assert _unpacked(fresh_dir / f"{number}-many", layout, 3) == expected


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("whiteouts", [Whiteouts.OVERLAY, Whiteouts.OVERLAY_USER])
def test_who_needs_the_layers_below(fresh_dir: Path, name: str, whiteouts: Whiteouts) -> None:
    stream = io.BytesIO(b"".join(LAYERS[name]) + END)
    root = LayerRoot(fresh_dir / "root", whiteouts)
    root.path.mkdir()
    if name in NEEDY:
        with pytest.raises(LowerNeeded, match="depends on the layers below"):
            apply(stream, root, apart=True)
    else:
        assert apply(stream, root, apart=True).lists_root == (name == "lists its root")


def test_the_lowest_layer_needs_nobody(fresh_dir: Path) -> None:
    for number, entries in enumerate(LAYERS.values()):
        if entries != LAYERS["hard link to lower"]:
            unpack(fresh_dir / str(number), *entries, whiteouts=Whiteouts.OVERLAY, base=True)


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("place", [0, 1, 5])
def test_a_layer_that_fails_leaves_nothing(fresh_dir: Path, tmp_path: Path, place: int, jobs: int) -> None:
    layers: list[tuple[bytes, ...]] = [(file(b"f%d" % number, b"x" * 100_000),) for number in range(6)]
    layers[place] = (*layers[place], hard_link(b"h", b"../never"), b"what is no header" * 40)
    layout = _layout(tmp_path / "layout", layers)
    with layerfs.open(fresh_dir / "store", driver="overlay2") as store:
        with pytest.raises(layerfs.Corrupt):
            store.import_image(layout, jobs=jobs)
        assert store.images() == ()
        assert store.snapshotter.infos() == []
        assert list(store.driver.ids()) == []
    assert threading.active_count() == 1


def test_an_interrupt_stops_all_of_them(fresh_dir: Path, tmp_path: Path) -> None:
    layers = [(file(b"f%d" % number, os.urandom(3 << 20)),) for number in range(4)]
    layout = _layout(tmp_path / "layout", layers)

    def interrupt(event: Progress) -> None:
        if event.action == "unpack":
            raise KeyboardInterrupt

    with layerfs.open(fresh_dir / "store", driver="overlay2") as store:
        with pytest.raises(KeyboardInterrupt):
            store.import_image(layout, jobs=4, listener=interrupt)
        assert store.snapshotter.infos() == []
        assert list(store.driver.ids()) == []
    assert threading.active_count() == 1


def test_what_is_there_is_not_unpacked_again(fresh_dir: Path, tmp_path: Path) -> None:
    short = _layout(tmp_path / "short", [BASE, LAYERS["whiteout"]])
    long = _layout(tmp_path / "long", [BASE, LAYERS["whiteout"], LAYERS["opaque"], LAYERS["through a lower link"]])
    unpacked: list[str] = []

    def listen(event: Progress) -> None:
        if event.action == "unpack" and event.item not in unpacked:
            unpacked.append(event.item)

    with layerfs.open(fresh_dir / "store", driver="overlay2") as store:
        (image,) = store.import_image(short, names=["short"])
        (longer,) = store.import_image(long, names=["long"], listener=listen)
        assert unpacked == [layer.digest for layer in longer.manifest.layers[2:]]
        assert store.snapshotter.stat(longer.config.chain_ids[2]).parent == image.top
        with store.clone("long") as clone, clone.mounted() as root:
            assert os.listdir(root / "usr") == ["only", "lib"]


def test_a_layer_is_measured_once(fresh_dir: Path, tmp_path: Path) -> None:
    layout = _layout(tmp_path / "layout", [BASE, (file(b"f", b"x" * 100_000),)])
    with layerfs.open(fresh_dir / "store", driver="overlay2") as store:
        (image,) = store.import_image(layout)
        assert isinstance(store.driver, layerfs.DirectAccess)
        place = store.driver.layer_root(store.snapshotter.snapshot(image.top)).path
        expected = tree.usage(place)
        assert store.snapshotter.usage(image.top) == expected
        (place / "f").unlink()
        assert store.snapshotter.usage(image.top) == expected
        assert store.du().items


def test_nobody_sees_a_layer_before_all_are_durable(fresh_dir: Path, tmp_path: Path) -> None:
    layout = _layout(tmp_path / "layout", [BASE, LAYERS["nothing"], LAYERS["only in the root"]])
    seen: list[int] = []

    def look(event: Progress) -> None:
        if event.action == "unpack":
            with layerfs.open(fresh_dir / "store") as other:
                seen.append(len(other.snapshotter.infos()))
                assert other.snapshotter.cleanup() == ()

    with layerfs.open(fresh_dir / "store", driver="overlay2") as store:
        store.import_image(layout, listener=look)
        assert len(store.snapshotter.infos()) == 3
    assert set(seen) == {0}


def test_what_a_killed_process_was_unpacking_is_done_anew(fresh_dir: Path, tmp_path: Path) -> None:
    layout = _layout(tmp_path / "layout", [BASE, LAYERS["nothing"], LAYERS["only in the root"]])

    def die(event: Progress) -> None:
        if event.action == "unpack":
            os._exit(0)

    with layerfs.open(fresh_dir / "store", driver="overlay2") as store:
        child = fork()
        if child == 0:
            with layerfs.open(fresh_dir / "store") as other:
                other.import_image(layout, listener=die)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(list(store.driver.ids())) == 3
        store.import_image(layout)
        assert len(list(store.driver.ids())) == 3
        assert len(store.snapshotter.infos()) == 3


def test_a_wrong_diff_id_is_seen(fresh_dir: Path, tmp_path: Path) -> None:
    layout = _layout(tmp_path / "layout", [BASE, LAYERS["lists everything"], LAYERS["only in the root"]])
    index = json.loads((layout / "index.json").read_text())
    manifest_path = layout / "blobs" / index["manifests"][0]["digest"].replace(":", "/")
    manifest = json.loads(manifest_path.read_text())
    config = json.loads((layout / "blobs" / manifest["config"]["digest"].replace(":", "/")).read_text())
    config["rootfs"]["diff_ids"][2] = "sha256:" + "0" * 64
    for document, where in ((config, manifest["config"]), (manifest, index["manifests"][0])):
        data = json.dumps(document).encode()
        where.update(digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size=len(data))
        (layout / "blobs" / where["digest"].replace(":", "/")).write_bytes(data)
    (layout / "index.json").write_text(json.dumps(index))
    with layerfs.open(fresh_dir / "store", driver="overlay2") as store:
        with pytest.raises(layerfs.Corrupt, match="unpacks to"):
            store.import_image(layout, jobs=3)
        assert store.images() == ()


def test_other_drivers_go_in_order(driver_name: str, driver_root: Path, tmp_path: Path) -> None:
    layout = _layout(tmp_path / "layout", [BASE, *LAYERS.values()])
    with layerfs.open(driver_root / "store", driver=driver_name) as store:
        store.import_image(layout, jobs=4)
        with store.clone("test:1") as clone, clone.mounted() as root:
            assert (root / "gone/x").read_text() == "8"
