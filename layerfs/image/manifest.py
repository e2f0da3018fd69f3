"""Manifests and indexes: the documents that name the blobs of an image, and the images of a set.

Sources: image-spec manifest.md and image-index.md; distribution's ``manifest-v2-2.md`` for Docker's forms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from layerfs.errors import Corrupt, Unsupported
from layerfs.image import media_types
from layerfs.image.config import ContainerConfig, History, ImageConfig
from layerfs.image.descriptor import Descriptor
from layerfs.image.documents import Fields, parse_document, shown, write_document
from layerfs.layer.digest import Digest

__all__ = ["ContainerConfig", "History", "ImageConfig", "Index", "Manifest", "NamedImage", "is_attestation"]

_SCHEMA_VERSION: Final = 2
_ATTESTATION: Final = "vnd.docker.reference.type"
"""BuildKit's annotation of what accompanies an image in its index (buildkit docs/attestations)."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of an image: its configuration, and its layers from the lowest up; ``raw`` is byte for byte."""

    raw: bytes = field(repr=False)
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(hash=False)

    @classmethod
    def parse(cls, raw: bytes, media_type: str | None = None, what: str = "") -> Manifest:
        """Read a manifest; ``media_type`` is what the descriptor that led here says, where there is one.

        Raise `Corrupt` that names the field at fault, and `Unsupported` for an artifact, for no layers, and for layers
        that cannot be unpacked: foreign, encrypted, of unknown media type.
        """
        what = what or f"manifest {Digest.of(raw)}"
        fields = Fields.parse(raw, what)
        kind = _media_type(fields, media_type)
        media_types.check_manifest(kind, what)
        _check_version(fields, foreign=("manifests", "fsLayers"))
        config = fields.child("config")
        if config is None:
            raise Corrupt(f"{fields.name('config')} is missing")
        manifest = cls(
            raw,
            kind,
            Descriptor.parse(config),
            tuple(Descriptor.parse(layer) for layer in fields.children("layers", required=True)),
            fields.text_map("annotations"),
        )
        media_types.check_config(manifest.config.media_type, what)
        media_types.check_layers([layer.media_type for layer in manifest.layers], what)
        return manifest

    @classmethod
    def build(
        cls, config: Descriptor, layers: Iterable[Descriptor], *, annotations: Mapping[str, str] | None = None
    ) -> Manifest:
        """Make an OCI manifest; media types of Docker become OCI's, and the same arguments make the same bytes."""
        made: dict[str, Any] = {
            "schemaVersion": _SCHEMA_VERSION,
            "mediaType": media_types.OCI_MANIFEST,
            "config": _as_oci(config).to_document(),
            "layers": [_as_oci(layer).to_document() for layer in layers],
        }
        if annotations:
            made["annotations"] = dict(sorted(annotations.items()))
        return cls.parse(write_document(made))

    @property
    def digest(self) -> Digest:
        """Return the digest of the document."""
        return Digest.of(self.raw)

    @property
    def descriptor(self) -> Descriptor:
        """Return the descriptor by which an index names this manifest."""
        return Descriptor.of(self.media_type, self.raw)

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Return every blob that it names: the configuration, then the layers; what is named twice comes twice."""
        return (self.config, *self.layers)

    def with_layer(self, config: Descriptor, layer: Descriptor) -> Manifest:
        """Return the manifest of this image with one layer more and another configuration.

        It is OCI's whatever this one is: zstd layers exist there only, and digests of blobs do not change by it. So
        ``config`` needs no media type. Annotations and unknown fields stay; ``subject`` goes, for the new
        image does not refer to what the old one did.
        """
        made = parse_document(self.raw, "manifest")
        made.pop("subject", None)
        made["mediaType"] = media_types.OCI_MANIFEST
        made["config"] = replace(config, media_type=media_types.OCI_CONFIG).to_document()
        for old in made["layers"]:
            old["mediaType"] = media_types.as_oci(old["mediaType"])
        made["layers"].append(_as_oci(layer).to_document())
        return Manifest.parse(write_document(made))

    def check_config(self, config: ImageConfig) -> None:
        """Raise `Corrupt` unless the configuration has one DiffID for each layer."""
        if len(config.diff_ids) != len(self.layers):
            raise Corrupt(
                f"manifest {self.digest} has {len(self.layers)} layers, "
                f"but its configuration {self.config.digest} has {len(config.diff_ids)} in rootfs.diff_ids"
            )


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image that comes or goes: its names, which may be none, and its manifest."""

    names: tuple[str, ...]
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Index:
    """A set of manifests and further indexes; ``raw`` is byte for byte."""

    raw: bytes = field(repr=False)
    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(hash=False)

    @classmethod
    def parse(cls, raw: bytes, media_type: str | None = None, what: str = "") -> Index:
        """Read an index; raise `Corrupt` that names the field at fault.

        One that does not say what it is, and is not named by a descriptor, is OCI's: an index.json (image-layout.md).
        """
        what = what or f"index {Digest.of(raw)}"
        fields = Fields.parse(raw, what)
        default = None if fields.has("mediaType") else media_types.OCI_INDEX
        kind = _media_type(fields, media_type or default)
        if kind not in media_types.INDEXES:
            raise Corrupt(f"{what} has the media type {shown(kind)}, which is no index")
        _check_version(fields, foreign=("layers", "config", "fsLayers"))
        manifests = tuple(Descriptor.parse(entry) for entry in fields.children("manifests", required=True))
        return cls(raw, kind, manifests, fields.text_map("annotations"))

    @classmethod
    def build(cls, manifests: Iterable[Descriptor]) -> Index:
        """Make an OCI index of these manifests, in their order."""
        made = {
            "schemaVersion": _SCHEMA_VERSION,
            "mediaType": media_types.OCI_INDEX,
            "manifests": [manifest.to_document() for manifest in manifests],
        }
        return cls.parse(write_document(made))


def is_attestation(descriptor: Descriptor) -> bool:
    """Tell whether an index's entry accompanies an image (a signature, a bill of materials) and is none itself."""
    if _ATTESTATION in descriptor.annotations:
        return True
    return descriptor.artifact_type not in {"", media_types.OCI_CONFIG, media_types.DOCKER_CONFIG}


def _media_type(fields: Fields, expected: str | None) -> str:
    """Return what the document is: what it says itself, else what led to it says, and both if both do."""
    own = fields.text("mediaType", "")
    if own and expected and own != expected:
        raise Corrupt(f"{fields.name('mediaType')} is {shown(own)}, but its descriptor says {shown(expected)}")
    if not own and not expected:
        raise Corrupt(f"{fields.name('mediaType')} is missing")
    return own or expected or ""


def _check_version(fields: Fields, foreign: tuple[str, ...]) -> None:
    version = fields.integer("schemaVersion")
    if version != _SCHEMA_VERSION:
        raise Unsupported(f"{fields.name('schemaVersion')} is {version}: only {_SCHEMA_VERSION} is supported")
    for name in foreign:
        if fields.has(name):  # GHSA-77vh-xpmg-72qh: one document that is a manifest to some and an index to others
            raise Corrupt(f"{fields.name(name)} does not belong into a document of this media type")


def _as_oci(descriptor: Descriptor) -> Descriptor:
    return replace(descriptor, media_type=media_types.as_oci(descriptor.media_type))
