"""`layerfs image tag`: one more name."""

from __future__ import annotations

import click

from layerfs.commands.frame.describe import image_document
from layerfs.commands.frame.names import image_argument
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb("tag", examples=["layerfs image tag debian:12 debian:stable"])
@image_argument()
@click.argument("name")
def command(session: Session, image: str, name: str) -> None:
    """Give an image a further name.

    A name that belongs to another image moves to this one.
    """
    with session.opened() as store:
        store.tag(image, name)
        tagged = store.image(name)
    session.show(image_document(tagged), str(tagged.digest))
