"""The values that a request to the union is made of.

Those of single requests are not frozen, for that costs 3 to 5 µs each time one is made, a third of a whole request;
nobody changes them all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from layerfs.contract import WritePolicy

REDIRECT_FROM = 128 << 10
"""Bytes from which on a file is redirected unless somebody says otherwise."""


@dataclass(slots=True)
class Caller:
    """Who makes something new: its owner, its group, the process, and the umask that applies without a default ACL."""

    uid: int
    gid: int
    pid: int = 0
    umask: int = 0


@dataclass(slots=True)
class Changes:
    """New attributes; None leaves one alone. ``size`` is in bytes, times in nanoseconds since 1970 or `NOW`.

    ``kill_suidgid`` takes set-user-id and set-group-id away, as a write or a change of size by an ordinary user must.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    kill_suidgid: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """How a union works.

    ``volatile`` never waits for the disk: a crash may lose anything, also what was copied up. ``write`` says whether a
    big lower file is copied when it changes, or only its changed blocks are stored (`layerfs_fuse.redirect`); where the
    file system can share blocks between files, it does that in either case. Files of fewer bytes than ``redirect_from``
    are copied: a map, marks and descriptors cost more than that (docs/explanation/decisions.md).
    """

    volatile: bool = False
    write: WritePolicy = WritePolicy.COPY_ON_WRITE
    redirect_from: int = REDIRECT_FROM
