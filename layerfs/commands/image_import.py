"""`layerfs image import`: images from files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import click

from layerfs.commands.frame.describe import UNTAGGED, image_document
from layerfs.commands.frame.leasing import chosen, lease_option
from layerfs.commands.frame.progress import progress
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.units import parse_size, short
from layerfs.commands.frame.verb import verb
from layerfs.image.platform import Platform
from layerfs.layer.limits import Limits

_LIMITS = tuple(field.name for field in fields(Limits))
_SIZES = frozenset({"stream_bytes", "file_bytes", "header_bytes", "global_bytes", "path_bytes", "ratio_free"})
"""The limits that are sizes, and take units."""


def _limit(text: str) -> tuple[str, int]:
    """Read one limit as the type of an option."""
    name, equals, value = text.partition("=")
    if not equals or name not in _LIMITS:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE with one of {', '.join(_LIMITS)}.")
    if name not in _SIZES and not value.isdecimal():
        raise click.BadParameter(f"{name} is a number, not {value!r}.")
    try:
        return name, parse_size(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


def _limits(given: Iterable[tuple[str, int]]) -> Limits:
    return Limits(**dict(given))


@verb(
    "import",
    examples=[
        "layerfs image import debian.tar --name debian:12",
        "layerfs image import huge.tar --limit stream_bytes=2T --limit entries=50000000",
        "skopeo copy docker://debian:12 oci:debian:12 && layerfs image import debian",
    ],
)
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("-n", "--name", "names", multiple=True, help="A name for the image; may be repeated.")
@click.option("--platform", metavar="OS/ARCH", help="The platform to take from an index; the default is this host's.")
@click.option(
    "--unpack/--no-unpack", default=True, show_default=True, help="Unpack the layers now, or by the first clone."
)
@click.option(
    "--limit",
    "limits",
    type=_limit,
    multiple=True,
    metavar="NAME=VALUE",
    help=f"Bound what a layer may cost, or raise a bound; may be repeated. The names: {', '.join(_LIMITS)}.",
)
@lease_option()
def command(
    session: Session,
    source: Path,
    names: tuple[str, ...],
    platform: str | None,
    limits: tuple[tuple[str, int], ...],
    lease: str | None,
    *,
    unpack: bool,
) -> None:
    """Import the images of an OCI layout or a docker archive.

    SOURCE is a directory or a tar; what it is shows from its content. Digests and sizes are verified, and layers
    that the store has already are neither copied nor unpacked again. Without --name the names in SOURCE are kept.
    """
    wanted = Platform.parse(platform) if platform else None
    with session.opened(create=True) as store, progress(session) as listener:
        images = store.import_image(
            source,
            names=names,
            platform=wanted,
            unpack=unpack,
            limits=_limits(limits),
            lease=chosen(store, lease),
            listener=listener,
        )
    lines = [f"{short(image.digest)} {' '.join(image.names) or UNTAGGED}" for image in images]
    session.show({"images": [image_document(image) for image in images]}, "\n".join(lines))
