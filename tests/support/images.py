"""Images to test the command with: OCI layouts written with the standard library only, not by the code under test."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Layer = Mapping[str, bytes | None]
"""Content by path; None is a directory, and a name ``.wh.x`` a whiteout."""

CREATED = "2026-01-02T03:04:05Z"

BASE: Layer = {"etc": None, "etc/issue": b"layerfs test\n", "tmp": None, "var": None, "var/big": b"0" * 100_000}
EDIT: Layer = {"etc": None, "etc/issue": b"layerfs test, second layer\n", "etc/more": b"more\n"}
SHRINK: Layer = {"var": None, "var/.wh.big": b"", "var/small": b"1"}


def write_layout(
    path: Path, layers: Sequence[Layer | bytes], *, name: str | None = "test:1", history: Sequence[str] | None = None
) -> Path:
    """Write an OCI layout with one image, of layers or tars of them; ``history`` are the commands of its layers."""
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True)
    archives = [layer if isinstance(layer, bytes) else _tar(layer) for layer in layers]
    entries = [
        {"created": CREATED, "created_by": words} for words in history or [f"step {n}" for n in range(len(layers))]
    ]
    config = {
        "architecture": _architecture(),
        "os": "linux",
        "created": CREATED,
        "config": {"Env": ["PATH=/bin:/usr/bin", "FROM_IMAGE=yes"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(archive) for archive in archives]},
        "history": entries,
    }
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": _put(blobs, _json(config), f"{kind}.config.v1+json"),
        "layers": [_put(blobs, gzip.compress(one, mtime=0), f"{kind}.layer.v1.tar+gzip") for one in archives],
    }
    listed = _put(blobs, _json(manifest), f"{kind}.manifest.v1+json")
    if name:
        listed["annotations"] = {"org.opencontainers.image.ref.name": name}
    (path / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [listed]}))
    (path / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    return path


def with_busybox() -> Layer:
    """Return a layer in which a shell and its usual tools run, out of the static busybox of this machine."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FileNotFoundError("apt-get install busybox-static")
    return {**BASE, "bin": None, "bin/busybox": Path(busybox).read_bytes(), "proc": None, "sys": None, "dev": None}


def _tar(layer: Layer) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, content in layer.items():
            member = tarfile.TarInfo(path)
            member.mtime = 1_700_000_000
            if content is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
            else:
                member.size, member.mode = len(content), 0o755 if path.startswith("bin/") else 0o644
                archive.addfile(member, io.BytesIO(content))
        if "bin/busybox" in layer:
            for tool in ("sh", "cat", "echo", "ls", "id", "sleep", "kill", "rm", "env", "pwd"):
                link = tarfile.TarInfo(f"bin/{tool}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
    return buffer.getvalue()


def _architecture() -> str:
    import platform  # noqa: PLC0415  its import runs a search for the C library

    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _put(blobs: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = _digest(data)
    (blobs / digest.removeprefix("sha256:")).write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(document: object) -> bytes:
    return json.dumps(document).encode()
