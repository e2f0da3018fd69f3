"""Turn one tree into another: do to it what a list of changes says, with everything that the files have.

The tree is a writable mount, or a whole tree by itself, so that the driver below says how a deletion is kept: nothing
here knows of whiteouts. A file that changed is made anew, together with all its names.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from layerfs.errors import Unsupported, os_error
from layerfs.kernel.descent import Descent
from layerfs.kernel.treecopy import TreeCopy
from layerfs.layer import attributes
from layerfs.layer.changes import ROOT, Change
from layerfs.layer.links import Inode, inode, linked_names
from layerfs.layer.tar import shown
from layerfs.tree import remove_tree

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

Copied = Callable[[int], None]
"""Hear of so many more bytes of regular files that are done."""


def update_tree(source: Path, destination: Path, changes: Iterable[Change], *, copied: Copied) -> None:
    """Make ``destination``, which is as ``source`` was before ``changes``, into what that is now.

    Attributes that the kernel refuses are errors, like everything else that would leave the two apart.
    """
    update: TreeUpdate | None = None
    try:
        with Descent(os.open(source, _DIRECTORY)) as here, Descent(os.open(destination, _DIRECTORY)) as there:
            update = TreeUpdate(here, there, (change.path for change in changes), copied)
            update.run()
    except OSError as error:
        what = f"carry what changed in {shown(update.here or ROOT) if update else source} to {destination}"
        if error.errno == errno.EOPNOTSUPP:
            hint = "it holds extended attributes or files that this file system cannot store: use ext4, xfs or btrfs"
            raise Unsupported(f"cannot {what}: {error.strerror}", hint=hint) from error
        raise os_error(what, error) from error


class _Work:
    """What is to be done, as the names to look at in each directory; directories go by their paths, the root by b""."""

    def __init__(self, paths: Iterable[bytes]) -> None:
        self.paths = frozenset(paths) | {ROOT}  # of which layers that were unpacked twice have different times
        self._names: dict[bytes, set[bytes]] = {}
        for path in self.paths - {ROOT}:
            rest = path
            while rest:
                above, _, name = rest.rpartition(b"/")
                there = self._names.setdefault(above, set())
                if name in there:
                    break
                there.add(name)
                rest = above
        self.touched = {path.rpartition(b"/")[0] for path in self.paths - {ROOT}}
        """Directories in which a name is made or removed."""

    def names(self, directory: bytes) -> list[bytes]:
        """Return the names to look at in a directory, sorted."""
        return sorted(self._names.get(directory, ()))

    def is_listed(self, path: bytes) -> bool:
        """Tell whether the file of a path is not what it was."""
        return (path or ROOT) in self.paths


class TreeUpdate(TreeCopy):
    """One update under way: a copy that looks at the names of its work only, and replaces what is there."""

    def __init__(self, source: Descent, destination: Descent, paths: Iterable[bytes], copied: Copied) -> None:
        super().__init__(source, destination, squash_owner=False)
        self._work = _Work(paths)
        self._report = copied
        self._unseen: dict[Inode, int] = {}
        """How many names of each linked file were not met yet."""

    def run(self) -> None:
        """Do everything, the attributes of each directory after what is in it."""
        self._held.append(os.dup(self._destination.fd))
        try:
            self._walk()
            if more := self._other_names():
                self._work = _Work(more)
                self._walk()
        finally:
            for fd in self._held:
                os.close(fd)

    def _other_names(self) -> set[bytes]:
        """Return the names, which nobody listed, of linked files that were made anew: they need all of them."""
        wanted = {key for key, count in self._unseen.items() if count > 0}
        if not wanted:
            return set()
        root = os.open(b".", _DIRECTORY, dir_fd=self._source.fd)
        return {path for path, key in linked_names(root) if key in wanted} - self._work.paths

    def _linked(self, name: bytes, status: os.stat_result) -> bool:
        if status.st_nlink > 1:
            key = inode(status)
            self._unseen[key] = self._unseen.get(key, status.st_nlink) - 1
        return super()._linked(name, status)

    @property
    def here(self) -> bytes:
        """Return the path of the present directory; b"" is the root."""
        return b"/".join(self._path)

    def _fill(self) -> list[bytes]:
        here = self.here
        if here in self._work.touched:
            self._neutralise(self._destination.fd)
        directories: list[bytes] = []
        for name in self._work.names(here):
            if not self._work.is_listed(b"/".join((*self._path, name))):
                directories.append(name)
                continue
            status = self._status(name)
            if status is not None and stat.S_ISDIR(status.st_mode):
                self._keep_directory(name)
                directories.append(name)
                continue
            self._clear(name)
            if status is not None and stat.S_ISREG(status.st_mode):
                self._regular(name)
                self._report(status.st_size)
            elif status is not None:
                self._special(name, status)
        return directories

    def _enter(self, name: bytes) -> None:
        self._source.down(name)
        self._destination.down(name)
        self._path.append(name)

    def _attributes(self, source: int, made: int, status: os.stat_result, *, fresh: bool) -> None:
        if not fresh:
            if not self._work.is_listed(self.here) and self.here not in self._work.touched:
                return  # a directory on the way
            for name in attributes.read(made).keys() - attributes.read(source).keys():
                os.removexattr(made, name)
        super()._attributes(source, made, status, fresh=fresh)

    def _status(self, name: bytes) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self._source.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _keep_directory(self, name: bytes) -> None:
        """Make a directory unless there is one, in the place of whatever else has the name."""
        try:
            os.mkdir(name, 0o700, dir_fd=self._destination.fd)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=self._destination.fd, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=self._destination.fd)
                os.mkdir(name, 0o700, dir_fd=self._destination.fd)

    def _clear(self, name: bytes) -> None:
        """Remove what the target has under a name, a directory with everything in it."""
        there = self._destination.fd
        try:
            os.unlink(name, dir_fd=there)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError):
            remove_tree(Path(os.fsdecode(attributes.proc_path(there, name))))
