"""What the union remembers of an inode that is not pristine."""

from __future__ import annotations

import stat
from typing import Protocol

from layerfs_fuse.union.order import Order

HIDDEN = 0
"""In `Directory.children`: a whiteout. Positive numbers are node ids, negative ones file types not looked at."""


class OpenFile(Protocol):
    """What a node knows of a handle on its file: the descriptor, and the flags of open(2)."""

    fd: int
    flags: int


class Node:
    """An inode that lies in the upper directory, or a lower one about which something changed.

    ``entry`` is the packed reply to a lookup; ``stale`` says that it is older than what the disk has, ``written`` that
    its size may be, too. ``row`` is where its data lies while it is not ``upper``; ``inode`` is its number in the upper
    file system. ``directory`` and ``name`` are one of the names that are known in memory, ``more`` the others. ``past``
    counts who writes without telling us. ``bare`` says that it has no extended attributes for certain. ``fd`` (O_PATH)
    keeps it when it has lost its last known name; ``handle`` is the last one opened, if it still is. ``redirected``
    says that parts of its data lie in a lower file (`layerfs_fuse.redirect`).
    """

    __slots__ = (
        "bare",
        "directory",
        "entry",
        "fd",
        "handle",
        "id",
        "ino",
        "inode",
        "kind",
        "lookups",
        "more",
        "name",
        "past",
        "redirected",
        "row",
        "stale",
        "upper",
        "written",
    )

    def __init__(self, node: int, ino: int, entry: bytearray, kind: int, *, upper: bool, row: int = 0) -> None:
        self.id = node
        self.ino = ino
        self.entry = entry
        self.kind = kind
        self.upper = upper
        self.row = row
        self.inode = 0
        self.directory: Directory | None = None
        self.name = b""
        self.more: list[tuple[Directory, bytes]] | None = None
        self.lookups = 0
        self.stale = False
        self.written = False
        self.past = 0
        self.bare = False
        self.redirected = False
        self.fd = -1
        self.handle: OpenFile | None = None

    def add_name(self, directory: Directory, name: bytes) -> None:
        """Note one more name."""
        directory.live += 1
        if self.directory is None:
            self.directory, self.name = directory, name
        elif self.more is None:
            self.more = [(directory, name)]
        else:
            self.more.append((directory, name))

    def drop_name(self, directory: Directory, name: bytes) -> None:
        """Note that a name is gone."""
        directory.live -= 1
        if self.directory is directory and self.name == name:
            self.directory = None
            if self.more:
                self.directory, self.name = self.more.pop()
        elif self.more is not None:
            self.more.remove((directory, name))

    def names(self) -> list[tuple[Directory, bytes]]:
        """Return all names that are known."""
        first = [] if self.directory is None else [(self.directory, self.name)]
        return first + (self.more or [])


class Directory(Node):
    """A directory.

    ``below`` is the row of the index that it is merged with, or 0. ``loaded`` says that its upper counterpart, if it
    has one, was read into ``children``. ``subdirectories`` counts those that show, ``live`` the names of nodes in
    memory. ``owed`` says that the times on disk are not those in ``entry`` and must be put right. ``plain`` says that
    it has no default ACL for certain, ``marked`` that it may hold whiteouts that are files, ``dead`` that it is gone.
    """

    __slots__ = (
        "below",
        "children",
        "dead",
        "live",
        "loaded",
        "marked",
        "open_fd",
        "order",
        "owed",
        "plain",
        "subdirectories",
    )

    def __init__(self, node: int, ino: int, entry: bytearray, *, upper: bool, below: int) -> None:
        super().__init__(node, ino, entry, stat.S_IFDIR, upper=upper, row=below)
        self.below = below
        self.children: dict[bytes, int] = {}
        self.loaded = not upper
        self.open_fd = -1
        self.order: Order | None = None
        self.owed = False
        self.plain = False
        self.marked = False
        self.dead = False
        self.live = 0
        self.subdirectories = 0
