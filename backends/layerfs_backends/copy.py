"""The copy driver: each snapshot is a whole tree of its own, made by reflink where the file system has it.

The simplest driver there is, for every file system and every user: the baseline that the others are measured against,
and the model to read before writing one (CONTRIBUTING.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from layerfs import projects, tree
from layerfs.contract import (
    CopyUnit,
    Driver,
    Kind,
    LayerRoot,
    Mount,
    Snapshot,
    SnapshotId,
    Traits,
    Usage,
    Whiteouts,
    WritePolicy,
    ids_of,
)
from layerfs.errors import InvalidArgument
from layerfs.projects import Projects


class CopyDriver:
    """Keep every snapshot as the plain directory ``<root>/<id>``."""

    name: ClassVar[str] = "copy"
    traits: ClassVar[Traits] = Traits(CopyUnit.TREE, WritePolicy.IN_PLACE, rootless=True)

    def __init__(self, root: Path, projects: Projects | None = None) -> None:
        self._root = root
        self._projects = projects or Projects(root, None)

    def create(self, snapshot: Snapshot) -> None:
        """Copy the parent; a view shows the parent itself, so its own directory stays empty."""
        own = self._path(snapshot.id)
        if snapshot.parent is not None and snapshot.writable:
            tree.copy_tree(self._path(snapshot.parent), own, prepare=lambda made: self._begin(snapshot, made))
        else:
            own.mkdir()
            own.chmod(0o755)  # mkdir obeys the umask, a container's root does not
        with ExitStack() as undo:
            undo.callback(tree.remove_tree, own)
            if snapshot.parent is None:
                self._begin(snapshot, own)
            tree.syncfs(own)
            if snapshot.quota:
                self._projects.check(snapshot)
            undo.pop_all()

    def mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """Return one bind mount, of the parent for a view."""
        access = "rw" if snapshot.writable else "ro"
        return (Mount("bind", str(self.layer_root(snapshot).path), ("rbind", access)),)

    def commit(self, snapshot: Snapshot) -> None:
        """Sync it: nobody is given a writable mount of a committed snapshot, so there is nothing to freeze."""
        tree.syncfs(self._path(snapshot.id))

    def usage(self, snapshot: Snapshot) -> Usage:
        """Measure the whole tree, for all of it is the snapshot's own; reflinked extents count as if they were, too."""
        return tree.usage(self._path(snapshot.id))

    def set_quota(self, snapshot: Snapshot) -> None:
        """Set the limits of its project (`layerfs.contract.Quotas`, `layerfs.projects`); the whole tree counts."""
        self._projects.limit(snapshot, self._path(snapshot.id))

    def quota_usage(self, snapshot: Snapshot) -> Usage:
        """Return what its project takes."""
        return self._projects.usage(snapshot.id)

    def remove(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Delete the tree; after a crash `ids` names what is left of it."""
        self._projects.free(id)
        tree.remove_tree(self._path(id))

    def ids(self) -> Iterable[SnapshotId]:
        """List the directories that are named by a number."""
        return ids_of(os.listdir(self._root))

    def strangers(self) -> Iterable[Path]:
        """List what is no snapshot's (`layerfs.contract.Tidy`)."""
        return tree.strangers(self._root, {projects.RECORD})

    def close(self) -> None:
        """Do nothing: the driver holds nothing open."""

    def layer_root(self, snapshot: Snapshot) -> LayerRoot:
        """Return the whole tree, of the parent for a view (`layerfs.contract.DirectAccess`)."""
        shown = snapshot.parent if snapshot.kind is Kind.VIEW and snapshot.parent else snapshot.id
        return LayerRoot(self._path(shown), Whiteouts.REMOVE)

    def _begin(self, snapshot: Snapshot, own: Path) -> None:
        """Let what comes to a new directory count, before there is anything in it."""
        self._projects.mark(snapshot, own)
        if snapshot.quota:
            self.set_quota(snapshot)

    def _path(self, id: SnapshotId) -> Path:  # noqa: A002  the contract's word
        return self._root / str(id)


def open_driver(root: Path, options: Mapping[str, str]) -> Driver:
    """Open the copy driver on ``root``; raise `InvalidArgument` for any option, because it has none."""
    for option in options:
        raise InvalidArgument(f"the copy driver has no option {option!r}", hint="it has none at all")
    # Layers hold setuid programs: no other user of the host may reach them (containerd's CVE-2021-41103).
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return CopyDriver(root, Projects.find(root))
