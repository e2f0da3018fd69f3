"""What the kernel and the server agree on in INIT: a pure function from what is offered to what is taken.

There are two *ways* to serve files. *Passthrough*: the kernel reads and writes the file below by itself; it needs
CAP_SYS_ADMIN, Linux 6.9, and an OPEN and a RELEASE for each open file. *No open*: OPEN is answered once with ENOSYS,
from then on the kernel asks by node alone and keeps what is written in its own cache until it is written back. The
kernel allows no writeback cache beside passthrough.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from layerfs_fuse.protocol import INIT_IN, INIT_IN_FLAGS2, INIT_OUT, MAJOR, MINOR, OLDEST_MINOR, Init

MAX_WRITE = 1 << 20
"""Bytes of one READ or WRITE; the kernel's own limit for an ordinary user is 256 pages."""
PAGE = 4096
"""The smallest page there is; with larger ones the kernel lowers the number of pages itself."""

_BACKGROUND = 64
"""Requests in the background (readahead, writeback, RELEASE) at once; above three quarters the device is congested."""

_ALWAYS = (
    Init.ASYNC_READ
    | Init.BIG_WRITES
    | Init.DONT_MASK  # the umask is ours to apply, for a default ACL replaces it
    | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO
    | Init.ASYNC_DIO
    | Init.PARALLEL_DIROPS
    | Init.ABORT_ERROR
    | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS
    | Init.NO_OPENDIR_SUPPORT
    | Init.EXPLICIT_INVAL_DATA  # nobody changes a file but through this mount
    | Init.HANDLE_KILLPRIV_V2  # also spares a GETXATTR of security.capability for every write but the first
    | Init.SETXATTR_EXT
    | Init.INIT_EXT
    | Init.HAS_EXPIRE_ONLY
    | Init.NO_EXPORT_SUPPORT
)


@dataclass(frozen=True, slots=True)
class Offer:
    """The body of an INIT request; ``max_readahead`` in bytes."""

    major: int
    minor: int
    max_readahead: int
    flags: Init

    @classmethod
    def parse(cls, body: memoryview) -> Offer:
        """Read the body of INIT; raise ``OSError`` EPROTO where the kernel speaks a protocol older than ours."""
        major, minor, readahead, flags = INIT_IN.unpack_from(body)
        if major < MAJOR or (major == MAJOR and minor < OLDEST_MINOR):
            raise OSError(errno.EPROTO, f"FUSE {major}.{minor} of this kernel is older than {MAJOR}.{OLDEST_MINOR}")
        if flags & Init.INIT_EXT:
            (above,) = INIT_IN_FLAGS2.unpack_from(body, INIT_IN.size)
            flags |= above << 32
        return cls(major, minor, readahead, Init(flags))


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the server would like; the kernel has the last word.

    ``passthrough`` only as root, for who may not register a file below finds that out at the first OPEN.
    """

    passthrough: bool
    writeback: bool = True
    acl: bool = True


@dataclass(frozen=True, slots=True)
class Session:
    """What was agreed on."""

    minor: int
    max_readahead: int
    flags: Init

    @property
    def passthrough(self) -> bool:
        """Tell whether files are served by passthrough; else by "no open"."""
        return Init.PASSTHROUGH in self.flags

    @property
    def writeback(self) -> bool:
        """Tell whether the kernel keeps what is written, sizes and times included, until it writes it back."""
        return Init.WRITEBACK_CACHE in self.flags

    def reply(self) -> bytes:
        """Return the body of the reply to INIT."""
        # A file below that is itself on a stacked file system would make this one too deep to be a layer of others.
        depth = 1 if self.passthrough else 0
        low, high = self.flags & 0xFFFFFFFF, self.flags >> 32
        sizes = (_BACKGROUND, _BACKGROUND * 3 // 4, MAX_WRITE, 1, MAX_WRITE // PAGE, 0)
        return INIT_OUT.pack(MAJOR, self.minor, self.max_readahead, low, *sizes, high, depth, 0)


def negotiate(offer: Offer, wishes: Wishes) -> Session:
    """Take of the offer what the server can do and wishes for."""
    wanted = _ALWAYS
    if wishes.acl:
        wanted |= Init.POSIX_ACL
    if wishes.passthrough and Init.PASSTHROUGH in offer.flags:
        wanted |= Init.PASSTHROUGH | Init.ATOMIC_O_TRUNC
    else:
        wanted |= Init.NO_OPEN_SUPPORT
        if wishes.writeback:
            wanted |= Init.WRITEBACK_CACHE
    return Session(min(offer.minor, MINOR), offer.max_readahead, wanted & offer.flags)
