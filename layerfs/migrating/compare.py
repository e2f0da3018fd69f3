"""Tell what a snapshot holds beyond its parent, and prove that two snapshots of two stores are the same.

Where the parents are known to be the same, two snapshots are the same if they are so at every path where either differs
from its parent; so what was compared once is not read again for each of its children.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from layerfs.contract import Candidates, Whiteouts
from layerfs.errors import Corrupt
from layerfs.layer.changes import ROOT, Change, changes, upper_changes
from layerfs.layer.tar import shown
from layerfs.parts import Parts


def difference(parts: Parts, parent: str, below: Path | None, key: str, tree: Path) -> Sequence[Change]:
    """List what the snapshot ``key``, shown at ``tree``, holds beyond its parent, shown at ``below``; contents count.

    Only what the driver says may differ is read, where it says so.
    """
    root = parts.layer_root(key) if parent else None
    if root is not None and root.whiteouts is not Whiteouts.REMOVE:
        return list(upper_changes(root, below, sockets=True))
    candidates = parts.candidates(parent, key)
    return list(changes(below, tree, verify_content=True, candidates=candidates, sockets=True))


def check_same(
    what: str, first: Path, second: Path, differences: Iterable[Change] | None, *, root: bool = True
) -> None:
    """Raise `Corrupt` unless two trees hold the same; None stands for everything, else only these paths are read.

    ``root`` is whether the root directory counts itself: its time is that of the unpacking where a layer says nothing.
    """
    candidates = None
    if differences is not None:
        candidates = Candidates(frozenset(change.path for change in differences) - {ROOT})
    listed = changes(first, second, verify_content=True, candidates=candidates, sockets=True)
    found = next((change for change in listed if root or change.path != ROOT), None)
    if found is not None:
        raise Corrupt(
            f"{what} is not the same in both stores: {shown(found.path)} is {found.kind} in the target",
            hint="nothing of the source was changed; `layerfs check --deep` tells whether it is whole",
        )
