"""`layerfs lease rm`: leases away."""

from __future__ import annotations

import click

from layerfs.commands.frame.failure import each
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb("rm", examples=["layerfs lease rm build-42", "layerfs lease rm $(layerfs -q lease ls)"])
@click.argument("leases", metavar="ID...", nargs=-1, required=True)
def command(session: Session, leases: tuple[str, ...]) -> int:
    """End leases.

    What they alone kept goes with the next `layerfs prune --force`.
    """
    with session.opened() as store:
        return each(session, leases, lambda lease: store.get_lease(lease).remove(), done="removed")
