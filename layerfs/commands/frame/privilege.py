"""Who is root: an ordinary user works as root of a user namespace of their own, where no mount outlasts them."""

from __future__ import annotations

import logging
import os

from layerfs.errors import PermissionDenied, Unsupported
from layerfs.kernel import userns

_log = logging.getLogger(__name__)


def become_root() -> None:
    """Enter a user namespace unless the process is root; where the host forbids it, go on as the user that one is.

    Listing images needs no privilege, nor does every driver; the one that does says so itself, with what to do.
    """
    if os.geteuid() == 0:
        return
    try:
        userns.enter()
    except Unsupported as error:
        _log.info("%s; going on without", error)


def require_lasting_mounts(name: str) -> None:
    """Raise `PermissionDenied` where a mount would end with this process, because only its namespace sees it."""
    if os.geteuid() != 0:
        raise PermissionDenied(
            f"cannot mount {name!r} for an ordinary user: the mount would be visible to this process only",
            hint=f"`layerfs shell {name}` runs a shell inside the clone; or mount it as root",
        )
