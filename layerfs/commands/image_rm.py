"""`layerfs image rm`: images away."""

from __future__ import annotations

from layerfs.commands.frame.failure import each
from layerfs.commands.frame.names import image_argument
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb("rm", examples=["layerfs image rm debian:11", "layerfs image rm 3f2a9c"])
@image_argument("images", metavar="IMAGE...", nargs=-1, required=True)
def command(session: Session, images: tuple[str, ...]) -> int:
    """Remove names of images, and images without a name.

    A name is taken off its image; the image goes with its last name, or when it is named by its id. Clones keep what
    they are made of; `layerfs prune` frees what nobody uses.
    """
    with session.opened() as store:
        return each(session, images, store.remove_image, done="removed")
