"""Where two indexes show different trees, whatever their rows are: one that is kept, and one that was just built."""

from __future__ import annotations

import struct

from layerfs.layer.tar import shown
from layerfs_fuse.index.format import ROOT
from layerfs_fuse.index.reader import Index

# struct fuse_attr (include/uapi/linux/fuse.h): ino size blocks, then times, their nanoseconds, mode nlink uid gid rdev
_ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
_LASTING = (0, 1, 4, 7, 9, 10, 11, 12, 13)
"""Those that nothing but a change of the file changes: not blocks, and not the times of access and of change."""
_SIZES = (1, 10)
"""Which of a directory are the file system's affair: its length and its links."""


def difference(kept: Index, built: Index) -> str:
    """Return what the first says that is not so, if the second is right; "" where they show the same."""
    pending = [(ROOT, ROOT)]
    while pending:
        old, new = pending.pop()
        if _like(kept, old) != _like(built, new):
            return f"what it says of {shown(built.path(new))} is not so"
        names = [kept.name(row) for row in kept.children(old)]
        if names != [built.name(row) for row in built.children(new)]:
            return f"it lists other names in {shown(built.path(new))}"
        pending += zip(kept.children(old), built.children(new), strict=True)
    return ""


def _like(index: Index, row: int) -> tuple[object, ...]:
    """Return what a row says of its file."""
    values = _ATTRIBUTES.unpack(index.attributes(row))
    wanted = [place for place in _LASTING if not (index.is_directory(row) and place in _SIZES)]
    target = index.target(row) if index.has_target(row) else b""
    aliases = sorted(index.path(one) for one in index.aliases(row))
    return (*(values[place] for place in wanted), index.layer(row), index.has_xattrs(row), target, aliases)
