"""`layerfs image push`: an image to a registry."""

from __future__ import annotations

import click

from layerfs.commands.frame.names import image_argument
from layerfs.commands.frame.progress import progress
from layerfs.commands.frame.registry import plain_option, registry_options
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb(
    "push",
    examples=[
        "layerfs image push registry.example.org/web:2",
        "layerfs image push web:2 registry.example.org/team/web:2",
    ],
)
@image_argument()
@click.argument("target", required=False)
@plain_option()
def command(session: Session, image: str, target: str | None, *, plain_http: bool) -> None:
    """Push an image to a registry.

    TARGET is the name that it gets there; without it, its own says where. Blobs that the registry has are not sent
    again. Every digest stays what it is here.
    """
    options = registry_options(target or image, plain_http=plain_http)
    with session.opened() as store, progress(session) as listener:
        digest = store.image(image).digest
        store.push_image(image, target, options=options, listener=listener)
    session.show({"image": str(digest), "target": target or image}, f"{target or image}@{digest}")
