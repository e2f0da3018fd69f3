"""`layerfs image inspect`: all about one image."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import click

from layerfs.commands.frame.describe import UNTAGGED, image_document
from layerfs.commands.frame.names import image_argument
from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.text import pairs, tame
from layerfs.commands.frame.units import moment, size
from layerfs.commands.frame.verb import verb

if TYPE_CHECKING:
    from layerfs.images import Image


@verb(
    "inspect", examples=["layerfs image inspect debian:12", "layerfs image inspect debian:12 --raw config | jq .config"]
)
@image_argument()
@click.option("--raw", type=click.Choice(["manifest", "config"]), help="Print this document alone, as it is.")
def command(session: Session, image: str, raw: str | None) -> None:
    """Show everything about an image.

    With --json: what layerfs knows of it, its manifest and its configuration.
    """
    with session.opened() as store:
        found = store.image(image)
    manifest, config = found.manifest.raw.decode(), found.config.raw.decode()
    if raw:
        document = manifest if raw == "manifest" else config
        session.show(json.loads(document), lambda: tame(document))
        return
    whole: dict[str, Json] = {
        "image": image_document(found),
        "manifest": json.loads(manifest),
        "config": json.loads(config),
    }
    session.show(whole, lambda: pairs(_summary(found)))


def _summary(image: Image) -> list[tuple[str, str]]:
    config, run = image.config, image.config.config
    rows = [
        ("Digest", str(image.digest)),
        ("Names", " ".join(image.names) or UNTAGGED),
        ("Created", moment(image.config.created) if image.config.created else UNTAGGED),
        ("Author", config.author),
        ("Platform", str(config.platform)),
        ("Size", size(image.size)),
        ("Entrypoint", shlex.join(run.entrypoint)),
        ("Command", shlex.join(run.cmd)),
        ("Directory", run.workdir),
        ("User", run.user),
        ("Ports", " ".join(run.exposed_ports)),
        ("Volumes", " ".join(run.volumes)),
        *(("Environment", variable) for variable in run.env),
        *(("Label", f"{name}={value}") for name, value in sorted(run.labels.items())),
        *(("Layer", f"{layer.digest} {size(layer.size)}") for layer in image.manifest.layers),
    ]
    return [(name, value) for name, value in rows if value]
