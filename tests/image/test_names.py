"""References, platforms and media types: the words of images."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfs.errors import Corrupt, InvalidArgument, Unsupported
from layerfs.image import media_types
from layerfs.image.platform import Platform
from layerfs.image.reference import Reference, familiar, normalize

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full", "short"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:12", "docker.io/library/debian:12", "debian:12"),
        ("a/b", "docker.io/a/b:latest", "a/b:latest"),
        ("library/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("index.docker.io/a/b:c", "docker.io/a/b:c", "a/b:c"),
        ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
        ("localhost:5000/a:b", "localhost:5000/a:b", "localhost:5000/a:b"),
        ("ghcr.io/x/y-z.w__v:1.2_3-4", "ghcr.io/x/y-z.w__v:1.2_3-4", "ghcr.io/x/y-z.w__v:1.2_3-4"),
        ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
        ("Registry/a", "Registry/a:latest", "Registry/a:latest"),
        (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}", f"debian@{DIGEST}"),
        (f"a/b:c@{DIGEST}", f"docker.io/a/b:c@{DIGEST}", f"a/b:c@{DIGEST}"),
        ("a---b", "docker.io/library/a---b:latest", "a---b:latest"),
    ],
)
def test_names_are_normalised_as_docker_does(text: str, full: str, short: str) -> None:
    assert normalize(text) == full
    assert familiar(full) == short
    assert normalize(short) == full
    assert Reference.parse(full) == Reference.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "Debian",
        "a/B",
        "a:",
        ":a",
        "a@",
        "a@sha256:12",
        "a@sha512:" + "0" * 128,
        "a b",
        "a\n",
        "a/",
        "/a",
        "a//b",
        "a..b",
        "a___b",
        "-a",
        "a-",
        "a:-b",
        "a:" + "t" * 129,
        "x" * 256,
        "x" * 100_000,
        "0123456789abcdef" * 4,
        "a:b:c",
        "ä",
        "../a",
        "a/../b",
        "exa mple.com/a",
        "-x.com/a",
        "a:b/c:d/e",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Reference.parse(text)
    assert len(caught.value.message) < 600


@given(st.text(alphabet="abA0./:@-_[]", max_size=30))
def test_a_name_that_is_read_is_read_the_same_again(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidArgument:
        return
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar) == reference


def test_tags_are_checked() -> None:
    assert str(Reference.parse("a@" + DIGEST).with_tag("b")) == "docker.io/library/a:b"
    with pytest.raises(InvalidArgument):
        Reference.parse("a").with_tag("b/c")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("linux/amd64", "linux/amd64"),
        ("amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("Linux/AArch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/i686", "linux/386"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_platforms_have_one_name(text: str, shown: str) -> None:
    assert str(Platform.parse(text)) == shown


@pytest.mark.parametrize("text", ["", "/", "linux/", "a/b/c/d", "linux/a b", "linux/amd64/", "x" * 65])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("linux/amd64", ["linux/amd64"]),
        ("linux/amd64/v3", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"]),
        ("linux/arm/v7", ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
        ("linux/arm64", ["linux/arm64"]),
        ("linux/s390x", ["linux/s390x"]),
    ],
)
def test_a_platform_runs_what_was_before_it(text: str, accepted: list[str]) -> None:
    assert [str(platform) for platform in Platform.parse(text).accepts()] == accepted


def test_the_host_has_a_platform() -> None:
    host = Platform.host()
    assert host.os == "linux"
    assert Platform.parse(str(host)) == host


@pytest.mark.parametrize(
    ("layers", "error", "words"),
    [
        ([], Unsupported, "no layers"),
        (["text/plain"], media_types.NotAnImage, "no container image: .*'text/plain'"),
        ([media_types.OCI_LAYER, "text/plain"], Unsupported, r"layers\[1\] has the unknown media type 'text/plain'"),
        (["application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"], Unsupported, r"layers\[0\] is foreign"),
        (["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"], Unsupported, r"layers\[0\] is foreign"),
        ([media_types.OCI_LAYER + "+gzip+encrypted"], Unsupported, r"layers\[0\] is encrypted"),
    ],
)
def test_layers_that_cannot_be_unpacked_are_refused(layers: list[str], error: type[Unsupported], words: str) -> None:
    with pytest.raises(error, match=words):
        media_types.check_layers(layers, "it")


def test_what_is_no_manifest_is_refused() -> None:
    for media_type in media_types.MANIFESTS:
        media_types.check_manifest(media_type, "it")
    with pytest.raises(Unsupported, match="schema 1"):
        media_types.check_manifest("application/vnd.docker.distribution.manifest.v1+prettyjws", "it")
    with pytest.raises(Corrupt, match="index"):
        media_types.check_manifest(media_types.OCI_INDEX, "it")
    with pytest.raises(media_types.NotAnImage):
        media_types.check_manifest("application/vnd.oci.artifact.manifest.v1+json", "it")
