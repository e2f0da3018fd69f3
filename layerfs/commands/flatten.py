"""`layerfs flatten`: whole files where only changed blocks were stored."""

from __future__ import annotations

from layerfs.commands.frame.names import clone_argument
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb("flatten", examples=["layerfs flatten web"])
@clone_argument()
def command(session: Session, name: str) -> None:
    """Make files whole of which only changed blocks are stored.

    A store of the fuse driver with the option write=redirect stores the changed blocks of a big file alone. Whole
    again, the file takes its full size, and the kernel's overlay can show the clone. A commit does so by itself; with
    other drivers there is nothing to do. The clone must not be mounted.
    """
    with session.opened() as store:
        clone = store.get_clone(name)
        count = clone.flatten()
        session.show({"clone": clone.name, "files": count}, f"{count} file{'s' if count != 1 else ''}")
