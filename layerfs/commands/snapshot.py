"""`layerfs snapshot`: a state of a clone to come back to."""

from __future__ import annotations

from layerfs.commands.frame.names import clone_argument, new_name_argument
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb("snapshot", examples=["layerfs snapshot web before-upgrade", "layerfs rollback web before-upgrade"])
@clone_argument()
@new_name_argument("label")
def command(session: Session, name: str, label: str | None) -> None:
    """Remember the present state of a clone.

    Print the label: LABEL, or one that layerfs makes up. `layerfs rollback` brings the clone back to it, and
    `layerfs diff NAME@LABEL NAME` shows what happened since.
    """
    with session.opened() as store:
        clone = store.get_clone(name)
        made = clone.snapshot(label)
        session.show({"clone": clone.name, "snapshot": made}, made)
