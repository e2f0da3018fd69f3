"""Files with several names: what they are linked with, before and after."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from layerfs.kernel.descent import Descent

Inode = tuple[int, int]
"""Device and inode number."""


def inode(status: os.stat_result) -> Inode:
    """Return what tells a file from all others."""
    return status.st_dev, status.st_ino


def linked_names(root: int) -> Iterator[tuple[bytes, Inode]]:
    """Walk through a tree, of which ``root`` is closed at the end, and yield the paths of files with several names."""
    with Descent(root) as walk:
        frames = [(b"", _listed(walk.fd))]
        while frames:
            path, names = frames[-1]
            if not names:
                frames.pop()
                if frames:
                    walk.up()
                continue
            name = names.pop()
            status = os.stat(name, dir_fd=walk.fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                walk.down(name)
                frames.append((path + name + b"/", _listed(walk.fd)))
            elif status.st_nlink > 1:
                yield path + name, inode(status)


def _listed(fd: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(fd)]


@dataclass(slots=True)
class Links:
    """What a comparison has seen of files with several names.

    ``unchanged`` are the paths that look the same on both sides, with the status before and after; ``seen`` are all
    paths of linked files below, ``gone`` those of what is deleted or replaced together with everything in it.
    """

    unchanged: dict[bytes, tuple[os.stat_result, os.stat_result]] = field(
        default_factory=dict[bytes, tuple[os.stat_result, os.stat_result]]
    )
    seen: set[bytes] = field(default_factory=set[bytes])
    gone: set[bytes] = field(default_factory=set[bytes])

    def add(self, path: bytes, before: os.stat_result, after: os.stat_result) -> None:
        """Remember a file that looks unchanged."""
        if before.st_nlink > 1 or after.st_nlink > 1:
            self.unchanged[path] = (before, after)

    def changed(self) -> Iterator[tuple[bytes, os.stat_result]]:
        """Yield the files, with the status after, that were linked with other unchanged names before than after."""
        before: dict[Inode, set[bytes]] = {}
        after: dict[Inode, set[bytes]] = {}
        for path, (old, new) in self.unchanged.items():
            before.setdefault(inode(old), set()).add(path)
            after.setdefault(inode(new), set()).add(path)
        for path, (old, new) in self.unchanged.items():
            if before[inode(old)] != after[inode(new)]:
                yield path, new

    def left_behind(self, lower: int) -> Iterator[tuple[bytes, os.stat_result]]:
        """Yield the files that were copied up away from names that stay visible below; ``lower`` is closed at the end.

        Only the upper directory of an overlay needs this: its walk does not see names that are only below.
        """
        wanted: dict[Inode, list[tuple[bytes, os.stat_result]]] = {}
        for path, (old, new) in self.unchanged.items():
            if old.st_nlink > 1:
                wanted.setdefault(inode(old), []).append((path, new))
        if not wanted:
            os.close(lower)
            return
        for path, key in linked_names(lower):
            if key in wanted and path not in self.seen and not self._is_gone(path):
                yield from wanted.pop(key)

    def _is_gone(self, path: bytes) -> bool:
        """Tell whether a path is hidden, itself or by what is above it."""
        parts = path.split(b"/")
        return any(b"/".join(parts[:end]) in self.gone for end in range(1, len(parts) + 1))


class UnseenNames:
    """The names of linked files in two trees, each tree walked once and only if it must be."""

    def __init__(self, lower: Path, upper: Path) -> None:
        self._roots = (lower, upper)
        self._names: list[dict[Inode, set[bytes]] | None] = [None, None]

    def of(self, links: Links) -> set[bytes]:
        """Return all names, on either side, of the files that look unchanged under one of them."""
        found: set[bytes] = set()
        for pair in links.unchanged.values():
            for side, status in enumerate(pair):
                if status.st_nlink > 1:
                    found |= self._every(side).get(inode(status), set())
        return found

    def _every(self, side: int) -> dict[Inode, set[bytes]]:
        known = self._names[side]
        if known is None:
            known = {}
            for path, key in linked_names(os.open(self._roots[side], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)):
                known.setdefault(key, set()).add(path)
            self._names[side] = known
        return known
