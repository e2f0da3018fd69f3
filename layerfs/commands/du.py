"""`layerfs du`: what takes the space."""

from __future__ import annotations

import click

from layerfs.accounting import DiskUsage, StoreUsage
from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.units import short, size
from layerfs.commands.frame.verb import verb
from layerfs.contract import Usage
from layerfs.reclaim import ItemKind

_RIGHT = ("EXCLUSIVE", "INODES", "SHARED", "SHARED INODES")


@verb("du", examples=["layerfs du", "layerfs du --layers", "layerfs --json du | jq .total.size"])
@click.option("--layers", is_flag=True, help="Show the layers of images, too.")
def command(session: Session, *, layers: bool) -> None:
    """Show what images, clones and layers take on disk.

    EXCLUSIVE is what would come free if it went; SHARED is what others use too, and counts for each of them; each is
    followed by the inodes. A layer is its unpacked files and its blob. Sizes are of allocated blocks, in KiB, MiB and
    GiB. The last line tells what the whole store takes; its parts add up.
    """
    with session.opened() as store:
        usage = store.du()
    kinds = (ItemKind.IMAGE, ItemKind.CLONE, *([ItemKind.LAYER] if layers else []))
    shown = usage.of(*kinds)
    document: dict[str, Json] = {
        "usage": [_document(one) for one in shown],
        "parts": {part: _figures(taken) for part, taken in usage.parts.items()},
        "total": _figures(usage.total),
    }
    session.show_table(document, ("NAME", "KIND", *_RIGHT), [_row(one) for one in shown], right=_RIGHT)
    session.say(_summary(usage))


def _row(one: DiskUsage) -> tuple[str, ...]:
    name = short(one.name) if one.name.startswith("sha256:") else one.name
    figures = ((size(taken.size), str(taken.inodes)) for taken in (one.exclusive, one.shared))
    return name, one.kind, *(text for pair in figures for text in pair)


def _summary(usage: StoreUsage) -> str:
    parts = ", ".join(f"{part} {size(taken.size)}" for part, taken in usage.parts.items() if taken.inodes)
    return f"in all {size(usage.total.size)} and {usage.total.inodes} inodes: {parts}"


def _document(one: DiskUsage) -> dict[str, Json]:
    return {
        "kind": one.kind,
        "name": one.name,
        "exclusive": _figures(one.exclusive),
        "shared": _figures(one.shared),
        "users": list(one.users),
    }


def _figures(taken: Usage) -> dict[str, Json]:
    return {"size": taken.size, "inodes": taken.inodes}
