"""The directories that are open while a layer is unpacked, so many that each is opened once in most layers.

A directory that is closed gets its times first: they change with every entry that is made in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

_MOST = 200
"""Directories kept open; half the usual limit of descriptors (1,024) is far away."""

Names = dict[bytes, "Names | None"]
"""What this layer brought into a directory: for each name the same of that directory, or None for another file."""


@dataclass(slots=True, eq=False)
class Directory:
    """An open directory. ``path`` is its real one below the root: b"" for the root, b"/usr/lib" for another.

    ``touched`` tells that ``times`` (access and modification, in ns) must be set again before it is closed. ``plain``
    tells that a file made in it gets just the mode and the group that it is given: no default ACL, no set-group-id.
    ``opaque`` tells that nothing of lower layers shows in it. ``names`` is None where nothing has to be remembered.
    ``fd`` is -1 once it is closed.
    """

    path: bytes
    fd: int
    parent: Directory | None
    name: bytes
    gid: int
    plain: bool
    opaque: bool
    times: tuple[int, int]
    names: Names | None
    marked: bool = False
    touched: bool = False

    def settle(self) -> None:
        """Set its times if something was made in it."""
        if self.touched:
            os.utime(self.fd, ns=self.times)

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)
        self.fd = -1


class OpenDirectories:
    """Open directories by their paths; the one that was not looked for the longest is closed where there are too many.

    The root is none of them, and stays open.
    """

    def __init__(self) -> None:
        self._by_path: dict[bytes, Directory] = {}
        self.pinned: Directory | None = None
        """A directory that stays open whatever else is opened."""

    def __iter__(self) -> Iterator[Directory]:
        """Yield all of them, the one not looked for the longest first."""
        return iter(self._by_path.values())

    def get(self, path: bytes) -> Directory | None:
        """Return the directory of a path, and make it the youngest."""
        found = self._by_path.pop(path, None)
        if found is not None:
            self._by_path[path] = found
        return found

    def add(self, directory: Directory, parent: Directory) -> None:
        """Take one more, and close another one if they are too many, but not the parent."""
        self._by_path[directory.path] = directory
        if len(self._by_path) > _MOST:
            for oldest in self._by_path.values():
                if oldest is not self.pinned and oldest is not directory and oldest is not parent:
                    del self._by_path[oldest.path]
                    try:
                        oldest.settle()
                    finally:
                        oldest.close()
                    return

    def below(self, path: bytes) -> list[Directory]:
        """Return the directory of a path, and all below it."""
        inside = path + b"/"
        return [one for key, one in self._by_path.items() if key == path or key.startswith(inside)]

    def forget(self, path: bytes) -> None:
        """Close a directory that is about to be removed, and all below it."""
        for gone in self.below(path):
            self._by_path.pop(gone.path).close()

    def close(self) -> None:
        """Close all of them, without a look at their times."""
        for directory in self._by_path.values():
            directory.close()
        self._by_path.clear()
