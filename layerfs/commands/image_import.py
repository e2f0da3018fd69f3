"""`layerfs image import`: images from files."""

from __future__ import annotations

from pathlib import Path

import click

from layerfs.commands.frame.describe import UNTAGGED, image_document
from layerfs.commands.frame.progress import progress
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.units import short
from layerfs.commands.frame.verb import verb
from layerfs.image.platform import Platform


@verb(
    "import",
    examples=[
        "layerfs image import debian.tar --name debian:12",
        "skopeo copy docker://debian:12 oci:debian:12 && layerfs image import debian",
    ],
)
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("-n", "--name", "names", multiple=True, help="A name for the image; may be repeated.")
@click.option("--platform", metavar="OS/ARCH", help="The platform to take from an index; the default is this host's.")
@click.option(
    "--unpack/--no-unpack", default=True, show_default=True, help="Unpack the layers now, or by the first clone."
)
def command(session: Session, source: Path, names: tuple[str, ...], platform: str | None, *, unpack: bool) -> None:
    """Import the images of an OCI layout or a docker archive.

    SOURCE is a directory or a tar; what it is shows from its content. Digests and sizes are verified, and layers
    that the store has already are neither copied nor unpacked again. Without --name the names in SOURCE are kept.
    """
    wanted = Platform.parse(platform) if platform else None
    with session.opened(create=True) as store, progress(session) as listener:
        images = store.import_image(source, names=names, platform=wanted, unpack=unpack, listener=listener)
    lines = [f"{short(image.digest)} {' '.join(image.names) or UNTAGGED}" for image in images]
    session.show({"images": [image_document(image) for image in images]}, "\n".join(lines))
