"""`layerfs image ls`: the images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from layerfs.commands.frame.describe import UNTAGGED, image_document
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.units import moment, short, size
from layerfs.commands.frame.verb import verb

if TYPE_CHECKING:
    from layerfs.images import Image


@verb("ls", examples=["layerfs image ls", "layerfs image rm $(layerfs -q image ls)"])
def command(session: Session) -> None:
    """List the images.

    A line a name; SIZE is that of the compressed layers. With -q the names only.
    """
    with session.opened() as store:
        images = store.images()
    document = {"images": [image_document(image) for image in images]}
    rows = [row for image in images for row in _rows(image, only_names=session.quiet)]
    session.show_table(document, ("NAME", "ID", "CREATED", "LAYERS", "SIZE"), rows, right=("LAYERS", "SIZE"))


def _rows(image: Image, *, only_names: bool) -> Iterator[tuple[str, ...]]:
    created = moment(image.config.created) if image.config.created else UNTAGGED
    unnamed = short(image.digest) if only_names else UNTAGGED
    for name in image.names or (unnamed,):
        yield name, short(image.digest), created, str(len(image.config.chain_ids)), size(image.size)
