"""Images to measure with, made from nothing but a seed: the same bytes on every machine.

An image is a tuple of layers, the lowest first, and a layer a tuple of items in the order of its tar. File data does
not compress within a block of any file system, but repeats after 256 KiB: so the archive of a big file is small, while
what lies on disk is not.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import random
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from layerfs import tree
from layerfs.layer.compression import Compression, compressor

_PERIOD = 256 << 10
"""Bytes after which file data repeats."""
_MOMENT = 1_700_000_000
_KIND = "application/vnd.oci.image"


@dataclass(frozen=True, slots=True)
class Item:
    """A file of ``size`` bytes, or a directory where that is None."""

    path: str
    size: int | None = None
    data: bytes | None = None
    """What is in it, if not made-up data."""


Layer = tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """An image to be made: a name that says all about it, and its layers, made only when they are needed."""

    name: str
    layers: Callable[[], Sequence[Layer]]


def data(size: int, seed: str) -> io.BytesIO:
    """Return ``size`` bytes of made-up data, the same for the same seed."""
    block = random.Random(seed).randbytes(min(size, _PERIOD))  # noqa: S311  data to fill files, no secret
    whole, rest = divmod(size, _PERIOD)
    return io.BytesIO(block * whole + block[:rest] if whole else block)


def flattened(spec: ImageSpec) -> ImageSpec:
    """Return an image of one layer that holds what all layers of another show together; none of ours deletes."""

    def merge() -> Sequence[Layer]:
        items = {item.path: item for layer in spec.layers() for item in layer}
        return [tuple(items.values())]

    return ImageSpec(f"{spec.name}-flat", merge)


def layout(images: Path, spec: ImageSpec) -> Path:
    """Return the OCI layout of an image below the directory ``images``, written when it is asked for first."""
    path = images / spec.name
    if not path.exists():
        images.mkdir(exist_ok=True)
        temporary = images / f".{spec.name}"
        tree.remove_tree(temporary)
        write(spec, temporary).rename(path)
    return path


def write(spec: ImageSpec, path: Path) -> Path:
    """Write an image as an OCI layout into the new directory ``path`` and return it."""
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True)
    layers = [_write_layer(layer, blobs) for layer in spec.layers()]
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [diff_id for diff_id, _ in layers]},
        "history": [{"created_by": spec.name} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_KIND}.manifest.v1+json",
        "config": _put(blobs, config, f"{_KIND}.config.v1+json"),
        "layers": [descriptor for _, descriptor in layers],
    }
    listed = _put(blobs, manifest, f"{_KIND}.manifest.v1+json")
    listed["annotations"] = {"org.opencontainers.image.ref.name": spec.name}
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}), encoding="ascii")
    (path / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}), encoding="ascii")
    return path


def layers(layout: Path) -> tuple[Path, ...]:
    """Return the archives of the layers of the one image in a layout that `write` made, the lowest first."""
    blobs = layout / "blobs/sha256"
    index = json.loads((layout / "index.json").read_text(encoding="ascii"))
    (listed,) = index["manifests"]
    manifest = json.loads((blobs / _hex(listed)).read_text(encoding="ascii"))
    return tuple(blobs / _hex(layer) for layer in manifest["layers"])


def _hex(descriptor: Mapping[str, str]) -> str:
    return descriptor["digest"].removeprefix("sha256:")


class _Packed:
    """A writable stream that hashes what it gets, compresses it, and hashes that too."""

    def __init__(self, out: BinaryIO, compression: Compression) -> None:
        self.diff_id, self.digest = hashlib.sha256(), hashlib.sha256()
        self.size = 0
        self._out = out
        self._compressor = compressor(compression)

    def write(self, block: bytes) -> int:
        """Take bytes of the tar."""
        self.diff_id.update(block)
        self._pass_on(self._compressor.compress(block))
        return len(block)

    def close(self) -> None:
        """Write what the compressor still holds."""
        self._pass_on(self._compressor.flush())

    def _pass_on(self, block: bytes) -> None:
        self.digest.update(block)
        self.size += self._out.write(block)


def _write_layer(layer: Layer, blobs: Path) -> tuple[str, dict[str, object]]:
    """Write one layer and return its DiffID and its descriptor."""
    temporary = blobs / "layer"
    # Threads that compress cost more than they save where there is next to nothing to compress.
    big = sum(item.size or 0 for item in layer) > _PERIOD
    with temporary.open("wb") as out:
        packed = _Packed(out, Compression.ZSTD if big else Compression.NONE)
        with tarfile.open(fileobj=cast("BinaryIO", packed), mode="w|", format=tarfile.GNU_FORMAT) as archive:
            for item in layer:
                archive.addfile(*_member(item))
        packed.close()
    digest = packed.digest.hexdigest()
    temporary.rename(blobs / digest)
    media_type = f"{_KIND}.layer.v1.tar{'+zstd' if big else ''}"
    return f"sha256:{packed.diff_id.hexdigest()}", _descriptor(media_type, digest, packed.size)


def _member(item: Item) -> tuple[tarfile.TarInfo, io.BytesIO | None]:
    member = tarfile.TarInfo(item.path)
    member.mtime = _MOMENT
    if item.size is None and item.data is None:
        member.type, member.mode = tarfile.DIRTYPE, 0o755
        return member, None
    content = io.BytesIO(item.data) if item.data is not None else data(item.size or 0, item.path)
    member.size, member.mode = len(content.getbuffer()), 0o644
    return member, content


def _put(blobs: Path, document: object, media_type: str) -> dict[str, object]:
    raw = json.dumps(document).encode()
    digest = hashlib.sha256(raw).hexdigest()
    (blobs / digest).write_bytes(raw)
    return _descriptor(media_type, digest, len(raw))


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}
