"""A driver that sends and receives, as ZFS does, on any host: whole trees, each with an id that goes along.

A stream names the tree and its parent's id, so it leads nowhere but on this machine.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from layerfs import tree
from layerfs.contract import Driver, Snapshot, SnapshotId
from layerfs.errors import Corrupt, FailedPrecondition
from layerfs.projects import Projects
from layerfs_backends.copy import CopyDriver


class SendingDriver(CopyDriver):
    """Keep the id of each committed snapshot beside its tree."""

    name: ClassVar[str] = "sending"
    stream: ClassVar[str] = "tree-by-name"
    received: ClassVar[list[SnapshotId]] = []
    """Every snapshot that was received, so that a test can tell."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, Projects.find(root))
        self._place = root

    def commit(self, snapshot: Snapshot) -> None:
        """Give it its id."""
        super().commit(snapshot)
        if not self._id_file(snapshot.id).exists():
            self._id_file(snapshot.id).write_text(uuid.uuid4().hex)

    def remove(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Forget its id, too."""
        self._id_file(id).unlink(missing_ok=True)
        super().remove(id)

    def send(self, snapshot: Snapshot, to: int, *, whole: bool = False) -> None:
        """Write where the tree is, its id, and its parent's (`layerfs.contract.Transferable`)."""
        base = None if whole or snapshot.parent is None else self._id_file(snapshot.parent).read_text()
        own = self._id_file(snapshot.id).read_text()
        os.write(to, json.dumps({"tree": str(self._place / str(snapshot.id)), "id": own, "base": base}).encode())

    def receive(self, snapshot: Snapshot, source: int) -> None:
        """Copy the tree that the stream names, if the parent is the one that it was sent beyond."""
        with os.fdopen(os.dup(source), "rb") as stream:
            text = stream.read()
        if not text:
            raise Corrupt("the stream is empty")
        sent = json.loads(text)
        base = None if snapshot.parent is None else self._id_file(snapshot.parent).read_text()
        if sent["base"] != base:
            raise FailedPrecondition("the stream goes beyond another parent")
        tree.copy_tree(Path(sent["tree"]), self._place / str(snapshot.id))
        self._id_file(snapshot.id).write_text(sent["id"])
        self.received.append(snapshot.id)

    def strangers(self) -> Iterable[Path]:
        """Leave out the files of ids (`layerfs.contract.Tidy`)."""
        return [path for path in super().strangers() if not path.name.startswith("id-")]

    def _id_file(self, id: SnapshotId) -> Path:  # noqa: A002  the contract's word
        return self._place / f"id-{id}"


def open_driver(root: Path, options: Mapping[str, str]) -> Driver:  # noqa: ARG001  the signature of a factory
    """Open it."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return SendingDriver(root)
