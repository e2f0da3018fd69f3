"""`layerfs diff`: what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from layerfs.commands.frame.describe import change_document
from layerfs.commands.frame.names import complete_either
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.text import printable
from layerfs.commands.frame.verb import verb

if TYPE_CHECKING:
    from layerfs.layer.changes import Change

_LETTERS = {"added": ("A", "green"), "modified": ("M", "yellow"), "deleted": ("D", "red")}


@verb("diff", examples=["layerfs diff web", "layerfs diff web@before-upgrade web", "layerfs diff debian:11 debian:12"])
@click.argument("first", metavar="NAME", shell_complete=complete_either)
@click.argument("second", metavar="[OTHER]", required=False, shell_complete=complete_either)
def command(session: Session, first: str, second: str | None) -> None:
    """List what a clone changed, or how two things differ.

    With one NAME: the clone against its image. With two: what to do to NAME to get OTHER, where each is a clone, a
    snapshot CLONE@LABEL, an image, or the id of a layer. A is added, M modified, D deleted.
    """
    with session.opened() as store:
        changes = list(store.changes(first, second))
        document = {"changes": [change_document(change) for change in changes]}
        session.show(document, lambda: "\n".join(map(_line, changes)))


def _line(change: Change) -> str:
    letter, colour = _LETTERS[str(change.kind)]
    return f"{click.style(letter, fg=colour)} /{printable(change.path)}"
