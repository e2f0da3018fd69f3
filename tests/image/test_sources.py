"""Images in: what each kind of archive gives, and every way in which one can be wrong."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from layerfs.errors import Corrupt, InvalidArgument, LayerfsError, NotFound, Unsupported
from layerfs.image import archive_files, media_types
from layerfs.image.blobs import BlobStore
from layerfs.image.files import ArchiveFormat
from layerfs.image.manifest import NamedImage
from layerfs.image.platform import Platform
from layerfs.image.sources import open_source
from layerfs.layer.digest import Digest
from tests.image.samples import (
    Json,
    Sample,
    descriptor,
    digest_of,
    docker_files,
    encode,
    imported,
    layout_dir,
    layout_files,
    stored,
    tar_of,
    write_dir,
    write_tar,
)

SAMPLE = Sample()
INDEX = "index.json"


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def images(path: Path, platform: str = "") -> tuple[NamedImage, ...]:
    with open_source(path) as source:
        return source.images(Platform.parse(platform) if platform else None)


def sample_files(*, ref: str = "docker.io/library/sample:1") -> dict[str, bytes]:
    return layout_files([SAMPLE.entry(ref=ref)], SAMPLE.all_blobs)


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("how", [("gzip", "none"), ("none", "gzip")])
def test_an_oci_layout(tmp_path: Path, blobs: BlobStore, how: tuple[str, str], *, docker: bool) -> None:
    sample = Sample(docker=docker, how=how)
    (image,) = imported(layout_dir(tmp_path / "in", sample), blobs)
    assert image.names == ("docker.io/library/sample:1",)
    assert image.manifest.raw == sample.manifest()
    assert {Digest.of(blob) for blob in sample.all_blobs} == set(blobs.digests())


def test_zstd_layers(tmp_path: Path, blobs: BlobStore) -> None:
    (image,) = imported(layout_dir(tmp_path / "in", Sample(how=("zstd", "zstd"))), blobs)
    assert {layer.media_type for layer in image.manifest.layers} == {media_types.OCI_LAYER_ZSTD}


def pack_plain(data: bytes) -> bytes:
    return data


@pytest.mark.parametrize("pack", [pack_plain, gzip.compress, zstandard.ZstdCompressor().compress])
@pytest.mark.parametrize("form", ["oci", "docker"])
def test_archives_and_compressed_archives(
    tmp_path: Path, blobs: BlobStore, pack: Callable[[bytes], bytes], form: str
) -> None:
    files = sample_files() if form == "oci" else docker_files(SAMPLE)
    path = tmp_path / "in"
    path.write_bytes(pack(tar_of(files)))
    with open_source(path, scratch=tmp_path) as source:
        assert source.format == (ArchiveFormat.OCI_ARCHIVE if form == "oci" else ArchiveFormat.DOCKER_ARCHIVE)
    (image,) = imported(path, blobs)
    assert image.names == ("docker.io/library/sample:1",)
    assert image.manifest.config.digest == digest_of(SAMPLE.config)
    assert [path.name for path in tmp_path.iterdir() if path.name not in {"in", "blobs"}] == []


def test_an_archive_through_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    data = tar_of(sample_files())
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    (image,) = images(path)
    writer.join()
    assert image.manifest.raw == SAMPLE.manifest()


def test_names_with_a_dot_before_them(tmp_path: Path) -> None:
    files = {f"./{name}": data for name, data in sample_files().items()}
    assert len(images(write_tar(tmp_path / "in.tar", files))) == 1


def test_a_docker_archive_gets_a_manifest(tmp_path: Path, blobs: BlobStore) -> None:
    (image,) = imported(write_tar(tmp_path / "in.tar", docker_files(SAMPLE)), blobs)
    assert image.manifest.media_type == media_types.OCI_MANIFEST
    assert blobs.read(image.manifest.config) == SAMPLE.config
    gzipped, plain = image.manifest.layers
    assert (gzipped.media_type, gzipped.digest) == (media_types.OCI_LAYER_GZIP, digest_of(SAMPLE.blobs[0]))
    assert (plain.media_type, plain.digest) == (media_types.OCI_LAYER, digest_of(SAMPLE.tars[1]))
    assert images(tmp_path / "in.tar") == (image,)


def test_a_docker_archive_whose_layers_are_links(tmp_path: Path, blobs: BlobStore) -> None:
    sample = Sample(tars=(SAMPLE.tars[0], SAMPLE.tars[0]), how=("none", "none"))
    config = f"{digest_of(sample.config)[7:]}.json"
    layers = ["a/layer.tar", "b/layer.tar"]
    record = {"Config": config, "RepoTags": None, "Layers": layers}
    files = {"a/layer.tar": sample.tars[0], config: sample.config, "manifest.json": encode([record])}
    (image,) = imported(write_tar(tmp_path / "in.tar", files, links={"b/layer.tar": "../a/layer.tar"}), blobs)
    assert image.names == ()
    assert [layer.digest for layer in image.manifest.layers] == [digest_of(sample.tars[0])] * 2


def test_docker_archives_with_several_images(tmp_path: Path) -> None:
    other = Sample(architecture="arm64")
    files = docker_files(SAMPLE) | docker_files(other)
    records = [
        {"Config": f"{digest_of(sample.config)[7:]}.json", "RepoTags": tags, "Layers": layers}
        for sample, tags in ((SAMPLE, ["a:1", "b"]), (other, ["c"]), (SAMPLE, ["d/e:f"]))
        if (layers := [f"{digest_of(tar)[7:]}/layer.tar" for tar in sample.tars])
    ]
    found = images(write_tar(tmp_path / "in.tar", files | {"manifest.json": encode(records)}))
    assert [image.names for image in found] == [
        ("docker.io/library/a:1", "docker.io/library/b:latest", "docker.io/d/e:f"),
        ("docker.io/library/c:latest",),
    ]


def test_an_archive_that_is_both_is_read_as_oci(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "in.tar", docker_files(SAMPLE) | sample_files())  # as `docker save` since Docker 25
    with open_source(path) as source:
        assert source.format is ArchiveFormat.OCI_ARCHIVE


def test_layers_in_long_and_large_headers(tmp_path: Path, blobs: BlobStore) -> None:
    name = "l" * 150 + "/layer.tar"
    sample = Sample(tars=SAMPLE.tars[:1], how=("none",))
    record = {"Config": "c.json", "RepoTags": [], "Layers": [name]}
    files = {name: sample.tars[0], "c.json": sample.config, "manifest.json": encode([record])}
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{form}.tar"
        with tarfile.open(path, "w", format=form, pax_headers={"comment": "global"}) as archive:
            for each, data in files.items():
                info = tarfile.TarInfo(each)
                info.size = len(data)
                info.pax_headers = {"size": str(len(data))}
                archive.addfile(info, io.BytesIO(data))
        assert len(imported(path, blobs)) == 1


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotations", "names"),
    [
        ({}, ()),
        ({"org.opencontainers.image.ref.name": "latest"}, ("docker.io/library/my-image-2:latest",)),
        ({"org.opencontainers.image.ref.name": "debian:12"}, ("docker.io/library/debian:12",)),
        ({"org.opencontainers.image.ref.name": "quay.io/a/b"}, ("quay.io/a/b:latest",)),
        ({"org.opencontainers.image.ref.name": "NO/NAME:x"}, ()),
        (
            {"org.opencontainers.image.ref.name": "1", "io.containerd.image.name": "docker.io/a/b:1"},
            ("docker.io/a/b:1",),
        ),
    ],
)
def test_names_of_a_layout(tmp_path: Path, annotations: dict[str, str], names: tuple[str, ...]) -> None:
    entry = {**SAMPLE.entry(), "annotations": annotations}
    path = write_tar(tmp_path / "My image_2.oci.tar.gz", layout_files([entry], SAMPLE.all_blobs))
    assert images(path)[0].names == names


def test_one_image_with_two_names(tmp_path: Path) -> None:
    entries = [SAMPLE.entry(ref="b:1"), SAMPLE.entry(ref="a:1"), SAMPLE.entry(ref="b:1")]
    (image,) = images(write_dir(tmp_path / "in", layout_files(entries, SAMPLE.all_blobs)))
    assert image.names == ("docker.io/library/a:1", "docker.io/library/b:1")


def test_one_name_for_two_images_is_refused(tmp_path: Path) -> None:
    other = Sample(architecture="arm64")
    blobs = (*SAMPLE.all_blobs, *other.all_blobs)
    twice = layout_files([SAMPLE.entry(ref="a:1"), other.entry(ref="a:1")], blobs)
    with pytest.raises(Corrupt, match=r"gives the name docker.io/library/a:1 to 2 images"):
        images(write_dir(tmp_path / "1", twice))
    partly = layout_files([SAMPLE.entry(ref="a:1"), other.entry(ref="a:1"), other.entry(ref="b:1")], blobs)
    with pytest.raises(Corrupt, match=r"gives the name docker.io/library/a:1 to several images"):
        images(write_dir(tmp_path / "2", partly))


def test_images_without_names_stay_apart(tmp_path: Path) -> None:
    other = Sample(architecture="arm64")
    files = layout_files([SAMPLE.entry(), other.entry()], (*SAMPLE.all_blobs, *other.all_blobs))
    assert [image.names for image in images(write_dir(tmp_path / "in", files))] == [(), ()]


# --- platforms --------------------------------------------------------------------------------------------------------

ARCHITECTURES = ("amd64", "arm64", "s390x")
SAMPLES = {name: Sample(architecture=name) for name in ARCHITECTURES}
ALL_BLOBS = [blob for sample in SAMPLES.values() for blob in sample.all_blobs]


def stated(name: str) -> dict[str, Json]:
    return SAMPLES[name].entry(platform={"os": "linux", "architecture": name})


def index_of(*entries: Json, media_type: str = media_types.OCI_INDEX) -> bytes:
    return encode({"schemaVersion": 2, "mediaType": media_type, "manifests": list(entries)})


def several_platforms(shape: str) -> dict[str, bytes]:
    """Return the files of a layout with one image for three platforms, in one of the shapes that occur."""
    entries = [stated(name) for name in ARCHITECTURES]
    attestation = {**SAMPLE.entry(), "platform": {"os": "unknown", "architecture": "unknown"}}
    attestation["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    if shape == "flat":
        return layout_files(entries, ALL_BLOBS)
    if shape == "unstated":
        inner = index_of(*(SAMPLES[name].entry() for name in ARCHITECTURES))
    elif shape == "docker":
        inner = index_of(*entries, media_type=media_types.DOCKER_INDEX)
    elif shape == "nested":
        innermost = index_of(*entries[1:])
        inner = index_of(attestation, entries[0], descriptor(media_types.OCI_INDEX, innermost))
        return layout_files([descriptor(media_types.OCI_INDEX, inner)], [*ALL_BLOBS, inner, innermost])
    else:
        inner = index_of(attestation, *entries, stated("amd64"))
    media_type = media_types.DOCKER_INDEX if shape == "docker" else media_types.OCI_INDEX
    return layout_files([descriptor(media_type, inner)], [*ALL_BLOBS, inner])


@pytest.mark.parametrize("shape", ["flat", "unstated", "docker", "nested", "attested"])
def test_the_platform_chooses(tmp_path: Path, shape: str) -> None:
    path = write_dir(tmp_path / "in", several_platforms(shape))
    for name in ARCHITECTURES:
        (image,) = images(path, f"linux/{name}")
        assert image.manifest.raw == SAMPLES[name].manifest()
    if (host := Platform.host().architecture) in SAMPLES:
        assert images(path)[0].manifest.raw == SAMPLES[host].manifest()
    with pytest.raises(NotFound, match="no image for linux/riscv64: it has linux/amd64, linux/arm64, linux/s390x"):
        images(path, "linux/riscv64")


def test_an_older_variant_does_and_the_newest_is_taken(tmp_path: Path) -> None:
    entries = [
        {**SAMPLES[name].entry(), "platform": {"os": "linux", "architecture": "arm", "variant": variant}}
        for name, variant in (("amd64", "v5"), ("arm64", "v6"), ("s390x", "v8"))
    ]
    path = write_dir(tmp_path / "in", layout_files(entries, ALL_BLOBS))
    assert images(path, "linux/arm/v7")[0].manifest.raw == SAMPLES["arm64"].manifest()


def test_a_single_image_is_taken_whatever_it_is_for(tmp_path: Path) -> None:
    sample = SAMPLES["s390x"]
    for path in (layout_dir(tmp_path / "in", sample), write_tar(tmp_path / "in.tar", docker_files(sample))):
        assert images(path)
        assert images(path, "linux/s390x")
        with pytest.raises(NotFound, match="linux/s390x"):
            images(path, "linux/amd64")


def test_artifacts_inside_an_index_are_passed_over(tmp_path: Path) -> None:
    chart = SAMPLE.manifest(config=descriptor("application/vnd.cncf.helm.config.v1+json", b"{}"))
    entry = descriptor(media_types.OCI_MANIFEST, chart)
    unknown = descriptor("application/x", b"")
    for entries, found in (([unknown, entry, SAMPLES["amd64"].entry()], True), ([unknown, entry], False)):
        inner = index_of(*entries)
        files = layout_files([descriptor(media_types.OCI_INDEX, inner)], [inner, chart, *ALL_BLOBS])
        path = write_dir(tmp_path / str(found), files)
        if found:
            assert images(path, "linux/amd64")[0].manifest.raw == SAMPLES["amd64"].manifest()
        else:
            with pytest.raises(Unsupported, match="helm"):
                images(path, "linux/amd64")


def test_indexes_without_end_are_refused(tmp_path: Path) -> None:
    inner = [index_of()]
    for _ in range(150):
        inner.append(index_of(descriptor(media_types.OCI_INDEX, inner[-1])))
    files = layout_files([descriptor(media_types.OCI_INDEX, inner[-1])], inner)
    with pytest.raises(Corrupt, match="more than 100 indexes"):
        images(write_dir(tmp_path / "in", files))


def test_the_same_index_again_and_again_is_read_once(tmp_path: Path) -> None:
    inner = [index_of(stated("amd64"))]
    for _ in range(20):
        inner.append(index_of(*[descriptor(media_types.OCI_INDEX, inner[-1])] * 20))
    files = layout_files([descriptor(media_types.OCI_INDEX, inner[-1])], [*inner, *ALL_BLOBS])
    assert len(images(write_dir(tmp_path / "in", files), "linux/amd64")) == 1


# --- what is no image -------------------------------------------------------------------------------------------------


def artifact(**changes: Json) -> tuple[dict[str, Json], bytes]:
    raw = SAMPLE.manifest(**changes)
    return descriptor(media_types.OCI_MANIFEST, raw), raw


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": descriptor("application/vnd.cncf.helm.config.v1+json", b"{}")}, "but an artifact: .*helm"),
        ({"layers": [descriptor("application/vnd.dev.cosign.simplesigning.v1+json", b"")]}, "cosign"),
    ],
)
def test_artifacts_are_refused_alone_and_passed_over_beside_images(
    tmp_path: Path, changes: dict[str, Json], words: str
) -> None:
    entry, raw = artifact(**changes)
    with pytest.raises(Unsupported, match=words):
        images(write_dir(tmp_path / "alone", layout_files([entry], [raw])))
    both = layout_files([entry, SAMPLE.entry()], [raw, *SAMPLE.all_blobs])
    assert len(images(write_dir(tmp_path / "both", both))) == 1


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({}, InvalidArgument, "holds no image"),
        ({"a": b"b"}, InvalidArgument, "holds no image"),
        ({"repositories": b"{}"}, Unsupported, "before 1.10"),
        ({"oci-layout": b"{}"}, Corrupt, "imageLayoutVersion is missing"),
        ({"oci-layout": b'{"imageLayoutVersion":"9.0"}'}, Unsupported, "unknown version '9.0'"),
        ({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}, Corrupt, "has no index.json"),
        (layout_files([], []), Unsupported, "holds no images"),
        ({**sample_files(), INDEX: b"{}"}, Corrupt, "index.json of .*: schemaVersion is missing"),
        ({**sample_files(), INDEX: b"x"}, Corrupt, "index.json of .* is no JSON"),
        ({**sample_files(), INDEX: b" " * (5 << 20)}, Corrupt, "index.json of .* more than"),
        ({"manifest.json": b"{}"}, Corrupt, "no list of images"),
        ({"manifest.json": b"[]"}, Corrupt, "no list of images"),
        ({"manifest.json": b"[1]"}, Corrupt, r"\[0\] is an integer, not an object"),
        ({"manifest.json": b"[{}]"}, Corrupt, r"\[0\]\.Config is missing"),
        ({"manifest.json": b'[{"Config":"x"}]'}, Corrupt, "has no x"),
        ({"manifest.json": b'[{"Config":"../x"}]'}, Corrupt, r"\[0\]\.Config leads out of the archive"),
        ({"manifest.json": b'[{"Config":"/etc/passwd"}]'}, Corrupt, "leads out"),
        ({"manifest.json": b'[{"Config":""}]'}, Corrupt, "leads out"),
    ],
)
def test_archives_that_are_refused(
    tmp_path: Path, files: dict[str, bytes], error: type[LayerfsError], words: str
) -> None:
    with pytest.raises(error, match=words):
        images(write_tar(tmp_path / "in.tar", files))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Layers": None}, r"\[0\]\.Layers is missing"),
        ({"Layers": "x"}, r"\[0\]\.Layers is a string, not a list"),
        ({"Layers": [1, 2]}, r"\[0\]\.Layers\[0\] is an integer"),
        ({"Layers": []}, r"Layers has 0 layers, but the configuration .* has 2"),
        ({"Layers": ["a", "b", "c"]}, r"Layers has 3 layers"),
        ({"Layers": ["a", "b"]}, r"\[0\]\.Layers\[0\] names a, which is not in the archive"),
        ({"Layers": ["../../etc/passwd", "b"]}, r"\[0\]\.Layers\[0\] leads out"),
        ({"RepoTags": "x"}, r"\[0\]\.RepoTags is a string"),
        ({"RepoTags": ["good", "No Good"]}, r"\[0\]\.RepoTags\[1\] is malformed"),
        ({"Config": "other.json"}, "no JSON document"),
        ({"Config": "0" * 64 + ".json"}, "has other bytes than its name says"),
    ],
)
def test_docker_archives_that_are_refused(tmp_path: Path, changes: dict[str, Json], words: str) -> None:
    files = docker_files(SAMPLE)
    record = {"Config": f"{digest_of(SAMPLE.config)[7:]}.json", "RepoTags": [], "Layers": [], **changes}
    if "Layers" not in changes:
        record["Layers"] = [f"{digest_of(tar)[7:]}/layer.tar" for tar in SAMPLE.tars]
    files |= {"manifest.json": encode([record]), "other.json": b"]", "0" * 64 + ".json": SAMPLE.config}
    with pytest.raises(Corrupt, match=words):
        images(write_tar(tmp_path / "in.tar", files))


def test_more_docker_archives_that_are_refused(tmp_path: Path) -> None:
    files = docker_files(SAMPLE)
    (record,) = json.loads(files["manifest.json"])
    other = docker_files(Sample(architecture="arm64"))
    (other_record,) = json.loads(other["manifest.json"])
    with pytest.raises(Corrupt, match="gives the name docker.io/library/sample:1 to several"):  # noqa: RUF043  a name
        images(write_tar(tmp_path / "1", {**files, **other, "manifest.json": encode([record, other_record])}))
    with pytest.raises(Corrupt, match="has 10001 images"):
        images(write_tar(tmp_path / "2", {"manifest.json": encode([{}] * 10_001)}))
    with pytest.raises(Unsupported, match="no root file system"):
        images(write_tar(tmp_path / "3", docker_files(Sample(tars=(), how=()))))
    with open_source(write_tar(tmp_path / "4", files)) as source, pytest.raises(NotFound):
        source.open(Digest.of(b"another"))


@pytest.mark.parametrize(
    ("links", "words"),
    [
        ({"b/layer.tar": "../../outside"}, "leads out"),
        ({"b/layer.tar": "/etc/passwd"}, "leads out"),
        ({"b/layer.tar": "layer.tar"}, "does not end"),
        ({"b/layer.tar": "../c", "c": "b/layer.tar"}, "does not end"),
        ({"b/layer.tar": "../nowhere"}, "which is not in the archive"),
    ],
)
def test_links_that_lead_astray_are_refused(tmp_path: Path, links: dict[str, str], words: str) -> None:
    sample = Sample(tars=SAMPLE.tars[:1], how=("none",))
    record = {"Config": "c.json", "RepoTags": [], "Layers": ["b/layer.tar"]}
    files = {"c.json": sample.config, "manifest.json": encode([record])}
    with pytest.raises(Corrupt, match=words):
        images(write_tar(tmp_path / "in.tar", files, links=links))


def test_a_document_that_is_a_link_is_refused(tmp_path: Path) -> None:
    files = sample_files()
    index = files.pop(INDEX)
    path = write_tar(tmp_path / "in.tar", files | {"real": index}, links={INDEX: "real"})
    with pytest.raises(Unsupported, match=r"index.json in .* is no regular file"):
        images(path)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"])
def test_other_types_of_entries_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("strange")
    info.type = kind
    info.linkname = "oci-layout"
    path = tmp_path / "in.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + tar_of(sample_files()))
    with pytest.raises(Unsupported, match=r"strange in .* is a hard link, a device or of another type"):
        images(path)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", ".."])
def test_entries_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Corrupt, match="leads out"):
        images(write_tar(tmp_path / "in.tar", {name: b"x", **sample_files()}))


@pytest.mark.parametrize("name", [INDEX, "oci-layout", "./index.json", "index.json/"])
def test_a_document_twice_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "in.tar"
    path.write_bytes(tar_of({name: b"{}"})[:1024] + tar_of(sample_files()))
    with pytest.raises(Corrupt, match="twice"):
        images(path)


def test_of_a_blob_twice_the_last_counts(tmp_path: Path, blobs: BlobStore) -> None:
    name = f"blobs/sha256/{digest_of(SAMPLE.blobs[0])[7:]}"
    good = tar_of(sample_files())
    path = tmp_path / "in.tar"
    path.write_bytes(tar_of({name: b"wrong"})[:1024] + good)
    assert imported(path, blobs)
    path.write_bytes(good[: len(good.rstrip(b"\0")) // 512 * 512 + 512] + tar_of({name: b"wrong"}))
    (blobs.root / name.removeprefix("blobs/")).unlink()
    with pytest.raises(Corrupt, match="is cut off"):
        imported(path, blobs)


def test_truncated_archives_are_refused_at_every_length(tmp_path: Path, blobs: BlobStore) -> None:
    whole = tar_of(sample_files())
    used = len(whole.rstrip(b"\0"))
    path = tmp_path / "in.tar"
    for length in (0, 1, 511, *range(512, used, 512), *range(600, used, 1999)):
        path.write_bytes(whole[:length])
        with pytest.raises((Corrupt, InvalidArgument, NotFound)):
            imported(path, blobs)


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    data = bytearray(tar_of(sample_files()))
    data[1024 + 20] ^= 1
    path = tmp_path / "in.tar"
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="damaged at byte 1024"):
        images(path)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (b"x", "malformed extended header"),
        (b"99 path=x\n", "malformed extended header"),
        (b"0 path=x\n", "malformed extended header"),
        (b"10 pathxx\n", "malformed extended header"),
        (b"11 size=-1\n", "malformed size"),
        (b"12 size=1e9\n", "malformed size"),
        (b"26 size=99999999999999999\n", "cut off"),
        (b"22 GNU.sparse.major=1\n", "sparse"),
        (b"14 path=../../x\n"[:14] + b"\n", "malformed extended header"),
        (b"15 path=../../x\n", "malformed extended header"),
        (b"16 path=../../x\n", "leads out"),
    ],
)
def test_extended_headers_that_are_refused(tmp_path: Path, record: bytes, words: str) -> None:
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    info.size = len(record)
    path = tmp_path / "in.tar"
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + tar_of(sample_files()))
    with pytest.raises((Corrupt, Unsupported), match=words):
        images(path)


def test_a_huge_extended_header_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type = tarfile.GNUTYPE_LONGNAME
    info.size = archive_files.MAX_EXTENSION + 1
    path = tmp_path / "in.tar"
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(2 << 20))
    with pytest.raises(Corrupt, match="extended header of 1048577 bytes"):
        images(path)


def test_a_negative_size_is_refused(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 12
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "in.tar"
    path.write_bytes(bytes(header) + tar_of(sample_files()))
    with pytest.raises(Corrupt, match="malformed size"):
        images(path)


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_files, "MAX_ENTRIES", 3)
    with pytest.raises(Corrupt, match="more than 3 entries"):
        images(write_tar(tmp_path / "in.tar", sample_files()))


# --- what is damaged --------------------------------------------------------------------------------------------------


def without(blob: bytes) -> dict[str, bytes]:
    files = sample_files()
    del files[f"blobs/sha256/{digest_of(blob)[7:]}"]
    return files


def with_other(blob: bytes, other: bytes) -> dict[str, bytes]:
    return sample_files() | {f"blobs/sha256/{digest_of(blob)[7:]}": other}


@pytest.mark.parametrize("how", ["directory", "archive"])
@pytest.mark.parametrize("which", range(4))
def test_missing_and_wrong_blobs(tmp_path: Path, blobs: BlobStore, which: int, how: str) -> None:
    blob = SAMPLE.all_blobs[which]
    write = write_dir if how == "directory" else write_tar
    with pytest.raises(NotFound, match=digest_of(blob)[7:]):
        imported(write(tmp_path / "missing", without(blob)), blobs)
    with pytest.raises(Corrupt, match=f"{digest_of(blob)}.*is cut off"):
        imported(write(tmp_path / "short", with_other(blob, blob[:-1])), blobs)
    with pytest.raises(Corrupt, match=f"{digest_of(blob)}.*more than"):
        imported(write(tmp_path / "long", with_other(blob, blob + b"x")), blobs)
    with pytest.raises(Corrupt, match=f"{digest_of(blob)}.*other bytes"):
        imported(write(tmp_path / "other", with_other(blob, blob[:-1] + b"~")), blobs)
    assert Digest(digest_of(blob)) not in set(blobs.digests())


def test_a_layer_of_a_docker_archive_that_is_not_its_diff_id(tmp_path: Path, blobs: BlobStore) -> None:
    files = docker_files(SAMPLE)
    name = f"{digest_of(SAMPLE.tars[1])[7:]}/layer.tar"
    files[name] = files[name].replace(b"#!", b"##")
    with pytest.raises(Corrupt, match="other bytes"):
        imported(write_tar(tmp_path / "in.tar", files), blobs)


@pytest.mark.parametrize("magic", [b"BZh91AY", b"\xfd7zXZ\0"])
def test_archives_of_other_compressions_are_named(tmp_path: Path, magic: bytes) -> None:
    path = tmp_path / "in"
    path.write_bytes(magic * 100)
    with pytest.raises(Unsupported, match=r"compressed by (bzip2|xz)"):
        images(path)


def test_a_damaged_compressed_archive(tmp_path: Path) -> None:
    path = tmp_path / "in.tar.gz"
    path.write_bytes(gzip.compress(tar_of(sample_files()))[:-20])
    with pytest.raises(Corrupt, match=r"in\.tar\.gz: the gzip stream is truncated"):
        images(path)


def test_paths_that_are_no_archives(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        images(tmp_path / "missing")
    text = tmp_path / "text"
    text.write_text("no tar\n" * 1000)
    with pytest.raises(InvalidArgument, match="is no tar archive"):
        images(text)
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/manifest.json").write_text("{}")
    with pytest.raises(Unsupported, match="dir:"):
        images(tmp_path / "dir")


def test_links_and_devices_in_a_directory_are_refused(tmp_path: Path) -> None:
    path = layout_dir(tmp_path / "in", SAMPLE)
    blob = path / "blobs/sha256" / digest_of(SAMPLE.manifest())[7:]
    blob.rename(tmp_path / "outside")
    blob.symlink_to(tmp_path / "outside")
    with pytest.raises(Unsupported, match="is a symbolic link"):
        images(path)
    blob.unlink()
    os.mkfifo(blob)
    with pytest.raises(Unsupported, match="is no regular file"):
        images(path)
    blob.unlink()
    (path / "blobs").rename(tmp_path / "blobs-outside")
    (path / "blobs").symlink_to(tmp_path / "blobs-outside")
    with pytest.raises(Unsupported, match="is a symbolic link"):
        images(path)


def test_nothing_stays_open(tmp_path: Path) -> None:
    good = write_tar(tmp_path / "good.tar", sample_files())
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(stored(good.read_bytes(), "gzip"))
    bad = write_tar(tmp_path / "bad.tar", {"a": b""})
    before = len(os.listdir("/proc/self/fd"))
    for path in (good, packed, layout_dir(tmp_path / "dir", SAMPLE)):
        images(path)
    for path in (bad, tmp_path / "missing", tmp_path):
        with pytest.raises(LayerfsError):
            images(path)
    assert len(os.listdir("/proc/self/fd")) == before
