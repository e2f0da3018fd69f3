"""`layerfs clone`: a writable root from an image."""

from __future__ import annotations

from layerfs.commands.frame.describe import clone_document
from layerfs.commands.frame.names import image_argument, new_name_argument
from layerfs.commands.frame.quota import chosen, quota_options
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb(
    "clone",
    examples=[
        "layerfs clone debian:12 web",
        "name=$(layerfs clone debian:12)",
        "layerfs clone debian:12 small --size 1G --inodes 10k",
    ],
)
@image_argument()
@new_name_argument("name")
@quota_options
def command(session: Session, image: str, name: str | None, *, size: int | None, inodes: int | None) -> None:
    """Make a writable clone of an image.

    Print the clone's name: NAME, or one that layerfs makes up. The clone shares the image's files until it writes
    to them. --size and --inodes are a quota of what may be written to it (`layerfs quota`).
    """
    with session.opened() as store:
        clone = store.clone(image, name, quota=chosen(size, inodes))
        session.show(clone_document(clone), clone.name)
