"""The whole of snapshots in memory: what a snapshotter over any driver must do, without a disk.

A *tree* maps paths ("a/b") to nodes; every snapshot has one of its own, so that nothing can be shared by mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from layerfs.contract import Kind
from layerfs.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound


class NodeKind(StrEnum):
    """What a name in a tree stands for."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class Node:
    """A file with its content, a link with its target, or a directory; links have no mode of their own."""

    kind: NodeKind
    mode: int = 0
    data: str = ""


Tree = dict[str, Node]


class Refused(Exception):
    """Say that an operation on a tree is not possible; the tree is as it was."""


def parent_of(path: str) -> str:
    """Return the directory of a path, "" for one at the root."""
    return path.rpartition("/")[0]


def _is_directory(tree: Tree, path: str) -> bool:
    return path == "" or (path in tree and tree[path].kind is NodeKind.DIRECTORY)


def _need_place(tree: Tree, path: str) -> None:
    if not _is_directory(tree, parent_of(path)):
        raise Refused(path)


def below(tree: Tree, path: str) -> list[str]:
    """Return the paths inside a directory, however deep."""
    return [name for name in tree if name.startswith(f"{path}/")]


@dataclass(frozen=True, slots=True)
class Write:
    """Make a file with this content, or replace that of one that is there."""

    path: str
    data: str

    def apply(self, tree: Tree) -> None:
        """Change the tree or raise `Refused`; so do the other operations."""
        _need_place(tree, self.path)
        there = tree.get(self.path, Node(NodeKind.FILE, 0o644))
        if there.kind is not NodeKind.FILE:
            raise Refused(self.path)
        tree[self.path] = replace(there, data=self.data)


@dataclass(frozen=True, slots=True)
class Append:
    """Add to the end of a file that is there: the write that copies up without replacing."""

    path: str
    data: str

    def apply(self, tree: Tree) -> None:
        """Change the tree."""
        there = tree.get(self.path)
        if there is None or there.kind is not NodeKind.FILE:
            raise Refused(self.path)
        tree[self.path] = replace(there, data=there.data + self.data)


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """Make an empty directory where there is nothing."""

    path: str

    def apply(self, tree: Tree) -> None:
        """Change the tree."""
        _need_place(tree, self.path)
        if self.path in tree:
            raise Refused(self.path)
        tree[self.path] = Node(NodeKind.DIRECTORY, 0o755)


@dataclass(frozen=True, slots=True)
class MakeLink:
    """Make a symbolic link where there is nothing."""

    path: str
    target: str

    def apply(self, tree: Tree) -> None:
        """Change the tree."""
        _need_place(tree, self.path)
        if self.path in tree:
            raise Refused(self.path)
        tree[self.path] = Node(NodeKind.LINK, 0, self.target)


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a name and all inside it."""

    path: str

    def apply(self, tree: Tree) -> None:
        """Change the tree."""
        if self.path not in tree:
            raise Refused(self.path)
        for name in (self.path, *below(tree, self.path)):
            del tree[name]


@dataclass(frozen=True, slots=True)
class Rename:
    """Give a name, and all inside it, another place; a file or link there is replaced, a directory is not."""

    path: str
    target: str

    def apply(self, tree: Tree) -> None:
        """Change the tree."""
        if self.path not in tree or self.path == self.target or self.target.startswith(f"{self.path}/"):
            raise Refused(self.path)
        _need_place(tree, self.target)
        if self.target in tree and NodeKind.DIRECTORY in (tree[self.path].kind, tree[self.target].kind):
            raise Refused(self.target)
        for name in (self.path, *below(tree, self.path)):
            tree[self.target + name.removeprefix(self.path)] = tree.pop(name)


@dataclass(frozen=True, slots=True)
class ChangeMode:
    """Change the permissions of a file or directory."""

    path: str
    mode: int

    def apply(self, tree: Tree) -> None:
        """Change the tree."""
        there = tree.get(self.path)
        if there is None or there.kind is NodeKind.LINK:
            raise Refused(self.path)
        tree[self.path] = replace(there, mode=self.mode)


Operation = Write | Append | MakeDirectory | MakeLink | Delete | Rename | ChangeMode


@dataclass(slots=True)
class ModelSnapshot:
    """One snapshot; its labels are those of the key, or of the commit."""

    kind: Kind
    parent: str
    tree: Tree
    labels: dict[str, str] = field(default_factory=dict[str, str])


class Model:
    """A snapshotter in memory: the same verbs and the same errors."""

    def __init__(self) -> None:
        self.snapshots: dict[str, ModelSnapshot] = {}

    def make(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> None:
        """Do what prepare and view do."""
        tree = dict(self._parent(parent).tree) if parent else {}
        self._check_free(key)
        self.snapshots[key] = ModelSnapshot(kind, parent, tree, dict(labels))

    def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        """Do what commit does without a parent."""
        found = self._active(key)
        self._check_free(name)
        del self.snapshots[key]
        self.snapshots[name] = ModelSnapshot(Kind.COMMITTED, found.parent, found.tree, dict(labels))

    def checkpoint(self, name: str, key: str) -> None:
        """Do what checkpoint does."""
        labels = self._active(key).labels
        self.commit(name, key, {})
        self.make(Kind.ACTIVE, key, name, labels)

    def reset(self, key: str, parent: str) -> None:
        """Do what reset does."""
        labels = self._active(key).labels
        tree = dict(self._parent(parent).tree) if parent else {}
        self.snapshots[key] = ModelSnapshot(Kind.ACTIVE, parent, tree, labels)

    def remove(self, key: str) -> None:
        """Do what remove does."""
        self.find(key)
        if any(other.parent == key for other in self.snapshots.values()):
            raise FailedPrecondition(f"cannot remove {key!r}")
        del self.snapshots[key]

    def set_labels(self, key: str, labels: Mapping[str, str]) -> None:
        """Do what update does."""
        self.find(key).labels = dict(labels)

    def find(self, key: str) -> ModelSnapshot:
        """Return a snapshot or raise `NotFound`."""
        if key not in self.snapshots:
            raise NotFound(key)
        return self.snapshots[key]

    def _active(self, key: str) -> ModelSnapshot:
        found = self.find(key)
        if found.kind is not Kind.ACTIVE:
            raise FailedPrecondition(key)
        return found

    def _parent(self, name: str) -> ModelSnapshot:
        found = self.find(name)
        if found.kind is not Kind.COMMITTED:
            raise InvalidArgument(name)
        return found

    def _check_free(self, key: str) -> None:
        if key in self.snapshots:
            raise AlreadyExists(key)
