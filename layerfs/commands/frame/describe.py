"""How clones, images and changes look in a JSON document; keys stay as they are, new ones may come."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from layerfs.commands.frame.session import Json

if TYPE_CHECKING:
    from layerfs.clones import Clone
    from layerfs.contract import Quota
    from layerfs.images import Image
    from layerfs.layer.changes import Change

UNTAGGED = "-"
"""What a list shows for an image without a name."""


def clone_document(clone: Clone) -> dict[str, Json]:
    """Describe a clone; ``image`` is the digest of its image, ``mounts`` where it is mounted now."""
    return {
        "name": clone.name,
        "image": str(clone.image),
        "created": clone.created.isoformat(),
        "snapshots": list(clone.snapshots()),
        "mounts": [str(path) for path in clone.mount_points()],
        **quota_document(clone.quota),
    }


def quota_document(quota: Quota) -> dict[str, Json]:
    """Describe a quota: bytes and inodes, null where there is no limit."""
    return {"quota": {"size": quota.size, "inodes": quota.inodes}}


def image_document(image: Image) -> dict[str, Json]:
    """Describe an image; ``size`` is that of its blobs in bytes, ``layers`` are ChainIDs from the lowest up."""
    return {
        "digest": str(image.digest),
        "names": list(image.names),
        "size": image.size,
        "created": image.config.created.isoformat() if image.config.created else None,
        "imported": image.imported.isoformat(),
        "layers": [str(chain_id) for chain_id in image.config.chain_ids],
    }


def change_document(change: Change) -> dict[str, Json]:
    """Describe a change; ``size`` is that of a regular file in bytes, before it went if it was deleted."""
    return {"kind": str(change.kind), **path_document(change.path), "size": change.size}


def path_document(path: bytes) -> dict[str, Json]:
    """Describe a path inside a tree; ``path_base64`` holds the exact name of one that is not UTF-8."""
    document: dict[str, Json] = {"path": path.decode("utf-8", "replace")}
    try:
        path.decode("utf-8")
    except UnicodeDecodeError:
        document["path_base64"] = base64.b64encode(path).decode("ascii")
    return document
