"""Locks between processes: open-file-description locks on single bytes of one file, ``<store>/lock``.

One file serves for every lock, so none is left behind for a name that is gone, and a lock ends with the process that
holds it, however it ends. The byte tells what is locked: a constant here, or what `named`, `upper` and `Owner` give.
Source: fcntl_locking(2), "Open file description locks".
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NewType

from layerfs.errors import Busy, os_error

Place = NewType("Place", int)
"""The byte of the lock file that stands for what is locked."""

STORE = Place(0)
"""The store as a whole: shared for work, exclusive for what deletes what nobody names (prune)."""

GATE = Place(1)
"""The way to the store: exclusive for those who wait until nobody works with it."""

RECORD = Place(2)
"""The record of the database (`layerfs.metadata.record`), from inside a transaction until its lines are written."""

_UPPER, _NAMED, _OWNER = (Place(1 << bit) for bit in (59, 60, 61))
_FLOCK = struct.Struct("hhqqi4x")
"""``struct flock`` of 64-bit Linux: type, whence, start, length, pid."""

_POLL = 0.02
"""Seconds between two tries while waiting with a limit."""


def upper(snapshot_id: int) -> Place:
    """Return the lock of one snapshot's writable directory: the kernel accepts a second mount of it, we do not."""
    return Place(_UPPER + snapshot_id)


def named(name: str) -> Place:
    """Return the lock of a name, such as a layer being unpacked; two names share one once in 2**59."""
    return Place(_NAMED + int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % _NAMED)


@contextmanager
def locked(
    file: Path,
    *places: Place,
    exclusive: bool,
    what: str,
    timeout: float | None = None,
    create: bool = True,
) -> Iterator[None]:
    """Hold locks while the block runs, taken in this order, which must be the same for all who take several.

    ``timeout`` is in seconds, None waits for ever and 0 does not wait; `Busy` says ``what`` somebody else holds.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    try:
        descriptor = os.open(file, flags, 0o600)
    except OSError as error:
        raise os_error("open the lock file", error) from error
    try:
        for place in places:
            _acquire(descriptor, place, exclusive=exclusive, what=what, timeout=timeout)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, place: Place, *, exclusive: bool, what: str, timeout: float | None) -> None:
    request = _FLOCK.pack(fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK, os.SEEK_SET, place, 1, 0)
    if timeout is None:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, request)
        return
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise os_error(f"lock {what}", error) from error
            if time.monotonic() >= deadline:
                raise Busy(f"{what} is in use by another process", hint="wait for it to end, then try again") from error
        else:
            return
        time.sleep(_POLL)


class Owner:
    """A process's sign of life: a byte of the lock file that stays locked until the process closes it or dies.

    Rows of work under way name the owner's token, so that whoever meets one can tell an unfinished row of a live
    process from what a crash left. A forked child gets a token of its own.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor = -1
        self._pid = 0
        self._token = 0

    @property
    def token(self) -> int:
        """Return this process's token, locked from now on."""
        if self._pid != os.getpid():
            self._token = int.from_bytes(os.urandom(8)) % _UPPER
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            place = Place(_OWNER + self._token)
            _acquire(self._descriptor, place, exclusive=True, what="a new token", timeout=0)
            self._pid = os.getpid()
        return self._token

    def is_alive(self, token: int) -> bool:
        """Tell whether the process that made ``token`` still runs."""
        if token == self.token:
            return True
        request = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _OWNER + token, 1, 0)
        answer = fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, request)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    def close(self) -> None:
        """Give the sign of life back; doing it twice is no error."""
        if self._pid == os.getpid():
            os.close(self._descriptor)
        self._pid = 0
