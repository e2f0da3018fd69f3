"""`layerfs lease ls`: the leases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerfs.commands.frame.leasing import lease_document
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.units import moment
from layerfs.commands.frame.verb import verb

if TYPE_CHECKING:
    from layerfs.leases import Lease


@verb("ls", examples=["layerfs lease ls", "layerfs --json lease ls | jq -r '.leases[].images[]'"])
def command(session: Session) -> None:
    """List the leases, and how many images, blobs and snapshots each names.

    One that is over is listed until the next prune.
    """
    with session.opened() as store:
        leases = store.leases()
        document = {"leases": [lease_document(lease) for lease in leases]}
        rows = [_row(lease) for lease in leases]
    headings = ("ID", "CREATED", "ENDS", "IMAGES", "BLOBS", "SNAPSHOTS")
    session.show_table(document, headings, rows, right=headings[3:])


def _row(lease: Lease) -> tuple[str, ...]:
    names = lease.names
    counts = (str(len(each)) for each in (names.images, names.blobs, names.snapshots))
    return lease.id, moment(lease.created), "over" if lease.over else moment(lease.expires), *counts
