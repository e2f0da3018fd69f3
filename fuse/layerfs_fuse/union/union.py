"""The union of lower layers and an upper directory, whole."""

from __future__ import annotations

import os
from collections.abc import Sequence

from layerfs.contract import WritePolicy
from layerfs.kernel import syscalls
from layerfs.kernel.descriptors import opened
from layerfs_fuse.index.reader import Index
from layerfs_fuse.union.requests import Options
from layerfs_fuse.union.upper import Upper, proc
from layerfs_fuse.union.xattrs import Xattrs

_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Union(Xattrs):
    """Lower layers and an upper directory as one tree, for one caller at a time; every error is an ``OSError``.

    Without an upper directory it is read-only (EROFS). Permissions are not looked at: whoever calls has done so. The
    umask of the process must be 0.
    """

    def __init__(
        self, index: Index, layers: Sequence[int], upper: Upper | None = None, options: Options | None = None
    ) -> None:
        """Borrow all of them; ``layers`` are O_PATH descriptors of the directories, the lowest first."""
        super().__init__(index, layers, upper, options or Options())
        self._top = layers[-1] if layers else -1
        if upper is not None and self.options.write is WritePolicy.REDIRECT_ON_WRITE:
            self._redirected_files()  # now, so that the first write does not pay for it

    def sync(self) -> None:
        """Write everything to disk, unless the union is volatile."""
        self.settle()
        self.write_back()

    def settle(self) -> None:
        """Put the times of directories right on disk, as far as that goes."""
        for directory in list(self._owed):
            self._settle_quietly(directory)

    def write_back(self) -> None:
        """Wait until all that was written is on the disk, unless the union is volatile; other threads may do it."""
        if self._redirects is not None:
            self._redirects.sync()
        if self.upper is not None and not self.options.volatile:
            fd = os.open(proc(self.upper.fd), _LIST)
            try:
                syscalls.syncfs(fd)
            finally:
                os.close(fd)

    def sync_directory(self, number: int) -> None:
        """Write a directory to disk."""
        fd = self.settled_directory(number)
        if fd >= 0:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def settled_directory(self, number: int) -> int:
        """Return a descriptor of a directory, to be written to disk and closed by whoever asks; -1 if it need not."""
        directory = self._directories.get(number)
        if directory is None or not directory.upper or self.options.volatile:
            return -1
        self._settle(directory)
        return os.open(proc(self._place(directory)), _LIST)

    def birth_time(self, number: int) -> int | None:
        """Return when what shows was made where it lies, in nanoseconds; None where nobody knows. Raise ``OSError``."""
        node = self._nodes.get(number)
        if node is not None and node.upper:
            place, path, follow = self._reach(node)
            return syscalls.birth_time(path, dir_fd=place, follow=follow)
        row = number if node is None else node.row
        if not row or row > self.index.count:
            return None  # it is gone, and somebody is still in it
        with opened(self.lower.open(row, os.O_PATH)) as fd:
            return syscalls.birth_time(b"", dir_fd=fd)

    def statfs(self) -> os.statvfs_result:
        """Return the state of the file system that is written to, or of the uppermost layer's."""
        return os.statvfs(self.upper.fd if self.upper is not None else self._top)

    def close(self) -> None:
        """Put right what is owed to the disk, and close all descriptors; those that were given stay open."""
        self.settle()
        self._keep_open(None)
        self.lower.close()
        for directory in list(self._open):
            self._close(directory)
        for node in self._nodes.values():
            if node.fd >= 0:
                if node.redirected:
                    self._redirected_files().discard(node.fd)
                os.close(node.fd)
                node.fd = -1
        if self._redirects is not None:
            self._redirects.close()
            self._redirects = None
        self._nodes.clear()
        self._directories.clear()
