"""`layerfs store close`: a store at rest."""

from __future__ import annotations

from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb
from layerfs.errors import Busy


@verb("close", examples=["layerfs --store /srv/images store close"])
def command(session: Session) -> None:
    """Unmount a store that lives in a file and free its loop device.

    The next verb that opens the store mounts it again. A store with a mounted clone is refused. Closing a store in a
    directory does nothing.
    """
    with session.opened() as store:
        for clone in store.clones():
            # The kernel would allow it: an overlay keeps the file system below it alive, and the next opening would
            # then mount the same file a second time.
            if mounted := clone.mount_points():
                where = ", ".join(map(str, mounted))
                raise Busy(f"the clone {clone.name!r} is mounted at {where}", hint=f"layerfs umount {clone.name}")
        closed = store.detach()
        session.show({"store": str(store.path), "unmounted": closed}, str(store.path) if closed else "")
    if not closed:
        session.say("nothing to unmount: this store lives in a directory")
