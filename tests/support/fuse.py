"""FUSE file systems for tests: a server in a process of its own, with as little in it as the test needs."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from layerfs.errors import FailedPrecondition
from layerfs.kernel import children
from layerfs_fuse import mounting
from layerfs_fuse.attributes import ATTRIBUTES, ENTRY, pack_attributes
from layerfs_fuse.mounting import Attachment
from layerfs_fuse.protocol import ATTR_OUT, HEADER, Opcode
from layerfs_fuse.server import Channel, Handler, Header
from layerfs_fuse.session import Wishes

Table = dict[int, Handler]


def no_names(channel: Channel, *, name: bytes = b"file") -> Table:
    """Return the handlers of a root directory in which there is one empty file, whose attributes are never kept."""
    root = pack_attributes(os.stat("/"), 1)
    file = ATTRIBUTES.pack(2, *[0] * 8, stat.S_IFREG | 0o644, 1, os.geteuid(), os.getegid(), 0, 4096, 0)

    def lookup(header: Header) -> bytes | int:
        if channel.body[HEADER.size : header[0] - 1] == name:
            return ENTRY.pack(2, 0, 0, 0, 0, 0, file)
        return -errno.ENOENT

    def attributes(header: Header) -> tuple[bytes, bytes]:
        return ATTR_OUT.pack(0, 0, 0), root if header[3] == 1 else file

    return {Opcode.LOOKUP: lookup, Opcode.GETATTR: attributes}


@contextmanager
def served(
    target: Path,
    make_table: Callable[[Channel], Table] = no_names,
    *,
    attachment: Attachment | None = None,
    wishes: Wishes | None = None,
) -> Iterator[int]:
    """Serve at ``target`` by a process whose pid is given; at the end it is unmounted and the process is gone."""
    device = mounting.attach(target, attachment or Attachment())
    pid = children.fork()
    if pid == 0:
        _serve(device, make_table, wishes or Wishes(passthrough=False))
    os.close(device)
    try:
        yield pid
    finally:
        with suppress(FailedPrecondition):  # the test unmounted it
            mounting.detach(target, lazy=True)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # the test waited for it
            os.waitpid(pid, 0)


def _serve(device: int, make_table: Callable[[Channel], Table], wishes: Wishes) -> None:
    def body() -> int:
        channel = Channel(device)
        if channel.negotiate(wishes) is not None:
            channel.serve(make_table(channel))
        channel.close()
        return 0

    children.end_with(body, os.open(os.devnull, os.O_WRONLY), "serve")
