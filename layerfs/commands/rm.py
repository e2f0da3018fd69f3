"""`layerfs rm`: clones away."""

from __future__ import annotations

from layerfs.commands.frame.failure import each
from layerfs.commands.frame.names import clone_argument
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb("rm", examples=["layerfs rm web", "layerfs rm $(layerfs -q ls)"])
@clone_argument("names", metavar="NAME...", nargs=-1, required=True)
def command(session: Session, names: tuple[str, ...]) -> int:
    """Remove clones with everything in them.

    Snapshots of a clone go with it. A clone that is mounted is refused: unmount it first. The images stay.
    """
    with session.opened() as store:
        return each(session, names, lambda name: store.get_clone(name).remove(), done="removed")
