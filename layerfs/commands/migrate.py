"""`layerfs migrate`: from one driver to another."""

from __future__ import annotations

from pathlib import Path

import click

import layerfs
from layerfs.commands.frame.names import complete_either
from layerfs.commands.frame.progress import progress
from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.verb import key_value, verb


@verb(
    "migrate",
    examples=[
        "layerfs migrate --to /srv/btrfs/layerfs --driver btrfs",
        "layerfs migrate --to /srv/new debian:12 web",
    ],
)
@click.argument("names", metavar="[IMAGE|CLONE]...", nargs=-1, shell_complete=complete_either)
@click.option(
    "--to", "target", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The store to carry them to."
)
@click.option("--driver", default="auto", metavar="NAME", help="The driver of that store, if it is new.")
@click.option(
    "--driver-option", "options", multiple=True, callback=key_value, metavar="KEY=VALUE", help="An option of it."
)
@click.option("--remove", is_flag=True, help="At the end, remove here what was carried.")
def command(
    session: Session, names: tuple[str, ...], target: Path, driver: str, options: dict[str, str], *, remove: bool
) -> None:
    """Carry images and clones to a store of another driver.

    Without names everything is carried. Clones come with their snapshots, images with their layers, and what shares
    space here shares it there. Every snapshot is compared with its original before it gets its name. Nothing changes in
    this store, except that clones cannot be mounted meanwhile; with --remove, what was carried is removed when all of
    it is there. Migrating again after an interruption goes on where it ended. The target is made if it is missing: with
    the id map of this store, and by `layerfs store create` before, if it is to be on a volume of its own.
    """
    with (
        session.opened() as store,
        layerfs.open(target, driver=driver, options=options, id_map=store.id_map) as there,
        progress(session) as listener,
    ):
        done = store.migrate(there, names, remove=remove, listener=listener)
    document: dict[str, Json] = {
        "target": str(there.path),
        "images": done.images,
        "clones": done.clones,
        "snapshots": done.snapshots,
        "there": done.there,
    }
    session.show(document, str(there.path))
    session.say(
        f"carried {done.images} images, {done.clones} clones and {done.snapshots} snapshots; "
        f"{done.there} were there already"
    )
