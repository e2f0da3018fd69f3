"""`layerfs store close`: a store at rest."""

from __future__ import annotations

from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb("close", examples=["layerfs --store /srv/images store close"])
def command(session: Session) -> None:
    """Unmount a store that lives in a file, and take its devices from the kernel.

    The next verb that opens the store brings it back. A store with a mounted clone is refused. Closing a store in a
    directory does nothing.
    """
    with session.opened() as store:
        closed = store.detach()
        session.show({"store": str(store.path), "unmounted": closed}, str(store.path) if closed else "")
    if not closed:
        session.say("nothing to unmount: this store lives in a directory")
