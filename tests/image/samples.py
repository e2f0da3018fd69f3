"""Small real images for the tests, and the archives they come in, with every knob for what can be wrong in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from layerfs.image import media_types
from layerfs.image.blobs import BlobStore
from layerfs.image.manifest import NamedImage
from layerfs.image.sources import open_source
from layerfs.layer.digest import Digest

Json = Any
"""What a test writes into a document, right or wrong."""


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def encode(value: Json) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def tar_of(files: Mapping[str, bytes], *, links: Mapping[str, str] | None = None) -> bytes:
    """Return a tar of files and symbolic links, without owners or times."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type = tarfile.SYMTYPE
            info.linkname = target
            archive.addfile(info)
    return out.getvalue()


def stored(tar: bytes, how: str) -> bytes:
    """Return a layer as it is stored: "none", "gzip" or "zstd"."""
    if how == "gzip":
        return gzip.compress(tar, mtime=0)
    return zstandard.ZstdCompressor().compress(tar) if how == "zstd" else tar


def descriptor(media_type: str, data: bytes, **more: Json) -> dict[str, Json]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}


OCI_TYPES = {"none": media_types.OCI_LAYER, "gzip": media_types.OCI_LAYER_GZIP, "zstd": media_types.OCI_LAYER_ZSTD}
DOCKER_TYPES = {"none": media_types.DOCKER_LAYER, "gzip": media_types.DOCKER_LAYER_GZIP}


@dataclass
class Sample:
    """An image: its layers' tars and how each is stored."""

    tars: tuple[bytes, ...] = (tar_of({"etc/hostname": b"one\n"}), tar_of({"bin/sh": b"#!\n" * 999}))
    how: tuple[str, ...] = ("gzip", "none")
    architecture: str = "amd64"
    docker: bool = False
    extra_config: dict[str, Json] = field(default_factory=dict[str, Json])

    @property
    def blobs(self) -> tuple[bytes, ...]:
        return tuple(stored(tar, how) for tar, how in zip(self.tars, self.how, strict=True))

    @property
    def config(self) -> bytes:
        return encode(
            {
                "architecture": self.architecture,
                "os": "linux",
                "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "Labels": {"a": "ü"}},
                "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in self.tars]},
                "history": [{"created_by": f"layer {place}"} for place in range(len(self.tars))],
                **self.extra_config,
            }
        )

    @property
    def media_type(self) -> str:
        return media_types.DOCKER_MANIFEST if self.docker else media_types.OCI_MANIFEST

    def manifest(self, **changes: Json) -> bytes:
        """Return the manifest, with fields replaced; a change to None takes the field away."""
        types = DOCKER_TYPES if self.docker else OCI_TYPES
        config_type = media_types.DOCKER_CONFIG if self.docker else media_types.OCI_CONFIG
        made = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": descriptor(config_type, self.config),
            "layers": [descriptor(types[how], blob) for how, blob in zip(self.how, self.blobs, strict=True)],
            **changes,
        }
        return encode({key: value for key, value in made.items() if value is not None})

    def entry(self, *, ref: str = "", **more: Json) -> dict[str, Json]:
        """Return the entry of an index for this image."""
        if ref:
            more["annotations"] = {"org.opencontainers.image.ref.name": ref}
        return descriptor(self.media_type, self.manifest(), **more)

    @property
    def all_blobs(self) -> tuple[bytes, ...]:
        return (*self.blobs, self.config, self.manifest())


def layout_files(entries: Iterable[Json], blobs: Iterable[bytes]) -> dict[str, bytes]:
    """Return the files of an OCI layout, by name."""
    files = {
        "oci-layout": encode({"imageLayoutVersion": "1.0.0"}),
        "index.json": encode({"schemaVersion": 2, "manifests": list(entries)}),
    }
    for blob in blobs:
        files[f"blobs/sha256/{digest_of(blob)[7:]}"] = blob
    return files


def write_dir(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], **more: Json) -> Path:
    path.write_bytes(tar_of(files, **more))
    return path


def layout_dir(path: Path, *samples: Sample, ref: str = "docker.io/library/sample:1") -> Path:
    """Write an OCI layout; several images get the tags 1, 2 and so on."""
    refs = [ref] if len(samples) == 1 else [f"docker.io/library/sample:{n}" for n in range(1, len(samples) + 1)]
    entries = [sample.entry(ref=name) for sample, name in zip(samples, refs, strict=True)]
    return write_dir(path, layout_files(entries, [blob for sample in samples for blob in sample.all_blobs]))


def docker_files(sample: Sample, tags: Json = ("sample:1",)) -> dict[str, bytes]:
    """Return the files of a docker-archive as `docker save` writes them."""
    names = [f"{digest_of(tar)[7:]}/layer.tar" for tar in sample.tars]
    config = f"{digest_of(sample.config)[7:]}.json"
    record = {"Config": config, "RepoTags": tags and list(tags), "Layers": names}
    return {config: sample.config, **dict(zip(names, sample.blobs, strict=True)), "manifest.json": encode([record])}


def imported(path: Path, blobs: BlobStore) -> tuple[NamedImage, ...]:
    """Import all images of a path into a store of blobs."""
    with open_source(path) as source:
        images = source.images()
        for image in images:
            for blob in image.manifest.blobs:
                with source.open(blob.digest) as stream:
                    blobs.put(stream, blob)
            blobs.put_bytes(image.manifest.raw)
    return images


def digests(path: Path) -> set[Digest]:
    """Return the digest of every blob of an OCI layout directory, each verified."""
    found: set[Digest] = set()
    for file in (path / "blobs/sha256").iterdir():
        digest = Digest.of(file.read_bytes())
        assert digest.hex == file.name
        found.add(digest)
    return found
