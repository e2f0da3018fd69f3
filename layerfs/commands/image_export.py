"""`layerfs image export`: images to files."""

from __future__ import annotations

from pathlib import Path

import click

from layerfs.commands.frame.names import complete_image
from layerfs.commands.frame.progress import progress
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb
from layerfs.image.files import ArchiveFormat


@verb(
    "export",
    examples=[
        "layerfs image export debian:12 -o debian.tar",
        "layerfs image export debian:12 -o layout --format oci-dir && skopeo inspect oci:layout:debian:12",
        "layerfs image export debian:12 -o debian.tar --format docker-archive && docker load -i debian.tar",
    ],
)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=complete_image)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file or directory to write.")
@click.option(
    "--format",
    "form",
    type=click.Choice([str(one.value) for one in ArchiveFormat]),
    default=str(ArchiveFormat.OCI_ARCHIVE.value),
    show_default=True,
    help="What to write.",
)
def command(session: Session, images: tuple[str, ...], output: Path, form: str) -> None:
    """Write images to an OCI layout or a docker archive.

    What was imported and not changed comes out byte for byte, with the same digests.
    """
    with session.opened() as store, progress(session) as listener:
        store.export_image(images, output, format=ArchiveFormat(form), listener=listener)
    session.show({"images": list(images), "output": str(output), "format": form}, str(output))
