"""Other people's tools read what layerfs writes, and layerfs what they write: every digest survives both ways."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from layerfs.image.blobs import BlobStore
from layerfs.image.config import ImageConfig
from layerfs.image.destinations import write_docker_archive, write_images, write_oci_archive, write_oci_layout_dir
from layerfs.image.files import ArchiveFormat
from layerfs.image.manifest import NamedImage
from layerfs.image.media_types import LAYER_MEDIA_TYPES
from layerfs.layer.compression import Compression
from layerfs.layer.digest import Digest
from tests.image.samples import Sample, digest_of, digests, imported, layout_dir, stored, tar_of

pytestmark = pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")
needs_umoci = pytest.mark.skipif(not shutil.which("umoci"), reason="umoci is not installed")

SAMPLE = Sample(how=("gzip", "gzip"))
NAME = "docker.io/library/sample:1"


def skopeo(*words: str | Path) -> bytes:
    return subprocess.run(["skopeo", "--insecure-policy", *words], check=True, stdout=subprocess.PIPE).stdout


def copy(source: str, destination: str, *more: str) -> None:
    skopeo("copy", "--quiet", *more, source, destination)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def image(tmp_path: Path, blobs: BlobStore) -> NamedImage:
    return imported(layout_dir(tmp_path / "in", SAMPLE), blobs)[0]


@pytest.mark.parametrize("how", ["gzip", "zstd", "none"])
def test_skopeo_copies_our_layout_and_keeps_every_digest(tmp_path: Path, blobs: BlobStore, how: str) -> None:
    sample = Sample(how=(how, how))
    images = imported(layout_dir(tmp_path / "in", sample), blobs)
    write_oci_layout_dir(images, blobs, tmp_path / "out")
    write_oci_archive(images, blobs, tmp_path / "out.tar")
    assert skopeo("inspect", "--raw", f"oci:{tmp_path}/out:sample:1") == sample.manifest()
    assert skopeo("inspect", "--raw", f"oci-archive:{tmp_path}/out.tar") == sample.manifest()
    if how == "none":
        return  # skopeo compresses plain layers on its way into a layout
    copy(f"oci:{tmp_path}/out:sample:1", f"oci:{tmp_path}/copy:x")
    copy(f"oci-archive:{tmp_path}/out.tar:sample:1", f"oci:{tmp_path}/copy2:x")
    assert digests(tmp_path / "copy") == digests(tmp_path / "copy2") == digests(tmp_path / "in")
    assert imported(tmp_path / "copy", BlobStore(tmp_path / "again"))[0].manifest == images[0].manifest


def test_skopeo_reads_our_docker_archive(tmp_path: Path, blobs: BlobStore, image: NamedImage) -> None:
    out = tmp_path / "out.tar"
    write_docker_archive([image], blobs, out)
    assert skopeo("inspect", "--config", "--raw", f"docker-archive:{out}") == SAMPLE.config
    assert skopeo("inspect", "--config", "--raw", f"docker-archive:{out}:{NAME}") == SAMPLE.config
    copy(f"docker-archive:{out}", f"oci:{tmp_path}/copy:x")
    (back,) = imported(tmp_path / "copy", BlobStore(tmp_path / "again"))
    config = ImageConfig.parse(BlobStore(tmp_path / "again").read(back.manifest.config))  # which skopeo writes anew
    assert config.diff_ids == tuple(digest_of(tar) for tar in SAMPLE.tars)


def test_skopeo_reads_each_of_several(tmp_path: Path, blobs: BlobStore, image: NamedImage) -> None:
    other = imported(layout_dir(tmp_path / "other", Sample(how=("zstd", "gzip")), ref="quay.io/o/t:2"), blobs)[0]
    for form, transport in (
        (ArchiveFormat.OCI_DIR, "oci"),
        (ArchiveFormat.OCI_ARCHIVE, "oci-archive"),
        (ArchiveFormat.DOCKER_ARCHIVE, "docker-archive"),
    ):
        out = tmp_path / form
        write_images(form, [image, other], blobs, out)
        for each, name in ((image, "sample:1"), (other, "quay.io/o/t:2")):
            config = skopeo("inspect", "--config", "--raw", f"{transport}:{out}:{name}")
            assert digest_of(config) == each.manifest.config.digest


@pytest.mark.parametrize(
    ("transport", "form"), [("oci", "v2s2"), ("oci", "oci"), ("oci-archive", "oci"), ("docker-archive", "v2s2")]
)
def test_what_skopeo_writes_is_read(
    tmp_path: Path, blobs: BlobStore, image: NamedImage, transport: str, form: str
) -> None:
    write_oci_layout_dir([image], blobs, tmp_path / "ours")
    more = [] if transport == "docker-archive" else ["--format", form] if form == "oci" else []
    copy(f"oci:{tmp_path}/ours", f"{transport}:{tmp_path}/theirs:quay.io/a/b:3", *more)
    (back,) = imported(tmp_path / "theirs", BlobStore(tmp_path / "again"))
    assert back.names == ("quay.io/a/b:3",)
    assert back.manifest.config.digest == digest_of(SAMPLE.config)
    if transport == "docker-archive":  # layers come plain there
        assert [layer.digest for layer in back.manifest.layers] == [digest_of(tar) for tar in SAMPLE.tars]
    else:
        assert back.manifest == image.manifest


def test_round_and_round_a_docker_archive_keeps_the_image_id(tmp_path: Path, image: NamedImage) -> None:
    source = f"oci:{tmp_path}/in"
    for turn in range(2):
        copy(source, f"docker-archive:{tmp_path}/skopeo-{turn}.tar:{NAME}")
        store = BlobStore(tmp_path / f"store-{turn}")
        images = imported(tmp_path / f"skopeo-{turn}.tar", store)
        write_docker_archive(images, store, tmp_path / f"ours-{turn}.tar")
        source = f"docker-archive:{tmp_path}/ours-{turn}.tar"
        (back,) = images
        assert (back.names, back.manifest.config.digest) == (image.names, image.manifest.config.digest)
        assert [layer.digest for layer in back.manifest.layers] == [digest_of(tar) for tar in SAMPLE.tars]


def test_a_docker_manifest_stays_one(tmp_path: Path, blobs: BlobStore) -> None:
    sample = Sample(how=("gzip", "gzip"), docker=True)
    images = imported(layout_dir(tmp_path / "in", sample), blobs)
    write_oci_archive(images, blobs, tmp_path / "out.tar")
    assert skopeo("inspect", "--raw", f"oci-archive:{tmp_path}/out.tar") == sample.manifest()


@needs_umoci
def test_umoci_unpacks_our_layout(tmp_path: Path, blobs: BlobStore) -> None:
    sample = Sample(
        tars=(tar_of({"a": b"1", "b": b"2"}, links={"l": "a"}), tar_of({".wh.b": b"", "c": b"3"})),
        how=("gzip", "none"),
    )
    images = imported(layout_dir(tmp_path / "in", sample), blobs)
    write_oci_layout_dir(images, blobs, tmp_path / "out")
    unpack = ["umoci", "unpack", "--rootless", "--image", f"{tmp_path}/out:sample:1", str(tmp_path / "bundle")]
    subprocess.run(unpack, check=True, stdout=subprocess.DEVNULL)
    assert sorted(os.listdir(tmp_path / "bundle/rootfs")) == ["a", "c", "l"]


@needs_umoci
def test_what_umoci_makes_is_read_and_written(tmp_path: Path, blobs: BlobStore) -> None:
    layout, layer = tmp_path / "umoci", tmp_path / "layer.tar"
    layer.write_bytes(tar_of({"etc/motd": b"hello\n"}))
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("init", "--layout", layout),
        ("new", "--image", f"{layout}:v1"),
        ("raw", "add-layer", "--image", f"{layout}:v1", layer),
        ("config", "--image", f"{layout}:v1", "--config.cmd", "/bin/sh", "--config.user", "7"),
        ("tag", "--image", f"{layout}:v1", "v2"),
    )
    for words in commands:
        subprocess.run(["umoci", *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (image,) = imported(layout, blobs)
    assert image.names == ("docker.io/library/umoci:v1", "docker.io/library/umoci:v2")
    write_oci_layout_dir([image], blobs, tmp_path / "out")
    listed = subprocess.run(
        ["umoci", "ls", "--layout", tmp_path / "out"], check=True, stdout=subprocess.PIPE, text=True
    )
    assert listed.stdout.split() == ["umoci:v1", "umoci:v2"]
    stat = ["umoci", "stat", "--json", "--image", f"{tmp_path}/out:umoci:v2"]
    history = json.loads(subprocess.run(stat, check=True, stdout=subprocess.PIPE).stdout)["history"]
    assert [step["layer"]["digest"] for step in history if step.get("layer")] == [
        layer.digest for layer in image.manifest.layers
    ]
    write_oci_layout_dir([image], blobs, layout)  # into umoci's own layout: nothing new, and the names stay
    assert imported(layout, blobs) == (image,)


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_a_layer_more_on_a_docker_image_is_read_by_skopeo(tmp_path: Path, blobs: BlobStore, how: str) -> None:
    sample = Sample(how=("gzip", "gzip"), docker=True)
    (image,) = imported(layout_dir(tmp_path / "in", sample), blobs)
    tar = tar_of({"new": b"file"})
    layer = blobs.put_bytes(stored(tar, how), LAYER_MEDIA_TYPES[Compression(how)])
    base = ImageConfig.parse(blobs.read(image.manifest.config))
    config = base.with_layer(Digest.of(tar), created=datetime(2026, 1, 1, tzinfo=UTC), created_by="test")
    manifest = image.manifest.with_layer(blobs.put_bytes(config.raw), layer)
    write_oci_layout_dir([NamedImage(("new:1",), manifest)], blobs, tmp_path / "out")
    copy(f"oci:{tmp_path}/out:new:1", f"oci:{tmp_path}/copy:new:1")
    assert digests(tmp_path / "copy") == digests(tmp_path / "out")
    if how == "zstd":
        return  # skopeo puts no zstd layer into a docker archive
    copy(f"oci:{tmp_path}/out:new:1", f"docker-archive:{tmp_path}/theirs.tar:new:1")
    (back,) = imported(tmp_path / "theirs.tar", blobs)
    assert [each.digest for each in back.manifest.layers] == [digest_of(each) for each in (*sample.tars, tar)]
    assert back.manifest.config.digest == config.digest
