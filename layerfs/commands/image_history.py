"""`layerfs image history`: how an image came to be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from layerfs.commands.frame.describe import UNTAGGED
from layerfs.commands.frame.names import image_argument
from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.units import moment, short, size
from layerfs.commands.frame.verb import verb
from layerfs.image.config import History

if TYPE_CHECKING:
    from layerfs.image.descriptor import Descriptor
    from layerfs.images import Image

_WIDEST = 60
"""Characters of a step that the table shows; ``--json`` has all."""


class Step(NamedTuple):
    """One step of the making of an image, and the layer that it made, if it made one."""

    history: History
    layer: Descriptor | None


@verb(
    "history",
    examples=["layerfs image history debian:12", "layerfs --json image history debian:12 | jq '.history[].created_by'"],
)
@image_argument()
def command(session: Session, image: str) -> None:
    """Show how an image was made, the newest step first.

    SIZE is that of the layer as it is stored; a step without one changed the configuration only.
    """
    with session.opened() as store:
        newest_first = list(steps(store.image(image)))[::-1]
    document: dict[str, Json] = {"history": [_document(step) for step in newest_first]}
    headings = ("LAYER", "CREATED", "SIZE", "CREATED BY", "COMMENT")
    session.show_table(document, headings, [_row(step) for step in newest_first], right=("SIZE",))


def steps(image: Image) -> Iterator[Step]:
    """Pair the history with the layers, the oldest first; layers that no history tells of follow without one."""
    layers = iter(image.manifest.layers)
    for entry in image.config.history:
        yield Step(entry, None if entry.empty_layer else next(layers, None))
    for layer in layers:
        yield Step(History(), layer)


def _row(step: Step) -> tuple[str, ...]:
    words = " ".join(step.history.created_by.split())
    return (
        short(step.layer.digest) if step.layer else UNTAGGED,
        moment(step.history.created) if step.history.created else UNTAGGED,
        size(step.layer.size) if step.layer else UNTAGGED,
        words if len(words) <= _WIDEST else f"{words[: _WIDEST - 3]}...",
        step.history.comment,
    )


def _document(step: Step) -> dict[str, Json]:
    entry = step.history
    return {
        "created": entry.created.isoformat() if entry.created else None,
        "created_by": entry.created_by,
        "author": entry.author,
        "comment": entry.comment,
        "layer": str(step.layer.digest) if step.layer else None,
        "size": step.layer.size if step.layer else None,
    }
