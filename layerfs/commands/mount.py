"""`layerfs mount`: a clone as a directory."""

from __future__ import annotations

from pathlib import Path

import click

from layerfs.commands.frame.describe import clone_document
from layerfs.commands.frame.names import clone_argument
from layerfs.commands.frame.privilege import require_lasting_mounts
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb("mount", examples=["layerfs mount web /mnt", "layerfs umount web"])
@clone_argument()
@click.argument("directory", type=click.Path(file_okay=False, exists=True, path_type=Path))
@click.option("--volatile", is_flag=True, help="Never sync: fast, and lost in a crash of the machine.")
def command(session: Session, name: str, directory: Path, *, volatile: bool) -> None:
    """Mount a clone.

    The mount stays until `layerfs umount`. An ordinary user has that in a store of the fuse driver; in others `layerfs
    shell` gives them a shell inside the clone instead.
    """
    with session.opened() as store:
        require_lasting_mounts(name, entered=session.entered)
        clone = store.get_clone(name)
        clone.mount(directory.absolute(), volatile=volatile)
        session.show(clone_document(clone), str(directory.absolute()))
