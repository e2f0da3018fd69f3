"""The configuration of an image: what runs in it, and the layers and history that its root is made of.

Source: image-spec config.md; Docker's is the same with more fields, which are kept and not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from layerfs.errors import Corrupt
from layerfs.image import media_types
from layerfs.image.descriptor import Descriptor
from layerfs.image.documents import Fields, format_time, parse_document, shown, write_document
from layerfs.image.platform import Platform
from layerfs.layer.digest import Digest, chain_id

_NONE: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """What a container of the image runs, and how: the fields of ``config`` that layerfs knows.

    ``entrypoint`` and ``cmd`` are words of a command, ``env`` holds "NAME=value", ``workdir`` is an absolute path or
    "", ``user`` is "user", "uid", "user:group" or "". ``exposed_ports`` ("80/tcp") and ``volumes`` are sorted.
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: _NONE, hash=False)
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""

    @classmethod
    def parse(cls, fields: Fields) -> ContainerConfig:
        """Read the object ``config`` of a configuration."""
        return cls(
            fields.texts("Entrypoint"),
            fields.texts("Cmd"),
            fields.texts("Env"),
            fields.text("WorkingDir", ""),
            fields.text("User", ""),
            fields.text_map("Labels"),
            tuple(sorted(fields.keys("ExposedPorts"))),
            tuple(sorted(fields.keys("Volumes"))),
            fields.text("StopSignal", ""),
        )

    def to_document(self) -> dict[str, Any]:
        """Return it as a document's object, without what is empty."""
        made: dict[str, Any] = {
            "User": self.user,
            "ExposedPorts": {port: {} for port in sorted(self.exposed_ports)},
            "Env": list(self.env),
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.cmd),
            "Volumes": {volume: {} for volume in sorted(self.volumes)},
            "WorkingDir": self.workdir,
            "Labels": dict(sorted(self.labels.items())),
            "StopSignal": self.stop_signal,
        }
        return {key: value for key, value in made.items() if value}


@dataclass(frozen=True, slots=True)
class History:
    """Tell how a layer was made; one with ``empty_layer`` made none."""

    created: datetime | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False

    @classmethod
    def parse(cls, fields: Fields) -> History:
        """Read one entry of ``history``."""
        return cls(
            fields.time("created"),
            fields.text("created_by", ""),
            fields.text("author", ""),
            fields.text("comment", ""),
            fields.boolean("empty_layer"),
        )

    def to_document(self) -> dict[str, Any]:
        """Return it as a document's object, without what is empty."""
        made: dict[str, Any] = {} if self.created is None else {"created": format_time(self.created)}
        texts = {"created_by": self.created_by, "author": self.author, "comment": self.comment}
        made.update({key: value for key, value in texts.items() if value})
        if self.empty_layer:
            made["empty_layer"] = True
        return made


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The configuration of an image; ``raw`` is the document byte for byte, and the digest of ``raw`` the image's id.

    ``diff_ids`` are the layers from the lowest up. ``architecture`` and ``os`` are as written, "" where they are not.
    """

    raw: bytes = field(repr=False)
    architecture: str
    os: str
    variant: str
    created: datetime | None
    author: str
    config: ContainerConfig
    diff_ids: tuple[Digest, ...]
    history: tuple[History, ...]

    @classmethod
    def parse(cls, raw: bytes, what: str = "image configuration") -> ImageConfig:
        """Read a configuration; raise `Corrupt` that names the document and the field at fault."""
        fields = Fields.parse(raw, what)
        config = fields.child("config")
        return cls(
            raw,
            fields.text("architecture", ""),
            fields.text("os", ""),
            fields.text("variant", ""),
            fields.time("created"),
            fields.text("author", ""),
            ContainerConfig.parse(config) if config else ContainerConfig(),
            _diff_ids(fields),
            tuple(History.parse(entry) for entry in fields.children("history")),
        )

    @classmethod
    def build(
        cls,
        diff_ids: Iterable[Digest],
        *,
        platform: Platform,
        created: datetime | None = None,
        author: str = "",
        config: ContainerConfig | None = None,
        history: Sequence[History] = (),
    ) -> ImageConfig:
        """Make the configuration of a new image; the same arguments make the same bytes."""
        made: dict[str, Any] = {} if created is None else {"created": format_time(created)}
        if author:
            made["author"] = author
        made |= {"architecture": platform.architecture, "os": platform.os}
        if platform.variant:
            made["variant"] = platform.variant
        made["config"] = (config or ContainerConfig()).to_document()
        made["rootfs"] = {"type": "layers", "diff_ids": [str(diff_id) for diff_id in diff_ids]}
        if history:
            made["history"] = [entry.to_document() for entry in history]
        return cls.parse(write_document(made))

    @property
    def digest(self) -> Digest:
        """Return the digest of the document: what Docker calls the image's id."""
        return Digest.of(self.raw)

    @property
    def platform(self) -> Platform:
        """Return what the image runs on, under its usual name."""
        return Platform.make(self.os, self.architecture, self.variant)

    @property
    def chain_ids(self) -> tuple[Digest, ...]:
        """Return the ChainID of every layer, from the lowest up."""
        return _chain_ids(self.diff_ids)

    def descriptor(self, media_type: str = media_types.OCI_CONFIG) -> Descriptor:
        """Return the descriptor by which a manifest names this configuration."""
        return Descriptor.of(media_type, self.raw)

    def with_layer(
        self, diff_id: Digest, *, created: datetime, created_by: str = "", author: str = "", comment: str = ""
    ) -> ImageConfig:
        """Return the configuration of this image with one layer more; everything else in it is kept, known or not.

        ``created`` becomes the image's too, and so does ``author`` where there is one. The same arguments make the
        same bytes.
        """
        made = parse_document(self.raw, "image configuration")
        entry = History(created, created_by, author, comment)
        made["created"] = format_time(created)
        if author:
            made["author"] = author
        made["rootfs"]["diff_ids"].append(str(diff_id))
        made["history"] = [*(made.get("history") or []), entry.to_document()]
        return ImageConfig.parse(write_document(made))


def _diff_ids(fields: Fields) -> tuple[Digest, ...]:
    rootfs = fields.child("rootfs")
    if rootfs is None:
        raise Corrupt(f"{fields.name('rootfs')} is missing")
    kind = rootfs.text("type")
    if kind != "layers":
        raise Corrupt(f"{rootfs.name('type')} is {shown(kind)}, not 'layers'")
    return rootfs.digests("diff_ids")


@lru_cache(maxsize=64)
def _chain_ids(diff_ids: tuple[Digest, ...]) -> tuple[Digest, ...]:
    """Compute them once an image: a clone asks three times, and 128 layers are 128 digests."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(chain_id(chain[-1] if chain else None, diff_id))
    return tuple(chain)
