"""Media types: what the documents and layers of an image say that they are, in OCI's words and in Docker's.

Sources: image-spec media-types.md, and distribution's ``manifest-v2-2.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from layerfs.errors import Corrupt, Unsupported
from layerfs.image.documents import shown
from layerfs.layer.compression import Compression

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"

DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"
"""Not in Docker's own list; containerd writes and reads it (core/images/mediatypes.go)."""

INDEXES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})

_TO_OCI: Final = {
    DOCKER_INDEX: OCI_INDEX,
    DOCKER_MANIFEST: OCI_MANIFEST,
    DOCKER_CONFIG: OCI_CONFIG,
    DOCKER_LAYER: OCI_LAYER,
    DOCKER_LAYER_GZIP: OCI_LAYER_GZIP,
    DOCKER_LAYER_ZSTD: OCI_LAYER_ZSTD,
}
LAYER_MEDIA_TYPES: Final[Mapping[Compression, str]] = MappingProxyType(
    {Compression.NONE: OCI_LAYER, Compression.GZIP: OCI_LAYER_GZIP, Compression.ZSTD: OCI_LAYER_ZSTD}
)
"""What a new layer is called, by how it is stored."""
LAYERS: Final = frozenset(
    {OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_LAYER_ZSTD}
)
_FOREIGN: Final = (
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)
_ENCRYPTED: Final = "+encrypted"
_IMAGES_ONLY: Final = "layerfs keeps container images only"
_SCHEMA_1: Final = "application/vnd.docker.distribution.manifest.v1+"


class NotAnImage(Unsupported):
    """Report an artifact: something else that the forms of images carry, such as a chart or a signature."""


def as_oci(media_type: str) -> str:
    """Return OCI's name for what Docker's media type means; others are returned as they are."""
    return _TO_OCI.get(media_type, media_type)


def check_manifest(media_type: str, what: str) -> None:
    """Raise unless this is the media type of an image manifest: `Unsupported`, or `Corrupt` where it is none at all."""
    if media_type in MANIFESTS:
        return
    if media_type.startswith(_SCHEMA_1):
        raise Unsupported(
            f"{what} is a Docker manifest of schema 1, which has no digests of its layers' contents",
            hint="convert it with a current tool: skopeo copy --format oci docker://… oci:…",
        )
    if media_type in INDEXES:
        raise Corrupt(f"{what} is an index where the manifest of one image was expected")
    raise NotAnImage(f"{what} has the media type {shown(media_type)}, which is no image manifest")


def check_config(media_type: str, what: str) -> None:
    """Raise `NotAnImage` for a configuration that is not one of a container image: those belong to artifacts."""
    if media_type not in CONFIGS:
        raise NotAnImage(
            f"{what} is no container image but an artifact: its configuration has the media type {shown(media_type)}",
            hint=_IMAGES_ONLY,
        )


def check_layers(media_types: Sequence[str], what: str) -> None:
    """Raise `Unsupported` for layers that cannot be unpacked, and for none; `NotAnImage` where none is like a layer."""
    if not media_types:
        raise Unsupported(f"{what} has no layers, so there is no root file system in it")
    if not any(_is_like_layer(media_type) for media_type in media_types):
        raise NotAnImage(
            f"{what} is no container image: its layers have the unknown media type {shown(media_types[0])}",
            hint=_IMAGES_ONLY,
        )
    for place, media_type in enumerate(media_types):
        _check_layer(media_type, f"{what}: layers[{place}]")


def _is_like_layer(media_type: str) -> bool:
    return media_type in LAYERS or media_type.startswith(_FOREIGN) or media_type.endswith(_ENCRYPTED)


def _check_layer(media_type: str, what: str) -> None:
    if media_type.endswith(_ENCRYPTED):
        hint = "decrypt it first: skopeo copy --decryption-key KEY"
        raise Unsupported(f"{what} is encrypted ({shown(media_type)})", hint=hint)
    if media_type.startswith(_FOREIGN):
        raise Unsupported(
            f"{what} is foreign ({media_type}): it is not in the image, but to be fetched from its vendor",
            hint="foreign layers belong to Windows base images, which layerfs cannot hold",
        )
    if media_type not in LAYERS:
        raise Unsupported(f"{what} has the unknown media type {shown(media_type)}")
