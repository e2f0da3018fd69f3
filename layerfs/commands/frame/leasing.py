"""Leases as options of verbs: how long one lasts, and which one keeps what comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from layerfs.commands.frame.session import Json
from layerfs.commands.frame.spans import span

if TYPE_CHECKING:
    from layerfs.leases import Lease
    from layerfs.store import Store

Decorator = Callable[[Callable[..., object]], Callable[..., object]]


def ttl_option() -> Decorator:
    """Declare ``--ttl``, a ``timedelta``; a day by default, as with other tools."""
    return click.option(
        "--ttl", type=span, default="24h", show_default=True, metavar="TIME", help="How long it lasts: 30m, 24h, 7d."
    )


def lease_option() -> Decorator:
    """Declare ``--lease``, None or the id of a lease that keeps what the verb brings."""
    return click.option(
        "--lease", metavar="ID", help="Keep what comes under this lease, also if it is cut off; the same call goes on."
    )


def chosen(store: Store, lease: str | None) -> Lease | None:
    """Return the lease of an id that was given by `lease_option`."""
    return None if lease is None else store.get_lease(lease)


def lease_document(lease: Lease) -> dict[str, Json]:
    """Describe a lease."""
    names = lease.names
    return {
        "id": lease.id,
        "created": lease.created.isoformat(),
        "expires": lease.expires.isoformat(),
        "over": lease.over,
        "images": sorted(names.images),
        "blobs": sorted(names.blobs),
        "snapshots": sorted(names.snapshots),
    }
