"""Layer upon layer, as a runtime builds an image: prepare, mount, write, unmount, commit, and the next one on top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from layerfs import tree
from layerfs.contract import Mount
from layerfs.kernel import mounting
from layerfs.snapshotter import Snapshotter

_KEY = "layerfs-bench-building"
_NAME = "layerfs-bench-built"


class Layering(Protocol):
    """A chain of layers that grows."""

    def prepare(self) -> None:
        """Begin a layer on top of the one that was committed last."""
        ...

    def mount(self, target: Path) -> None:
        """Show it at a directory."""
        ...

    def unmount(self, target: Path) -> None:
        """Take it away from there."""
        ...

    def commit(self) -> None:
        """End the layer, durably."""
        ...

    def remove(self) -> None:
        """Remove the whole chain."""
        ...


class SnapshotLayering:
    """Layers are snapshots of a store's snapshotter."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter
        self._names: list[str] = []
        self._mounts: Sequence[Mount] = ()
        self._begun = False

    def prepare(self) -> None:
        """Prepare an active snapshot."""
        self._mounts = self._snapshotter.prepare(_KEY, self._names[-1] if self._names else "")
        self._begun = True

    def mount(self, target: Path) -> None:
        """Perform its mounts."""
        mounting.mount(self._mounts, target)

    def unmount(self, target: Path) -> None:
        """Unmount it, and what it shared with nobody."""
        mounting.unmount(target)
        mounting.release_shared(self._mounts)

    def commit(self) -> None:
        """Commit it under the next name."""
        name = f"{_NAME}-{len(self._names)}"
        self._snapshotter.commit(name, _KEY)
        self._names.append(name)
        self._begun = False

    def remove(self) -> None:
        """Remove the snapshots, the topmost first."""
        for key in ([_KEY] if self._begun else []) + self._names[::-1]:
            self._snapshotter.remove(key)
        self._names, self._begun = [], False


class PlainLayering:
    """All layers are one directory, synced at the end of each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def prepare(self) -> None:
        """Make the directory, the first time."""
        self._path.mkdir(exist_ok=True)

    def mount(self, target: Path) -> None:
        """Bind it to its place."""
        mounting.mount([Mount("bind", str(self._path), ("bind", "rw"))], target)

    def unmount(self, target: Path) -> None:
        """Take the bind mount away."""
        mounting.unmount(target)

    def commit(self) -> None:
        """Sync the file system."""
        tree.syncfs(self._path)

    def remove(self) -> None:
        """Delete the directory."""
        tree.remove_tree(self._path)
