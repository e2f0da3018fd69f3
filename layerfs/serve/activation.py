"""The socket to serve on, and what the service manager is told of it: systemd's protocols, without its library.

Sources: sd_listen_fds(3) and sd_notify(3).
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from layerfs.errors import Busy, FailedPrecondition, InvalidArgument, os_error

_FIRST: Final = 3
"""The descriptor from which on systemd hands sockets over."""
_BACKLOG: Final = 128
_LONGEST_PATH: Final = 107
"""Bytes of a socket's path (unix(7))."""


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Give the socket that systemd holds open for us, or a new one at ``path``, which is removed at the end.

    The new one is for its owner only (0600). Raise `Busy` where somebody listens there, `FailedPrecondition` where
    something else than a socket is in the place.
    """
    inherited = _inherited()
    if inherited is not None:
        with inherited:
            yield inherited
        return
    with _bound(path) as made:
        mark = os.stat(path)
        try:
            yield made
        finally:
            # Another process may have the place by now.
            with suppress(FileNotFoundError):
                if os.path.samestat(mark, os.stat(path)):
                    path.unlink()


def notify(state: str) -> None:
    """Tell the service manager something, such as ``READY=1``; nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock, suppress(OSError):
        sock.sendto(state.encode(), b"\0" + address[1:].encode() if address.startswith("@") else address)


def _inherited() -> socket.socket | None:
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.get("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)  # not for the processes that we start
    if count != "1":
        raise InvalidArgument(f"{count} sockets were handed over", hint="give the socket unit one ListenStream=")
    os.set_inheritable(_FIRST, False)
    handed = socket.socket(fileno=_FIRST)
    listens = handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if handed.family != socket.AF_UNIX or handed.type != socket.SOCK_STREAM or not listens:
        raise InvalidArgument(
            "what was handed over is no listening stream socket", hint="ListenStream=, Accept=no, and a path"
        )
    return handed


def _bound(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise InvalidArgument(f"{path} is too long for a socket", hint=f"a path may have {_LONGEST_PATH} bytes")
    try:
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        _clear(path)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # The mode before anybody can connect: bind(2) gives the file that of the descriptor (unix(7)).
            os.fchmod(made.fileno(), 0o600)
            made.bind(str(path))
            made.listen(_BACKLOG)
        except BaseException:
            made.close()
            raise
    except OSError as error:
        raise os_error(f"listen at {path}", error) from error
    return made


def _clear(path: Path) -> None:
    """Remove the socket that a process left which was killed."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FailedPrecondition(f"{path} is there, and is no socket", hint="name another place by --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise Busy(f"somebody serves at {path} already", hint="stop that one, or name another place by --socket")
