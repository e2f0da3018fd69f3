"""Descriptors: how one document of an image names another blob (image-spec descriptor.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from layerfs.image.documents import Fields
from layerfs.image.platform import Platform
from layerfs.layer.digest import Digest

_NONE: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Name a blob: what it is, its digest, and its size in bytes.

    ``platform`` is what an index says of one of its images; ``artifact_type`` is what an artifact says of itself.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=lambda: _NONE, hash=False)
    platform: Platform | None = None
    artifact_type: str = ""

    @classmethod
    def of(cls, media_type: str, data: bytes) -> Descriptor:
        """Return the descriptor of these bytes."""
        return cls(media_type, Digest.of(data), len(data))

    @classmethod
    def parse(cls, fields: Fields) -> Descriptor:
        """Read a descriptor out of a document; raise `Corrupt` that names the field at fault."""
        platform = fields.child("platform")
        return cls(
            fields.text("mediaType"),
            fields.digest("digest"),
            fields.integer("size"),
            fields.text_map("annotations"),
            parse_platform(platform) if platform else None,
            fields.text("artifactType", ""),
        )

    def with_annotations(self, annotations: Mapping[str, str]) -> Descriptor:
        """Return this descriptor with further annotations."""
        return replace(self, annotations=MappingProxyType({**self.annotations, **annotations}))

    def to_document(self) -> dict[str, Any]:
        """Return it as a document's object: the required fields first, annotations sorted."""
        made: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.annotations:
            made["annotations"] = dict(sorted(self.annotations.items()))
        if self.platform is not None:
            made["platform"] = {"architecture": self.platform.architecture, "os": self.platform.os}
            if self.platform.variant:
                made["platform"]["variant"] = self.platform.variant
        if self.artifact_type:
            made["artifactType"] = self.artifact_type
        return made


def parse_platform(fields: Fields) -> Platform:
    """Return the platform that an index's entry or a configuration states, "" where it states none."""
    return Platform.make(fields.text("os", ""), fields.text("architecture", ""), fields.text("variant", ""))
