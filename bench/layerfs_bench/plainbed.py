"""A plain directory as a bed: the baseline, which is the least that each operation costs on a file system."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from layerfs import tree
from layerfs.contract import LayerRoot, Mount, Usage, Whiteouts
from layerfs.kernel import mounting
from layerfs.layer.apply import OwnerPolicy, apply
from layerfs.layer.changes import changes
from layerfs.layer.compression import Compression
from layerfs.layer.write import write_layer
from layerfs_bench import inputs
from layerfs_bench.beds import Layouts, Root, T
from layerfs_bench.inputs import ImageSpec
from layerfs_bench.layering import Layering, PlainLayering
from layerfs_bench.results import Cell


class PlainBed:
    """A plain directory: a root is a directory with the files of the image, unpacked for it alone.

    It shares nothing and knows nothing, so it is the least that an operation on the file system costs: a mount is a
    bind mount, the difference a walk, a commit a tar of everything in it.
    """

    def __init__(self, cell: Cell, path: Path, layouts: Layouts) -> None:
        self.cell = cell
        self._path = path
        self._layouts = layouts

    @property
    def traits(self) -> None:
        """Return None: there is no driver."""
        return

    def load(self, spec: ImageSpec) -> None:
        """Write the image's files as one layer; every root unpacks it anew."""
        self._layouts(inputs.flattened(spec))

    def forget(self, spec: ImageSpec) -> None:
        """Do nothing: nothing is kept of an image."""

    def root(self, spec: ImageSpec, name: str, *, bare: bool = False) -> Root:
        """Make a directory, and unpack the image's layers into it unless it shall be bare."""
        path = self._path / name
        path.mkdir(mode=0o755)
        if not bare:
            self._unpack(spec, path)
        return PlainRoot(path)

    def _unpack(self, spec: ImageSpec, path: Path) -> None:
        (layer,) = inputs.layers(self._layouts(inputs.flattened(spec)))
        owner = OwnerPolicy.KEEP if os.geteuid() == 0 else OwnerPolicy.SQUASH
        with layer.open("rb") as stream:
            apply(stream, LayerRoot(path, Whiteouts.REMOVE), base=True, owner=owner)

    def layering(self) -> Layering:
        """Let one directory hold all layers."""
        return PlainLayering(self._path / "layers")

    def at_rest(self, action: Callable[[], T]) -> T:
        """Just do it: nothing is kept open."""
        return action()

    def tidy(self) -> None:
        """Delete all roots."""
        for name in os.listdir(self._path):
            tree.remove_tree(self._path / name)


class PlainRoot:
    """A directory of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown: Path | None = None

    def mount(self, target: Path) -> None:
        """Bind the directory to its place, or link it there where this user may mount nothing."""
        if os.geteuid() == 0:
            mounting.mount([Mount("bind", str(self._path), ("bind", "rw"))], target)
        else:
            target.rmdir()
            target.symlink_to(self._path)
        self._shown = target

    def unmount(self) -> None:
        """Take the bind mount away."""
        if self._shown is None:
            return
        if self._shown.is_symlink():
            self._shown.unlink()
            self._shown.mkdir()
        else:
            mounting.unmount(self._shown)
        self._shown = None

    def commit(self) -> None:
        """Write a compressed tar of everything beside the directory, and sync it."""
        out = self._path.with_name(f"{self._path.name}.tar")
        with out.open("wb") as stream:
            root = LayerRoot(self._path, Whiteouts.REMOVE)
            write_layer(changes(None, self._path), root, stream, compression=Compression.ZSTD)
            os.fsync(stream.fileno())

    def diff(self) -> int:
        """Walk the directory."""
        return sum(1 for _ in changes(None, self._path))

    def usage(self) -> Usage:
        """Measure the directory."""
        return tree.usage(self._path)

    def remove(self) -> None:
        """Delete the directory, and what was committed of it."""
        tree.remove_tree(self._path)
        self._path.with_name(f"{self._path.name}.tar").unlink(missing_ok=True)


@contextmanager
def opened(cell: Cell, path: Path, layouts: Layouts) -> Iterator[PlainBed]:
    """Give the bed of a baseline in a directory, which is made if it is missing."""
    path.mkdir(mode=0o700, exist_ok=True)
    yield PlainBed(cell, path, layouts)
