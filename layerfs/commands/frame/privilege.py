"""Who is root: an ordinary user works as root of a user namespace of their own, where no mount outlasts them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from layerfs.errors import PermissionDenied, Unsupported
from layerfs.kernel import userns
from layerfs.opening import needs_namespace

_log = logging.getLogger(__name__)


def become_root() -> bool:
    """Enter a user namespace unless the process is root; tell whether it did.

    Where the host forbids it, go on as the user that one is: listing images needs no privilege, nor does every driver;
    the one that does says so itself, with what to do.
    """
    if os.geteuid() == 0:
        return False
    try:
        userns.enter()
    except Unsupported as error:
        _log.info("%s; going on without", error)
        return False
    return True


def become_root_for(store: Path, backend: str) -> bool:
    """Do as `become_root` where the store, or the one that is to be made there, needs it."""
    return os.geteuid() != 0 and needs_namespace(store, backend) and become_root()


def require_lasting_mounts(name: str, *, entered: bool) -> None:
    """Raise `PermissionDenied` where a mount would end with this process, because only its namespace sees it."""
    if entered:
        raise PermissionDenied(
            f"cannot mount {name!r} for an ordinary user: the mount would be visible to this process only",
            hint=f"`layerfs shell {name}` runs a shell inside the clone; or use a store of the fuse driver, or root",
        )
