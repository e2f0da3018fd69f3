"""Whatever a stranger writes into an archive is read right or refused in our words, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerfs.errors import LayerfsError
from layerfs.image.blobs import BlobStore
from tests.image.samples import (
    Json,
    Sample,
    digest_of,
    docker_files,
    encode,
    imported,
    layout_files,
    tar_of,
    write_tar,
)

SAMPLE = Sample()
ARCHIVES = (
    tar_of(layout_files([SAMPLE.entry(ref="a/b:1")], SAMPLE.all_blobs)),
    tar_of(docker_files(SAMPLE)),
    tar_of(docker_files(SAMPLE), links={"x/layer.tar": "../y"}),
)
STRANGE: st.SearchStrategy[Json] = st.sampled_from(
    [
        *(None, True, 0, -1, 2, 1.5, 1 << 70, "", "x", "\ud800", "\0", "../../etc/passwd", "/etc/passwd"),
        *([], {}, [[]], [None], [{}], {"": {}}, {"mediaType": "x"}, ["x"] * 3, [{"mediaType": 1}]),
        "sha256:" + "0" * 64,
    ]
)
SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=True
)


@contextlib.contextmanager
def fresh(fresh_dir: Path) -> Iterator[BlobStore]:
    store = BlobStore(fresh_dir / "store")
    yield store
    for digest in store.digests():
        store.check(digest)
    assert list((store.root / "ingest").iterdir()) == []
    shutil.rmtree(store.root)


def try_to_import(path: Path, fresh_dir: Path) -> None:
    with fresh(fresh_dir) as store, contextlib.suppress(LayerfsError):
        for image in imported(path, store):
            for blob in image.manifest.blobs:
                store.check(blob.digest)


def edits(size: int) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    kinds = st.sampled_from(["set", "flip", "cut", "double", "header"])
    return st.lists(st.tuples(kinds, st.integers(0, size - 1), st.integers(0, 255)), min_size=1, max_size=4)


def edited(data: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    made = bytearray(data)
    for kind, at, value in changes:
        place = min(at, len(made) - 1)
        block = place // 512 * 512
        if kind == "set":
            made[place] = value
        elif kind == "flip":
            made[place] ^= 1 << value % 8
        elif kind == "cut":
            del made[place : place + value]
        elif kind == "double":
            made[block:block] = made[block : block + 512]
        elif len(made) >= block + 512:  # a header that is wrong, under a checksum that is right
            made[block + place % 345] = value
            made[block + 148 : block + 156] = b" " * 8
            made[block + 148 : block + 156] = b"%06o\0 " % sum(made[block : block + 512])
        made = made or bytearray(b"x")
    return bytes(made)


@SETTINGS
@given(data=st.data())
def test_archives_with_any_damage(fresh_dir: Path, data: st.DataObject) -> None:
    archive = data.draw(st.sampled_from(ARCHIVES))
    path = fresh_dir / "in.tar"
    path.write_bytes(edited(archive, data.draw(edits(len(archive.rstrip(b"\0"))))))
    try_to_import(path, fresh_dir)


def places(value: Json, prefix: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of everything in a document."""
    if prefix:
        yield prefix
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*prefix, key))


def replaced(document: bytes, data: st.DataObject) -> bytes:
    """Return a document with something strange at one place of it."""
    value = json.loads(document)
    *parents, last = data.draw(st.sampled_from(list(places(value))))
    holder = value
    for key in parents:
        holder = holder[key]
    holder[last] = data.draw(STRANGE)
    return encode(value)


def strange_config(data: st.DataObject) -> dict[str, bytes]:
    sample = Sample(extra_config=json.loads(replaced(SAMPLE.config, data)))
    return layout_files([sample.entry()], sample.all_blobs)


def strange_manifest(data: st.DataObject) -> dict[str, bytes]:
    raw = replaced(SAMPLE.manifest(), data)
    entry = {"mediaType": SAMPLE.media_type, "digest": digest_of(raw), "size": len(raw)}
    return layout_files([entry], [raw, *SAMPLE.all_blobs])


def strange_index(data: st.DataObject) -> dict[str, bytes]:
    entry = SAMPLE.entry(ref="a:b", platform={"os": "linux", "architecture": "amd64", "variant": "v1"})
    files = layout_files([entry], SAMPLE.all_blobs)
    return files | {"index.json": replaced(files["index.json"], data)}


def strange_docker_config(data: st.DataObject) -> dict[str, bytes]:
    return docker_files(Sample(extra_config=json.loads(replaced(SAMPLE.config, data))))


def strange_docker_manifest(data: st.DataObject) -> dict[str, bytes]:
    files = docker_files(SAMPLE)
    return files | {"manifest.json": replaced(files["manifest.json"], data)}


@pytest.mark.parametrize(
    "make", [strange_config, strange_manifest, strange_index, strange_docker_config, strange_docker_manifest]
)
@SETTINGS
@given(data=st.data())
def test_documents_with_anything_anywhere(
    fresh_dir: Path, make: Callable[[st.DataObject], dict[str, bytes]], data: st.DataObject
) -> None:
    try_to_import(write_tar(fresh_dir / "in.tar", make(data)), fresh_dir)
