"""OCI layouts from plain tars: the same layers compressed by gzip and by zstd, as a directory and as one archive.

The programs of the distribution compress (gzip -6, zstd -3), so that no tool of the comparison made its own input.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.meter import Failed

TAG = "bench"
"""The tag of the image in a layout."""
COMPRESSORS = {"gzip": ("gzip", "-6", "-n"), "zstd": ("zstd", "-3", "-q")}
_LAYER = "application/vnd.oci.image.layer.v1.tar"


def write_layout(layers: Sequence[Path], compression: str, place: Path) -> None:
    """Make the layout ``place`` of plain tars, and the archive of it beside it."""
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)
    described = [_layer(layer, compression, blobs) for layer in layers]
    config = _document(
        blobs,
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_digest(layer)}" for layer in layers]},
            "history": [{"created_by": layer.name} for layer in layers],
        },
        "application/vnd.oci.image.config.v1+json",
    )
    manifest = _document(
        blobs,
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": described,
        },
        "application/vnd.oci.image.manifest.v1+json",
    )
    manifest["annotations"] = {"org.opencontainers.image.ref.name": TAG}
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (place / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    with tarfile.open(archive_of(place), "w") as archive:
        for name in ("oci-layout", "index.json", "blobs"):
            archive.add(place / name, name)


def archive_of(layout: Path) -> Path:
    """Return where the archive of a layout is."""
    return layout.with_name(layout.name + ".tar")


def blobs_of(layout: Path) -> list[Path]:
    """Return the layers of a layout, the lowest first."""
    found: dict[str, Any] = json.loads((layout / "index.json").read_text())
    blobs = layout / "blobs/sha256"
    manifest = json.loads((blobs / found["manifests"][0]["digest"].removeprefix("sha256:")).read_text())
    return [blobs / layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]]


def _layer(layer: Path, compression: str, blobs: Path) -> dict[str, Any]:
    """Compress one layer into the blobs; return its descriptor."""
    new = blobs / "new"
    with layer.open("rb") as source, new.open("wb") as target:
        done = subprocess.run([*COMPRESSORS[compression], "-c"], stdin=source, stdout=target, check=False)
    if done.returncode:
        raise Failed(f"{compression} cannot compress {layer}")
    digest = _digest(new)
    described = {"mediaType": f"{_LAYER}+{compression}", "digest": f"sha256:{digest}", "size": new.stat().st_size}
    new.rename(blobs / digest)
    return described


def _document(blobs: Path, content: dict[str, Any], media_type: str) -> dict[str, Any]:
    """Write a document into the blobs; return its descriptor."""
    data = json.dumps(content).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
