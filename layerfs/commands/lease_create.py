"""`layerfs lease create`: a new lease."""

from __future__ import annotations

from datetime import timedelta

import click

from layerfs.commands.frame.leasing import lease_document, ttl_option
from layerfs.commands.frame.names import new_name_argument
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb("create", examples=["layerfs lease create --ttl 2h", "layerfs lease create build-42 --image 3f9a1c"])
@new_name_argument("lease", metavar="[ID]")
@ttl_option()
@click.option("--image", "images", multiple=True, metavar="IMAGE", help="Keep this image; may be repeated.")
def command(session: Session, lease: str | None, ttl: timedelta, images: tuple[str, ...]) -> None:
    """Make a lease.

    Print its id, which is made up if none is given.
    """
    with session.opened(create=True) as store:
        made = store.lease(ttl, lease)
        try:
            made.add(images=[store.image(image).digest for image in images])
            for image in images:
                store.image(image)  # which may have gone before it was named
        except BaseException:
            made.remove()
            raise
        session.show(lease_document(made), made.id)
