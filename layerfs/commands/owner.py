"""`layerfs owner`: whose something on the disk is."""

from __future__ import annotations

import click

from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.units import short
from layerfs.commands.frame.verb import verb
from layerfs.owning import Owner, OwnerKind


@verb("owner", examples=["layerfs owner /var/lib/layerfs/overlay2/17", "layerfs owner /mnt/web /dev/loop3"])
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
def command(session: Session, paths: tuple[str, ...]) -> None:
    """Tell whose a file, a mount or a device is.

    A path may be a file of the store, a place where a clone is mounted, a block or loop device, or the name of a ZFS
    dataset. Shown are the snapshot or blob that it belongs to, and the images and clones that need this. "nobody" is
    something of the store that `layerfs prune` removes, "foreign" nothing of this store.
    """
    with session.opened() as store:
        owners = [(path, store.owner(path)) for path in paths]
    document: dict[str, Json] = {"owners": [_document(path, owner) for path, owner in owners]}
    rows = [(path, owner.kind, _name(owner), ", ".join(owner.users) or "-") for path, owner in owners]
    session.show_table(document, ("PATH", "KIND", "NAME", "NEEDED BY"), rows)


def _name(owner: Owner) -> str:
    if owner.kind is OwnerKind.NOBODY:
        return owner.name or f"snapshot {owner.id}, of which nothing is known"
    return short(owner.name) if owner.name.startswith("sha256:") else owner.name or "-"


def _document(path: str, owner: Owner) -> dict[str, Json]:
    return {"path": path, "kind": owner.kind, "name": owner.name, "id": owner.id, "users": list(owner.users)}
