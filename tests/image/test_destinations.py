"""Images out: byte for byte, the same bytes each time, and nothing left where it fails."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from layerfs.errors import AlreadyExists, Corrupt, InvalidArgument, LayerfsError, NoSpace, NotFound, Unsupported
from layerfs.events import Progress
from layerfs.image.blobs import BlobStore
from layerfs.image.destinations import write_docker_archive, write_images, write_oci_archive, write_oci_layout_dir
from layerfs.image.files import ArchiveFormat
from layerfs.image.manifest import NamedImage
from layerfs.layer.digest import Digest
from tests.image.samples import (
    Json,
    Sample,
    descriptor,
    digest_of,
    digests,
    encode,
    imported,
    layout_dir,
    layout_files,
    tar_of,
    write_dir,
)

SAMPLE = Sample(how=("gzip", "zstd"))
OTHER = Sample(tars=(SAMPLE.tars[0], tar_of({"x": b"y"})), how=("gzip", "none"))
NAME = "docker.io/library/sample:1"


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def image(tmp_path: Path, blobs: BlobStore) -> NamedImage:
    return imported(layout_dir(tmp_path / "in", SAMPLE), blobs)[0]


@pytest.fixture
def other(tmp_path: Path, blobs: BlobStore) -> NamedImage:
    return imported(layout_dir(tmp_path / "other", OTHER, ref="quay.io/o/t:2"), blobs)[0]


def left(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.name not in {"blobs", "in", "other"})


def entries(path: Path) -> list[dict[str, Json]]:
    found: list[dict[str, Json]] = json.loads((path / "index.json").read_bytes())["manifests"]
    return found


@pytest.mark.parametrize("form", [ArchiveFormat.OCI_DIR, ArchiveFormat.OCI_ARCHIVE])
def test_an_unchanged_image_comes_out_as_it_came_in(
    tmp_path: Path, blobs: BlobStore, image: NamedImage, form: ArchiveFormat
) -> None:
    write_images(form, [image], blobs, tmp_path / "out")
    if form is ArchiveFormat.OCI_ARCHIVE:
        (tmp_path / "unpacked").mkdir()
        subprocess.run(["tar", "-xf", tmp_path / "out", "-C", tmp_path / "unpacked"], check=True)
    path = tmp_path / ("out" if form is ArchiveFormat.OCI_DIR else "unpacked")
    assert digests(path) == digests(tmp_path / "in")
    assert json.loads((path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = entries(path)
    assert entry == descriptor(
        SAMPLE.media_type,
        SAMPLE.manifest(),
        annotations={"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": "sample:1"},
        platform={"architecture": "amd64", "os": "linux"},
    )
    assert imported(tmp_path / "out", BlobStore(tmp_path / "again")) == (image,)


@pytest.mark.parametrize("form", list(ArchiveFormat))
def test_the_same_images_make_the_same_bytes(
    tmp_path: Path, blobs: BlobStore, image: NamedImage, other: NamedImage, form: ArchiveFormat
) -> None:
    for name in ("1", "2"):
        write_images(form, [image, other], blobs, tmp_path / name)
    if form is ArchiveFormat.OCI_DIR:
        subprocess.run(["diff", "-r", tmp_path / "1", tmp_path / "2"], check=True)
    else:
        assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_docker_archive(tmp_path: Path, blobs: BlobStore, image: NamedImage, other: NamedImage) -> None:
    untagged = NamedImage((*image.names, f"a@sha256:{'0' * 64}"), image.manifest)
    write_docker_archive([untagged, other], blobs, tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar") as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        data = {name: file.read() for name, file in files.items() if file}
        assert {(m.uid, m.gid, m.mtime, m.mode) for m in archive.getmembers()} == {(0, 0, 0, 0o644)}
    assert data.pop(f"{digest_of(SAMPLE.config)[7:]}.json") == SAMPLE.config
    assert data.pop(f"{digest_of(OTHER.config)[7:]}.json") == OTHER.config
    records = json.loads(data.pop("manifest.json"))
    assert [record["RepoTags"] for record in records] == [["sample:1"], ["quay.io/o/t:2"]]
    assert records[0]["Layers"] == [f"{digest_of(tar)[7:]}.tar" for tar in SAMPLE.tars]
    assert records[0]["Config"] == f"{digest_of(SAMPLE.config)[7:]}.json"
    assert data == {f"{digest_of(tar)[7:]}.tar": tar for tar in (*SAMPLE.tars, *OTHER.tars)}
    assert data.keys() == {f"{digest_of(tar)[7:]}.tar" for tar in {*SAMPLE.tars, *OTHER.tars}}

    store = BlobStore(tmp_path / "again")
    back = imported(tmp_path / "out.tar", store)
    assert [each.names for each in back] == [image.names, other.names]
    assert [each.manifest.config.digest for each in back] == [digest_of(SAMPLE.config), digest_of(OTHER.config)]


def test_an_image_without_names(tmp_path: Path, blobs: BlobStore, image: NamedImage) -> None:
    nameless = NamedImage((), image.manifest)
    for form in ArchiveFormat:
        write_images(form, [nameless], blobs, tmp_path / form)
        (back,) = imported(tmp_path / form, BlobStore(tmp_path / "again"))
        assert back.names == ()
    assert "annotations" not in entries(tmp_path / "oci-dir")[0]


def test_an_image_given_twice_is_written_once(tmp_path: Path, blobs: BlobStore, image: NamedImage) -> None:
    again = NamedImage((NAME, "docker.io/a/b:c"), image.manifest)
    for form in ArchiveFormat:
        write_images(form, [image, again], blobs, tmp_path / form)
        (back,) = imported(tmp_path / form, BlobStore(tmp_path / "again"))
        assert set(back.names) == {NAME, "docker.io/a/b:c"}


@pytest.mark.parametrize("form", list(ArchiveFormat))
def test_no_images_and_shared_names_are_refused(
    tmp_path: Path, blobs: BlobStore, image: NamedImage, other: NamedImage, form: ArchiveFormat
) -> None:
    with pytest.raises(InvalidArgument, match="no images"):
        write_images(form, [], blobs, tmp_path / "out")
    with pytest.raises(InvalidArgument, match="is given to two images"):
        write_images(form, [image, NamedImage(("sample:1",), other.manifest)], blobs, tmp_path / "out")
    assert left(tmp_path) == []


@pytest.mark.parametrize("form", list(ArchiveFormat))
@pytest.mark.parametrize("damage", ["missing", "other bytes", "cut off"])
def test_a_damaged_store_makes_no_export(
    tmp_path: Path, blobs: BlobStore, image: NamedImage, form: ArchiveFormat, damage: str
) -> None:
    path = blobs.path(image.manifest.layers[1].digest)
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-1] + (b"~" if damage == "other bytes" else b""))
    with pytest.raises((Corrupt, NotFound)):
        write_images(form, [image], blobs, tmp_path / "out")
    assert left(tmp_path) == []


def test_a_layer_that_is_not_its_diff_id_makes_no_docker_archive(tmp_path: Path, blobs: BlobStore) -> None:
    sample = Sample(extra_config={"rootfs": {"type": "layers", "diff_ids": [digest_of(b""), digest_of(b"x")]}})
    (image,) = imported(layout_dir(tmp_path / "in", sample), blobs)
    with pytest.raises(Corrupt, match="unpacks to"):
        write_docker_archive([image], blobs, tmp_path / "out.tar")
    assert left(tmp_path) == []


@pytest.mark.parametrize("form", list(ArchiveFormat))
def test_what_is_there_is_left_alone(tmp_path: Path, blobs: BlobStore, image: NamedImage, form: ArchiveFormat) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "dir", "link"):
        with pytest.raises(AlreadyExists, match="is there already"):
            write_images(form, [image], blobs, tmp_path / name)
    assert left(tmp_path) == ["dir", "file", "link"]
    assert (tmp_path / "dir/file").read_text() == (tmp_path / "file").read_text() == "mine"


def test_an_empty_directory_is_filled(tmp_path: Path, blobs: BlobStore, image: NamedImage) -> None:
    (tmp_path / "out").mkdir()
    write_oci_layout_dir([image], blobs, tmp_path / "out")
    assert digests(tmp_path / "out") == digests(tmp_path / "in")


def test_an_empty_directory_is_empty_again_after_a_failure(
    tmp_path: Path, blobs: BlobStore, image: NamedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    blob = blobs.path(image.manifest.layers[1].digest)
    data = blob.read_bytes()
    blob.unlink()
    with pytest.raises(NotFound):
        write_oci_layout_dir([image], blobs, Path())
    assert os.listdir() == []
    blob.write_bytes(data)
    write_oci_layout_dir([image], blobs, Path())
    assert digests(Path()) == digests(tmp_path / "in")


def test_an_image_that_does_not_say_its_platform(tmp_path: Path, blobs: BlobStore) -> None:
    sample = Sample(extra_config={"os": None, "architecture": None})
    images = imported(layout_dir(tmp_path / "in", sample), blobs)
    write_oci_layout_dir(images, blobs, tmp_path / "out")
    assert "platform" not in entries(tmp_path / "out")[0]


def test_a_place_that_is_not_there(tmp_path: Path, blobs: BlobStore, image: NamedImage) -> None:
    for form in ArchiveFormat:
        with pytest.raises(NotFound):
            write_images(form, [image], blobs, tmp_path / "no/such/place")


# --- into a layout that is there --------------------------------------------------------------------------------------


def test_an_image_is_added_to_a_layout(tmp_path: Path, blobs: BlobStore, image: NamedImage, other: NamedImage) -> None:
    out = write_dir(tmp_path / "out", layout_files([SAMPLE.entry(ref="sample:1")], SAMPLE.all_blobs))
    index = json.loads((out / "index.json").read_bytes())
    index["x"] = "unknown"
    index["manifests"][0]["y"] = ["kept"]
    (out / "index.json").write_bytes(encode(index))
    write_oci_layout_dir([other], blobs, out)
    kept, added = entries(out)
    assert kept == index["manifests"][0]
    assert added["digest"] == digest_of(OTHER.manifest())
    assert json.loads((out / "index.json").read_bytes())["x"] == "unknown"
    assert digests(out) == {Digest.of(blob) for blob in (*SAMPLE.all_blobs, *OTHER.all_blobs)}
    assert {each.names for each in imported(out, BlobStore(tmp_path / "again"))} == {image.names, other.names}


@pytest.mark.parametrize("ref", ["sample:1", NAME, "docker.io/sample:1"])
def test_a_name_goes_to_the_new_image(tmp_path: Path, blobs: BlobStore, other: NamedImage, ref: str) -> None:
    out = write_dir(tmp_path / "out", layout_files([SAMPLE.entry(ref=ref)], SAMPLE.all_blobs))
    write_oci_layout_dir([NamedImage((NAME,), other.manifest)], blobs, out)
    assert [entry["digest"] for entry in entries(out)] == [digest_of(OTHER.manifest())]


def test_a_bare_tag_goes_to_the_new_image(tmp_path: Path, blobs: BlobStore, other: NamedImage) -> None:
    out = write_dir(tmp_path / "sample", layout_files([SAMPLE.entry(ref="1"), SAMPLE.entry()], SAMPLE.all_blobs))
    write_oci_layout_dir([NamedImage((NAME,), other.manifest)], blobs, out)
    assert [entry["digest"] for entry in entries(out)] == [digest_of(SAMPLE.manifest()), digest_of(OTHER.manifest())]


def test_what_is_added_again_changes_nothing(tmp_path: Path, blobs: BlobStore, image: NamedImage) -> None:
    out = tmp_path / "out"
    for nameless in (NamedImage((), image.manifest), image):
        write_oci_layout_dir([nameless], blobs, out)
        before = (out / "index.json").read_bytes()
        write_oci_layout_dir([nameless], blobs, out)
        assert (out / "index.json").read_bytes() == before
        assert len(entries(out)) == 1


def test_a_failed_addition_takes_back_what_it_added(
    tmp_path: Path, blobs: BlobStore, image: NamedImage, other: NamedImage
) -> None:
    out = tmp_path / "out"
    write_oci_layout_dir([image], blobs, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    blobs.remove(other.manifest.layers[1].digest)
    with pytest.raises(NotFound):
        write_oci_layout_dir([other], blobs, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_layout_that_is_not_understood_is_left_alone(tmp_path: Path, blobs: BlobStore, image: NamedImage) -> None:
    newer = write_dir(tmp_path / "newer", {"oci-layout": b'{"imageLayoutVersion":"2.0"}', "index.json": b"{}"})
    with pytest.raises(Unsupported, match="version"):
        write_oci_layout_dir([image], blobs, newer)
    broken = write_dir(tmp_path / "broken", {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": b"{}"})
    with pytest.raises(Corrupt, match="schemaVersion"):
        write_oci_layout_dir([image], blobs, broken)
    assert sorted(os.listdir(broken)) == sorted(os.listdir(newer)) == ["index.json", "oci-layout"]


# --- into other things ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [ArchiveFormat.OCI_ARCHIVE, ArchiveFormat.DOCKER_ARCHIVE])
def test_an_archive_through_a_pipe(tmp_path: Path, blobs: BlobStore, image: NamedImage, form: ArchiveFormat) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_images(form, [image], blobs, pipe)
    reader.join()
    write_images(form, [image], blobs, tmp_path / "file")
    assert read == [(tmp_path / "file").read_bytes()]


def test_progress_ends_with_every_layer(tmp_path: Path, blobs: BlobStore, image: NamedImage) -> None:
    for form in ArchiveFormat:
        events: list[Progress] = []
        write_images(form, [image], blobs, tmp_path / form, listener=events.append)
        assert {event.action for event in events} == {"export"}
        done = {event.item for event in events if event.done == event.total}
        assert done >= {layer.digest for layer in image.manifest.layers}


@pytest.mark.root
@pytest.mark.parametrize("form", list(ArchiveFormat))
def test_a_full_disk_says_so_and_leaves_nothing(tmp_path: Path, blobs: BlobStore, form: ArchiveFormat) -> None:
    large = Sample(tars=(tar_of({"large": os.urandom(2 << 20)}),), how=("gzip",))
    (image,) = imported(layout_dir(tmp_path / "in", large), blobs)
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(full)], check=True)
    try:
        with pytest.raises(NoSpace):
            write_images(form, [image], blobs, full / "out")
        assert os.listdir(full) == []
    finally:
        subprocess.run(["umount", str(full)], check=True)


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, blobs: BlobStore, image: NamedImage) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    for write in (write_oci_layout_dir, write_oci_archive, write_docker_archive):
        with pytest.raises(KeyboardInterrupt):
            write([image], blobs, tmp_path / "out", listener=interrupt)
    assert left(tmp_path) == []


def test_no_descriptor_leaks(tmp_path: Path, blobs: BlobStore, image: NamedImage) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for form in ArchiveFormat:
        write_images(form, [image], blobs, tmp_path / form)
    blobs.remove(image.manifest.layers[0].digest)
    for form in ArchiveFormat:
        with pytest.raises(LayerfsError):
            write_images(form, [image], blobs, tmp_path / f"again-{form}")
    assert len(os.listdir("/proc/self/fd")) == before
