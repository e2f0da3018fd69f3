"""`layerfs image pull`: an image from its registry."""

from __future__ import annotations

import click

from layerfs.commands.frame.describe import image_document
from layerfs.commands.frame.leasing import chosen, lease_option
from layerfs.commands.frame.progress import progress
from layerfs.commands.frame.registry import plain_option, registry_options
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.units import short
from layerfs.commands.frame.verb import verb
from layerfs.image.platform import Platform


@verb(
    "pull",
    examples=[
        "layerfs image pull debian:12",
        "layerfs image pull quay.io/podman/hello --platform linux/arm64",
        "layerfs image pull debian:12 --mirror mirror.example.org:5000",
    ],
)
@click.argument("image")
@click.option("-n", "--name", "names", multiple=True, help="A name for it here, in place of its own; may be repeated.")
@click.option("--platform", metavar="OS/ARCH", help="The platform to take from an index; the default is this host's.")
@click.option(
    "--unpack/--no-unpack", default=True, show_default=True, help="Unpack the layers now, or by the first clone."
)
@click.option("--mirror", "mirrors", metavar="HOST", multiple=True, help="Ask this host first; may be repeated.")
@plain_option()
@lease_option()
def command(
    session: Session,
    image: str,
    names: tuple[str, ...],
    platform: str | None,
    mirrors: tuple[str, ...],
    lease: str | None,
    *,
    unpack: bool,
    plain_http: bool,
) -> None:
    """Pull an image from a registry.

    Layers come several at a time, are verified, and are unpacked while others are still on their way; those that the
    store has are not brought again. Credentials are those of `docker login` or `podman login`.
    """
    wanted = Platform.parse(platform) if platform else None
    options = registry_options(image, plain_http=plain_http, mirrors=mirrors)
    with session.opened(create=True) as store, progress(session) as listener:
        pulled = store.pull_image(
            image,
            names=names,
            platform=wanted,
            unpack=unpack,
            options=options,
            lease=chosen(store, lease),
            listener=listener,
        )
    session.show({"images": [image_document(pulled)]}, f"{short(pulled.digest)} {' '.join(pulled.names)}")
