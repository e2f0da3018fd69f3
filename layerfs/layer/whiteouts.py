"""Whiteouts of a layer: what they hide of lower layers, by the means of the directory that the layer goes into.

A *whiteout* ``.wh.<name>`` removes a name, ``.wh..wh..opq`` all names of a directory (OCI image specification,
``layer.md``, "Whiteouts"), wherever in the stream they stand; neither touches what the same layer brings. In an overlay
they become marks, elsewhere deletions.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from layerfs.errors import Corrupt, FailedPrecondition
from layerfs.kernel.descent import Descent
from layerfs.layer import attributes
from layerfs.layer.apart import LowerNeeded
from layerfs.layer.below import is_whiteout
from layerfs.layer.directories import Directories, Purpose
from layerfs.layer.opened import Directory, Names
from layerfs.layer.tar import shown
from layerfs.tree import remove_tree

WHITEOUT_PREFIX = b".wh."
OPAQUE_NAME = b".wh..wh..opq"
AUFS_PREFIX = b".wh..wh."
"""What AUFS keeps for itself; no part of any layer (aufs(5))."""


class LayerWhiteouts:
    """The whiteouts of one layer, applied below one root."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories
        self._overlay = directories.overlay

    def add(self, parts: list[bytes], name: bytes) -> None:
        """Apply a whiteout in the directory ``parts``: hide a name, or all names of it, of lower layers."""
        hidden = name[len(WHITEOUT_PREFIX) :]
        if hidden in (b"", b".", b".."):
            raise Corrupt(f"the whiteout {shown(b'/'.join((*parts, name)))} names no file")
        if self._directories.apart:
            raise LowerNeeded(f"the whiteout {shown(b'/'.join((*parts, name)))}")
        parent = self._directories.find(parts, Purpose.WHITEOUT)
        if parent is None:
            return
        if name == OPAQUE_NAME:
            self._hide_all(parent)
        elif self._overlay:
            self._hide(parent, hidden)
        elif parent.names is not None:
            self._remove_lower(parent, hidden, parent.names)

    def _hide_all(self, directory: Directory) -> None:
        """Hide everything that lower layers have in a directory; the kernel takes no mark on an overlay's root."""
        if not self._overlay or directory is not self._directories.root or directory.opaque:
            self._make_opaque(directory)
            return
        if not self._directories.knows_lower:
            raise FailedPrecondition(
                "the layer hides everything below it, which an overlay can only say name by name",
                hint="unpack the layers one after the other, with the lower ones in view",
            )
        for name in self._directories.lower_names():
            self._hide(directory, name)

    def _make_opaque(self, directory: Directory) -> None:
        """Hide everything that lower layers have in a directory."""
        if self._overlay:
            self._directories.make_opaque(directory)
        if self._overlay or directory.names is not None:
            directory.touched = True
            self._clear_lower(directory)

    def _clear_lower(self, top: Directory) -> None:
        """Remove what is lower layers' in a tree, down to what this layer has brought: files, or whiteouts of theirs.

        An overlay's whiteouts must go where nothing is below them, for the kernel would list them.
        """
        with Descent(os.dup(top.fd)) as walk:
            frames = [_Frame.of(walk.fd, top.path, top.names)]
            while frames:
                frame = frames[-1]
                if frame.left:
                    name = frame.left.pop()
                    if self._clear_one(walk.fd, frame, name):
                        walk.down(name)
                        names = None if frame.names is None else frame.names[name]
                        frames.append(_Frame.of(walk.fd, frame.path + b"/" + name, names))
                    continue
                os.utime(walk.fd, ns=frame.times)
                frames.pop()
                if frames:
                    walk.up()

    def _clear_one(self, fd: int, frame: _Frame, name: bytes) -> bool:
        """Remove a name if it is lower layers'; tell whether it is a directory that may hold more of theirs."""
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if self._overlay:
            if is_whiteout(status):
                os.unlink(name, dir_fd=fd)
            return stat.S_ISDIR(status.st_mode)
        if frame.names is None or name not in frame.names:
            self._remove(fd, frame.path, name)
            return False
        return frame.names[name] is not None and stat.S_ISDIR(status.st_mode)

    def _hide(self, parent: Directory, name: bytes) -> None:
        """Hide a name in an overlay: by a whiteout, or by making opaque the directory that the layer has brought."""
        if parent.opaque or not self._directories.may_be_below(parent, name):
            return
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent.fd)
        except FileExistsError:
            child = self._directories.child(parent, name)
            if child is None:
                return  # a file of this layer, which hides the lower one anyway
            if not self._directories.is_hollow(child):
                self._make_opaque(child)
                return
            self.remove(parent, name)
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent.fd)
        parent.touched = True

    def _remove_lower(self, parent: Directory, name: bytes, brought: Names) -> None:
        """Delete what lower layers have under a name, down to what this layer has brought."""
        if name not in brought:
            parent.touched = self.remove(parent, name) or parent.touched
            return
        child = self._directories.child(parent, name)
        if child is not None and child.names is not None:
            self._make_opaque(child)

    def remove(self, parent: Directory, name: bytes) -> bool:
        """Remove a file or a tree; tell whether it was there."""
        return self._remove(parent.fd, parent.path, name)

    def _remove(self, fd: int, path: bytes, name: bytes) -> bool:
        try:
            os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            return False
        except (IsADirectoryError, PermissionError) as error:
            if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                raise error from None
            self._directories.forget(path + b"/" + name)
            remove_tree(Path(os.fsdecode(attributes.proc_path(fd, name))))
        return True


@dataclass(slots=True)
class _Frame:
    """A directory in which lower layers' files are removed: what this layer brought into it, and the names to look at.

    ``times`` are those that it had before, of access and of modification.
    """

    path: bytes
    names: Names | None
    left: list[bytes]
    times: tuple[int, int]

    @classmethod
    def of(cls, fd: int, path: bytes, names: Names | None) -> _Frame:
        """Look at an open directory."""
        status = os.fstat(fd)
        return cls(
            path, names, [os.fsencode(name) for name in os.listdir(fd)], (status.st_atime_ns, status.st_mtime_ns)
        )
