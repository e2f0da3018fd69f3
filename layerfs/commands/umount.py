"""`layerfs umount`: a clone that is no directory any more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.commands.frame.failure import each
from layerfs.commands.frame.names import clone_argument
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb
from layerfs.errors import NotFound

if TYPE_CHECKING:
    from layerfs.clones import Clone
    from layerfs.store import Store


@verb("umount", examples=["layerfs umount web", "layerfs umount /mnt"])
@clone_argument("names", metavar="NAME|DIRECTORY...", nargs=-1, required=True)
def command(session: Session, names: tuple[str, ...]) -> int:
    """Unmount a clone everywhere.

    NAME is a clone, or a directory where one is mounted. A mount that some process still uses is refused.
    """
    with session.opened() as store:
        return each(session, names, lambda name: _find(store, name).unmount(), done="unmounted")


def _find(store: Store, name: str) -> Clone:
    """Return the clone of this name, or the one that is mounted at this directory."""
    if "/" not in name:
        return store.get_clone(name)
    place = Path(name).resolve()
    for clone in store.clones():
        if place in clone.mount_points():
            return clone
    raise NotFound(f"no clone is mounted at {name}", hint="`layerfs ls` shows where they are mounted")
