"""`layerfs ls`: the clones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from layerfs.commands.frame.describe import clone_document
from layerfs.commands.frame.quota import written
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.units import moment, short
from layerfs.commands.frame.verb import verb

if TYPE_CHECKING:
    from layerfs.clones import Clone


@verb("ls", examples=["layerfs ls", "layerfs --json ls | jq -r '.clones[].name'"])
def command(session: Session) -> None:
    """List the clones.

    With -q the names only.
    """
    with session.opened() as store:
        clones = store.clones()
        names = {str(image.digest): image.names[0] for image in store.images() if image.names}
        document = {"clones": [clone_document(clone) for clone in clones]}
        rows = [_row(clone, names) for clone in clones]
    session.show_table(document, ("NAME", "IMAGE", "CREATED", "SNAPSHOTS", "QUOTA", "MOUNTED ON"), rows)


def _row(clone: Clone, names: Mapping[str, str]) -> tuple[str, ...]:
    image = names.get(clone.image, short(clone.image))
    mounts = " ".join(map(str, clone.mount_points()))
    return clone.name, image, moment(clone.created), " ".join(clone.snapshots()), written(clone.quota), mounts
