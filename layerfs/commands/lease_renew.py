"""`layerfs lease renew`: more time."""

from __future__ import annotations

from datetime import timedelta

import click

from layerfs.commands.frame.failure import each
from layerfs.commands.frame.leasing import ttl_option
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb("renew", examples=["layerfs lease renew build-42 --ttl 2h"])
@click.argument("leases", metavar="ID...", nargs=-1, required=True)
@ttl_option()
def command(session: Session, leases: tuple[str, ...], ttl: timedelta) -> int:
    """Give leases more time.

    They end after --ttl from now. One that is over and not pruned yet lives again; all that it names is still there.
    """
    with session.opened() as store:
        return each(session, leases, lambda lease: store.get_lease(lease).renew(ttl), done="renewed")
