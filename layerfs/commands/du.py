"""`layerfs du`: what takes the space."""

from __future__ import annotations

from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.units import short, size
from layerfs.commands.frame.verb import verb
from layerfs.reclaim import DiskUsage

_RIGHT = ("EXCLUSIVE", "SHARED", "INODES")


@verb("du", examples=["layerfs du", "layerfs --json du | jq '[.usage[].exclusive.size] | add'"])
def command(session: Session) -> None:
    """Show what images, clones and layers take on disk.

    EXCLUSIVE is what would come free if it went; SHARED is what others use too, and counts for each of them. Sizes
    are of allocated blocks, in KiB, MiB and GiB; INODES are those of the exclusive part.
    """
    with session.opened() as store:
        usage = store.du()
    document: dict[str, Json] = {"usage": [_document(one) for one in usage]}
    session.show_table(document, ("NAME", "KIND", *_RIGHT), [_row(one) for one in usage], right=_RIGHT)


def _row(one: DiskUsage) -> tuple[str, ...]:
    name = short(one.name) if one.name.startswith("sha256:") else one.name
    return name, one.kind, size(one.exclusive.size), size(one.shared.size), str(one.exclusive.inodes)


def _document(one: DiskUsage) -> dict[str, Json]:
    return {
        "kind": one.kind,
        "name": one.name,
        "exclusive": {"size": one.exclusive.size, "inodes": one.exclusive.inodes},
        "shared": {"size": one.shared.size, "inodes": one.shared.inodes},
    }
