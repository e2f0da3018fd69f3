"""`layerfs rollback`: a clone as it was."""

from __future__ import annotations

from layerfs.commands.frame.names import clone_argument, new_name_argument
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb("rollback", examples=["layerfs rollback web before-upgrade", "layerfs rollback web"])
@clone_argument()
@new_name_argument("label")
def command(session: Session, name: str, label: str | None) -> None:
    """Bring a clone back to a snapshot or to its image.

    Everything that the clone changed since the snapshot LABEL is thrown away; without LABEL, since its latest
    snapshot, or since the image where there is none. The clone must not be mounted.
    """
    with session.opened() as store:
        clone = store.get_clone(name)
        clone.rollback(label)
        session.show({"clone": clone.name, "snapshot": label}, clone.name)
