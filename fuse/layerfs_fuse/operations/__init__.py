"""What each request means: taken apart, asked of the union, and its answer put together.

One class for each kind: `Names` makes and removes what is in directories, `Status` tells and changes attributes and
extended attributes, `Files` reads and writes. Each offers a table of handlers; `handlers` joins them.
"""

from __future__ import annotations

from layerfs_fuse.ids import AS_THEY_ARE, IdShift
from layerfs_fuse.operations.files import Files
from layerfs_fuse.operations.names import Names
from layerfs_fuse.operations.owners import shifted
from layerfs_fuse.operations.status import Status
from layerfs_fuse.server import Channel, Handler
from layerfs_fuse.session import Session
from layerfs_fuse.union import Union

__all__ = ["Files", "Names", "Status", "handlers"]


def handlers(
    union: Union,
    files: Files,
    channel: Channel,
    session: Session,
    *,
    users: IdShift = AS_THEY_ARE,
    groups: IdShift = AS_THEY_ARE,
) -> dict[int, Handler]:
    """Return what answers each opcode of one mount, with owners shown as ``users`` and ``groups`` say.

    Other opcodes get ENOSYS, which tells the kernel not to ask again. That is wanted for ACCESS (the kernel checks
    permissions), FLUSH (nothing waits for a close), OPENDIR (a directory needs no state), INTERRUPT (nothing takes
    long enough), POLL, BMAP and locks (the kernel keeps them itself).
    """
    body = channel.body
    parts = (Names(union, files, body, session), Status(union, body, session), files)
    table = {opcode: handler for part in parts for opcode, handler in part.handlers().items()}
    return shifted(table, body, users, groups)
