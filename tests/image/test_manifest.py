"""Manifests, indexes and configurations: read strictly, kept byte for byte, changed deterministically."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from layerfs.errors import Corrupt, Unsupported
from layerfs.image import media_types
from layerfs.image.config import ContainerConfig, History, ImageConfig
from layerfs.image.descriptor import Descriptor
from layerfs.image.documents import Fields
from layerfs.image.manifest import Index, Manifest, is_attestation
from layerfs.image.platform import Platform
from layerfs.layer.digest import Digest, chain_id
from tests.image.samples import Json, Sample, descriptor, digest_of, encode

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LAYER = Descriptor.of(media_types.OCI_LAYER_ZSTD, b"layer")
DIFF_ID = Digest.of(b"tar")


@pytest.mark.parametrize("docker", [False, True])
def test_a_manifest_is_read_and_kept(docker: bool) -> None:  # noqa: FBT001  pytest passes parameters by name
    sample = Sample(docker=docker)
    manifest = Manifest.parse(sample.manifest(), sample.media_type)
    assert manifest.raw == sample.manifest()
    assert manifest.digest == digest_of(sample.manifest())
    assert manifest.media_type == sample.media_type
    assert manifest.config.digest == digest_of(sample.config)
    assert [layer.digest for layer in manifest.layers] == [digest_of(blob) for blob in sample.blobs]
    assert manifest.descriptor.size == len(sample.manifest())


def test_the_media_type_may_come_from_the_descriptor_only() -> None:
    raw = Sample().manifest(mediaType=None)  # as umoci writes it
    assert Manifest.parse(raw, media_types.OCI_MANIFEST).media_type == media_types.OCI_MANIFEST
    with pytest.raises(Corrupt, match="mediaType is missing"):
        Manifest.parse(raw)
    with pytest.raises(Corrupt, match=r"mediaType is .*manifest.v1.*, but its descriptor says .*manifest.v2"):
        Manifest.parse(Sample().manifest(), media_types.DOCKER_MANIFEST)


def _layer(**changes: Json) -> dict[str, Json]:
    return {**descriptor(media_types.OCI_LAYER, b"x"), **changes}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"schemaVersion": None}, Corrupt, "schemaVersion is missing"),
        ({"schemaVersion": 1}, Unsupported, "schemaVersion is 1"),
        ({"schemaVersion": "2"}, Corrupt, "schemaVersion is a string, not an integer"),
        ({"mediaType": 5}, Corrupt, "mediaType is an integer"),
        ({"mediaType": "text/html"}, Unsupported, "media type 'text/html', which is no image manifest"),
        ({"mediaType": media_types.OCI_INDEX}, Corrupt, "index where the manifest"),
        ({"manifests": []}, Corrupt, "manifests does not belong"),
        ({"fsLayers": []}, Corrupt, "fsLayers does not belong"),
        ({"config": None}, Corrupt, "config is missing"),
        ({"config": []}, Corrupt, "config is a list, not an object"),
        ({"config": {}}, Corrupt, r"config\.mediaType is missing"),
        ({"config": descriptor("application/vnd.oci.empty.v1+json", b"{}")}, Unsupported, "but an artifact"),
        ({"config": descriptor("application/vnd.cncf.helm.config.v1+json", b"{}")}, Unsupported, "helm"),
        ({"layers": None}, Corrupt, "layers is missing"),
        ({"layers": {}}, Corrupt, "layers is an object, not a list"),
        ({"layers": []}, Unsupported, "no layers"),
        ({"layers": [7]}, Corrupt, r"layers\[0\] is an integer, not an object"),
        ({"layers": [_layer(), _layer(digest="sha256:zz")]}, Corrupt, r"layers\[1\]\.digest is malformed"),
        ({"layers": [_layer(digest=None)]}, Corrupt, r"layers\[0\]\.digest is missing"),
        ({"layers": [_layer(digest="md5:0123")]}, Unsupported, r"layers\[0\]\.digest: .*'md5'"),
        ({"layers": [_layer(size=-1)]}, Corrupt, r"layers\[0\]\.size is -1"),
        ({"layers": [_layer(size="9")]}, Corrupt, r"layers\[0\]\.size is a string"),
        ({"layers": [_layer(mediaType="a/b")]}, Unsupported, "a/b"),
        ({"layers": [_layer(annotations={"a": 1})]}, Corrupt, r"layers\[0\]\.annotations\['a'\] is an integer"),
        ({"annotations": {"a": []}}, Corrupt, r"annotations\['a'\] is a list"),
        ({"Layers": []}, Corrupt, "upper and lower case"),
    ],
)
def test_manifests_that_are_refused(changes: dict[str, Json], error: type[Exception], words: str) -> None:
    raw = Sample().manifest(**changes)
    with pytest.raises(error, match=words) as caught:
        Manifest.parse(raw)
    assert digest_of(raw) in str(caught.value)


@pytest.mark.parametrize("docker", [False, True])
def test_a_layer_more_makes_an_oci_manifest(docker: bool) -> None:  # noqa: FBT001  pytest passes parameters by name
    sample = Sample(docker=docker)
    raw = sample.manifest(annotations={"b": "1"}, x={"unknown": 1.5}, subject=descriptor("a/b", b""))
    old = Manifest.parse(raw)
    config = Descriptor.of("", b"config")
    new = old.with_layer(config, LAYER)
    made = json.loads(new.raw)
    assert new.media_type == made["mediaType"] == media_types.OCI_MANIFEST
    assert made["config"] == {"mediaType": media_types.OCI_CONFIG, "digest": config.digest, "size": 6}
    assert [layer["mediaType"] for layer in made["layers"]] == [
        media_types.OCI_LAYER_GZIP,
        media_types.OCI_LAYER,
        media_types.OCI_LAYER_ZSTD,
    ]
    assert [layer.digest for layer in new.layers] == [*(layer.digest for layer in old.layers), LAYER.digest]
    assert made["annotations"] == {"b": "1"}
    assert made["x"] == {"unknown": 1.5}
    assert "subject" not in made
    assert old.with_layer(config, LAYER).raw == new.raw


def test_a_manifest_from_nothing() -> None:
    config = ImageConfig.build([DIFF_ID], platform=Platform("linux", "amd64"))
    manifest = Manifest.build(config.descriptor(), [LAYER], annotations={"b": "2", "a": "1"})
    assert json.loads(manifest.raw) == {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "config": descriptor(media_types.OCI_CONFIG, config.raw),
        "layers": [descriptor(media_types.OCI_LAYER_ZSTD, b"layer")],
        "annotations": {"a": "1", "b": "2"},
    }
    manifest.check_config(config)
    with pytest.raises(Corrupt, match=r"1 layers, but .* has 2 in rootfs.diff_ids"):
        manifest.check_config(ImageConfig.build([DIFF_ID, DIFF_ID], platform=Platform("linux", "amd64")))


def test_an_index_is_read() -> None:
    entries = [Sample().entry(platform={"os": "linux", "architecture": "arm64", "variant": "v8"}), Sample().entry()]
    for media_type in media_types.INDEXES:
        raw = encode({"schemaVersion": 2, "mediaType": media_type, "manifests": entries})
        index = Index.parse(raw)
        assert [entry.platform for entry in index.manifests] == [Platform("linux", "arm64"), None]
        assert Index.parse(Index.build(index.manifests).raw).manifests == index.manifests


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": []}, "layers does not belong"),
        ({"config": {}}, "config does not belong"),
        ({"manifests": "x"}, "manifests is a string"),
        ({"manifests": [{}]}, r"manifests\[0\].mediaType is missing"),
        ({"manifests": [{"mediaType": "a", "digest": digest_of(b""), "size": 0, "platform": 1}]}, "platform is an int"),
        ({"mediaType": media_types.OCI_MANIFEST}, "which is no index"),
    ],
)
def test_indexes_that_are_refused(changes: dict[str, Json], words: str) -> None:
    made = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [], **changes}
    with pytest.raises(Corrupt, match=words):
        Index.parse(encode(made))


def test_a_descriptor_survives_writing_and_reading() -> None:
    whole = Descriptor(
        media_types.OCI_MANIFEST, DIFF_ID, 1, {"b": "1", "a": "2"}, Platform("linux", "arm", "v7"), "application/x"
    )
    assert Descriptor.parse(Fields(whole.to_document(), "it")) == whole
    assert list(whole.to_document()["annotations"]) == ["a", "b"]
    assert len({whole, LAYER, whole}) == 2


def test_attestations_are_told() -> None:
    plain = Descriptor.of(media_types.OCI_MANIFEST, b"x")
    assert not is_attestation(plain)
    assert is_attestation(plain.with_annotations({"vnd.docker.reference.type": "attestation-manifest"}))
    assert is_attestation(replace(plain, artifact_type="application/spdx+json"))
    assert not is_attestation(replace(plain, artifact_type=media_types.OCI_CONFIG))


def test_a_configuration_is_read() -> None:
    sample = Sample(
        extra_config={
            "created": "2024-02-29T12:00:00.123456789Z",
            "author": "A",
            "variant": "v2",
            "config": {
                "Entrypoint": ["/e", "x"],
                "Cmd": None,
                "Env": ["A=1"],
                "WorkingDir": "/w",
                "User": "1:2",
                "Labels": {"k": "v"},
                "ExposedPorts": {"80/tcp": {}, "443/tcp": {}},
                "Volumes": {"/v": {}},
                "StopSignal": "SIGTERM",
                "Healthcheck": {"Test": ["NONE"]},
            },
            "history": [{"created_by": "a"}, {"created_by": "b", "empty_layer": True}, {"comment": "c", "author": "B"}],
        }
    )
    config = ImageConfig.parse(sample.config)
    assert config.raw == sample.config
    assert config.created == datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)
    assert config.config == ContainerConfig(
        entrypoint=("/e", "x"),
        env=("A=1",),
        workdir="/w",
        user="1:2",
        labels={"k": "v"},
        exposed_ports=("443/tcp", "80/tcp"),
        volumes=("/v",),
        stop_signal="SIGTERM",
    )
    assert config.history == (History(None, "a"), History(None, "b", empty_layer=True), History(None, "", "B", "c"))
    assert str(config.platform) == "linux/amd64/v2"
    first, second = (Digest.of(tar) for tar in sample.tars)
    assert config.diff_ids == (first, second)
    assert config.chain_ids == (first, chain_id(first, second))
    with pytest.raises(TypeError):
        config.config.labels["k"] = "w"  # type: ignore[index]  # the test is that it cannot be done


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rootfs": None}, "rootfs is missing"),
        ({"rootfs": {"type": "layers"}}, r"rootfs\.diff_ids is missing"),
        ({"rootfs": {"type": "layers", "diff_ids": "x"}}, r"rootfs\.diff_ids is a string, not a list"),
        ({"rootfs": {"type": "layers", "diff_ids": ["x"]}}, r"rootfs\.diff_ids\[0\] is malformed"),
        ({"rootfs": {"type": "layers", "diff_ids": [1]}}, r"rootfs\.diff_ids\[0\] is an integer"),
        ({"rootfs": {"type": "layers+base", "diff_ids": []}}, r"rootfs\.type is 'layers\+base', not 'layers'"),
        ({"rootfs": []}, "rootfs is a list"),
        ({"os": 5}, "os is an integer"),
        ({"created": "now"}, "created is malformed"),
        ({"config": []}, "config is a list"),
        ({"config": {"Env": "A=1"}}, r"config\.Env is a string, not a list"),
        ({"config": {"Env": [1]}}, r"config\.Env\[0\] is an integer"),
        ({"config": {"Entrypoint": "sh"}}, r"config\.Entrypoint is a string"),
        ({"config": {"Labels": ["a"]}}, r"config\.Labels is a list"),
        ({"config": {"User": 0}}, r"config\.User is an integer"),
        ({"history": {}}, "history is an object"),
        ({"history": [{"empty_layer": "yes"}]}, r"history\[0\]\.empty_layer is a string"),
        ({"history": [{"created": 7}]}, r"history\[0\]\.created is an integer"),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Json], words: str) -> None:
    with pytest.raises(Corrupt, match=words):
        ImageConfig.parse(Sample(extra_config=changes).config)


def test_a_layer_more_keeps_everything_else() -> None:
    strange = {"zzz": [1, 2.5, {"ü": None}], "container_config": {"Cmd": []}, "docker_version": "1.10"}
    old = ImageConfig.parse(Sample(extra_config=strange).config)
    new = old.with_layer(DIFF_ID, created=NOW, created_by="layerfs commit", author="me", comment="why")
    before, after = json.loads(old.raw), json.loads(new.raw)
    assert after.pop("created") == "2026-01-02T03:04:05Z"
    assert after.pop("author") == "me"
    assert after["history"].pop() == {
        "created": "2026-01-02T03:04:05Z",
        "created_by": "layerfs commit",
        "author": "me",
        "comment": "why",
    }
    assert after["rootfs"]["diff_ids"].pop() == DIFF_ID
    assert after == before
    assert list(after) == list(before)
    assert new.diff_ids == (*old.diff_ids, DIFF_ID)
    assert new.raw == old.with_layer(DIFF_ID, created=NOW, created_by="layerfs commit", author="me", comment="why").raw


def test_a_layer_on_a_configuration_without_history() -> None:
    new = ImageConfig.parse(Sample(extra_config={"history": None}).config).with_layer(DIFF_ID, created=NOW)
    assert [entry.created for entry in new.history] == [NOW]


def test_a_configuration_from_nothing() -> None:
    config = ImageConfig.build(
        [DIFF_ID],
        platform=Platform.parse("linux/arm/v6"),
        created=NOW,
        author="me",
        config=ContainerConfig(cmd=("/bin/sh",), env=("A=ü",), labels={"b": "2", "a": "1"}, volumes=("/v",)),
        history=[History(NOW, "made", comment="c"), History(created_by="later", empty_layer=True)],
    )
    assert json.loads(config.raw) == {
        "created": "2026-01-02T03:04:05Z",
        "author": "me",
        "architecture": "arm",
        "os": "linux",
        "variant": "v6",
        "config": {"Env": ["A=ü"], "Cmd": ["/bin/sh"], "Volumes": {"/v": {}}, "Labels": {"a": "1", "b": "2"}},
        "rootfs": {"type": "layers", "diff_ids": [DIFF_ID]},
        "history": [
            {"created": "2026-01-02T03:04:05Z", "created_by": "made", "comment": "c"},
            {"created_by": "later", "empty_layer": True},
        ],
    }
    assert ImageConfig.parse(config.raw) == config
    assert config.descriptor().media_type == media_types.OCI_CONFIG
