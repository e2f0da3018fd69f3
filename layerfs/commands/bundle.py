"""`layerfs bundle`: a clone as OCI runtimes take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from layerfs.commands.frame.container import container_options, wanted
from layerfs.commands.frame.names import clone_argument
from layerfs.commands.frame.privilege import require_lasting_mounts
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb
from layerfs.runtime.bundle import write_bundle


@verb(
    "bundle",
    examples=[
        "layerfs bundle web /run/web",
        "layerfs bundle web /run/web -- nginx -g 'daemon off;' && runc run --bundle /run/web web",
    ],
    settings={"ignore_unknown_options": False},
)
@clone_argument()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("words", metavar="[CMD]...", nargs=-1, type=click.UNPROCESSED)
@container_options()
def command(session: Session, name: str, directory: Path, words: tuple[str, ...], **given: Any) -> None:  # noqa: ANN401  click's
    """Write an OCI runtime bundle of a clone.

    DIRECTORY gets config.json, made of the image's configuration and the options, and rootfs, where the clone is
    mounted until `layerfs umount`. runc, crun and every other OCI runtime run it.
    """
    container = wanted(words, given, terminal=bool(given["tty"]))
    with session.opened() as store:
        require_lasting_mounts(name, entered=session.entered)
        clone = store.get_clone(name)
        bundle = write_bundle(store, clone, directory, container)
        document = {
            "clone": clone.name,
            "bundle": str(bundle.path),
            "config": str(bundle.config),
            "root": str(bundle.root),
        }
        session.show(document, str(bundle.path))
