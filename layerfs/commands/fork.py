"""`layerfs fork`: a clone of a clone."""

from __future__ import annotations

from layerfs.commands.frame.describe import clone_document
from layerfs.commands.frame.names import clone_argument, new_name_argument
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb("fork", examples=["layerfs fork web web-experiment"])
@clone_argument()
@new_name_argument("new")
def command(session: Session, name: str, new: str | None) -> None:
    """Make a second clone that starts from the present state of a clone.

    Print the name of the fork: NEW, or one that layerfs makes up. Both go their own ways from here, and share what
    neither changes.
    """
    with session.opened() as store:
        forked = store.get_clone(name).fork(new)
        session.show(clone_document(forked), forked.name)
