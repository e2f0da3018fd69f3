"""`layerfs quota`: what may be written to a clone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from layerfs.commands.frame.describe import quota_document
from layerfs.commands.frame.names import clone_argument
from layerfs.commands.frame.quota import chosen, quota_options
from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.text import pairs
from layerfs.commands.frame.units import size as shown
from layerfs.commands.frame.verb import verb

if TYPE_CHECKING:
    from layerfs.contract import Quota, Usage


@verb(
    "quota",
    examples=["layerfs quota web", "layerfs quota web --size 2G", "layerfs quota web --none"],
)
@clone_argument()
@quota_options
@click.option("--none", "lift", is_flag=True, help="Lift every limit.")
def command(session: Session, name: str, *, size: int | None, inodes: int | None, lift: bool) -> None:
    """Show what may be written to a clone, or change it.

    The limit that is not given stays as it is. What counts is what the clone has beyond its image, or beyond its last
    snapshot. It may be changed while the clone is mounted.
    """
    if lift and (size or inodes):
        raise click.UsageError("--none lifts every limit: leave out --size and --inodes.")
    with session.opened() as store:
        clone = store.get_clone(name)
        if lift or size or inodes:
            before = chosen(None, None) if lift else clone.quota
            clone.set_quota(chosen(size or before.size, inodes or before.inodes))
        quota = clone.quota
        used = clone.quota_usage() if quota else None
    session.show(_document(clone.name, quota, used), _text(clone.name, quota, used))


def _document(name: str, quota: Quota, used: Usage | None) -> dict[str, Json]:
    document: dict[str, Json] = {"name": name, **quota_document(quota)}
    if used is not None:
        document["used"] = {"size": used.size, "inodes": used.inodes}
    return document


def _text(name: str, quota: Quota, used: Usage | None) -> str:
    if used is None:
        return f"{name} has no quota"
    rows: list[tuple[str, str]] = []
    if quota.size is not None:
        rows.append(("size", f"{shown(used.size)} of {shown(quota.size)}"))
    if quota.inodes is not None:
        rows.append(("inodes", f"{used.inodes} of {quota.inodes}"))
    return pairs(rows)
