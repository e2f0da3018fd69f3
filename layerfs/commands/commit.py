"""`layerfs commit`: an image from a clone."""

from __future__ import annotations

import click

from layerfs.commands.frame.describe import image_document
from layerfs.commands.frame.leasing import chosen, lease_option
from layerfs.commands.frame.names import clone_argument, new_name_argument
from layerfs.commands.frame.progress import progress
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb
from layerfs.layer.compression import Compression


@verb("commit", examples=["layerfs commit web debian:nginx -m 'install nginx'"])
@clone_argument()
@new_name_argument("image")
@click.option("-m", "--message", default="", metavar="TEXT", help="A comment for the image's history.")
@click.option("-a", "--author", default="", metavar="TEXT", help="Who made it.")
@click.option(
    "--compression",
    type=click.Choice([str(one.value) for one in Compression]),
    default=str(Compression.ZSTD.value),
    show_default=True,
    help="How to compress the new layer.",
)
@click.option("--level", type=int, metavar="N", help="How hard to compress; higher is smaller and slower.")
@lease_option()
def command(
    session: Session,
    name: str,
    image: str | None,
    message: str,
    author: str,
    compression: str,
    level: int | None,
    lease: str | None,
) -> None:
    """Make an image of a clone: what it changed becomes a new layer.

    Print the digest of the new image, which IMAGE names. The clone stays as it is. Changes that nobody made give the
    same bytes: committing twice makes the same layer.
    """
    with session.opened() as store, progress(session) as listener:
        made = store.get_clone(name).commit(
            image,
            message=message,
            author=author,
            compression=Compression(compression),
            level=level,
            lease=chosen(store, lease),
            listener=listener,
        )
    session.show(image_document(made), str(made.digest))
