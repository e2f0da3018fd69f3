"""Beds: what a scenario does its work in. One is a store of some driver, the other a plain directory, the baseline.

Both keep images and give *roots*, writable trees that hold the files of an image. What a root costs to make, mount,
commit and so on is measured through the library's own interface, as a runtime would call it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import layerfs
from layerfs import tree
from layerfs.clones import Clone
from layerfs.contract import LayerRoot, Mount, Traits, Usage, Whiteouts
from layerfs.errors import Busy, FailedPrecondition, LayerfsError, NotFound
from layerfs.kernel import mounting
from layerfs.layer.apply import OwnerPolicy, apply
from layerfs.layer.changes import changes
from layerfs.layer.compression import Compression
from layerfs.layer.write import write_layer
from layerfs.store import Store
from layerfs_bench import inputs
from layerfs_bench.inputs import ImageSpec
from layerfs_bench.layering import Layering, PlainLayering, SnapshotLayering
from layerfs_bench.results import Cell

T = TypeVar("T")

PREFIX = "layerfs-bench-"
"""Starts the names of all that we put into a store, which may be the user's own."""

Layouts = Callable[[ImageSpec], Path]
"""Give the OCI layout of an image, written when it is asked for the first time."""


class Root(Protocol):
    """A writable tree on top of an image."""

    def mount(self, target: Path) -> None:
        """Show it at a directory."""
        ...

    def unmount(self) -> None:
        """Take it away from there."""
        ...

    def commit(self) -> None:
        """Keep what was changed as a layer, a compressed tar that is on disk."""
        ...

    def diff(self) -> int:
        """List what was changed; return how many names that are."""
        ...

    def usage(self) -> Usage:
        """Measure what it takes beside its image."""
        ...

    def remove(self) -> None:
        """Delete it."""
        ...


class Bed(Protocol):
    """Where roots are made."""

    cell: Cell

    @property
    def traits(self) -> Traits | None:
        """Return what the driver says of itself; None for the baseline."""
        ...

    def load(self, spec: ImageSpec) -> None:
        """Bring an image in, unless it is there."""
        ...

    def forget(self, spec: ImageSpec) -> None:
        """Take an image out again with the layers that nobody else needs; what is not there is no error."""
        ...

    def root(self, spec: ImageSpec, name: str, *, bare: bool = False) -> Root:
        """Make a root of an image that is there; a ``bare`` one of the baseline is an empty directory."""
        ...

    def layering(self) -> Layering:
        """Begin a chain of layers on nothing."""
        ...

    def at_rest(self, action: Callable[[], T]) -> T:
        """Let go of everything on the place, call ``action``, and go on; what roots there are stay valid."""
        ...

    def tidy(self) -> None:
        """Remove all roots, whatever an earlier visit left of them."""
        ...


class StoreBed:
    """A store of the driver that a cell names."""

    def __init__(self, cell: Cell, opener: Callable[[], Store], layouts: Layouts) -> None:
        self.cell = cell
        self.store = opener()
        self._opener = opener
        self._layouts = layouts

    @property
    def traits(self) -> Traits:
        """Return the driver's traits."""
        return self.store.driver.traits

    def load(self, spec: ImageSpec) -> None:
        """Import the image, and unpack it."""
        try:
            self.store.image(PREFIX + spec.name)
        except NotFound:
            self.store.import_image(self._layouts(spec), names=(PREFIX + spec.name,))

    def forget(self, spec: ImageSpec) -> None:
        """Remove the image; the store collects what nobody needs."""
        with suppress(NotFound):
            self.store.remove_image(PREFIX + spec.name)

    def root(self, spec: ImageSpec, name: str, *, bare: bool = False) -> Root:  # noqa: ARG002  the protocol's signature
        """Clone the image."""
        return StoreRoot(self, self.store.clone(PREFIX + spec.name, PREFIX + name))

    def layering(self) -> Layering:
        """Let the snapshotter keep the layers."""
        return SnapshotLayering(self.store.snapshotter)

    def at_rest(self, action: Callable[[], T]) -> T:
        """Close the store and open it again."""
        self.store.close()
        try:
            return action()
        finally:
            self.store = self._opener()

    def tidy(self) -> None:
        """Unmount and remove the clones whose names are ours."""
        for clone in self.store.clones():
            if clone.name.startswith(PREFIX):
                with suppress(FailedPrecondition):
                    clone.unmount()
                clone.remove()
        self._remove_layers()

    def _remove_layers(self) -> None:
        """Remove what is left of a chain of layers, from the top down: what others stand on refuses."""
        left = [info.name for info in self.store.snapshotter.infos(prefix=PREFIX)]
        for _ in range(len(left)):
            for name in tuple(left):
                with suppress(FailedPrecondition):
                    self.store.snapshotter.remove(name)
                    left.remove(name)

    def remove_images(self) -> None:
        """Remove the images whose names are ours, from a store that goes on being used."""
        for image in self.store.images():
            for name in image.names:
                if PREFIX in name:
                    self.store.remove_image(name)


class StoreRoot:
    """A clone."""

    def __init__(self, bed: StoreBed, clone: Clone) -> None:
        self._bed = bed
        self._store = bed.store
        self._found = clone

    @property
    def _clone(self) -> Clone:
        """Return the clone, looked up once more where the store was opened anew."""
        if self._store is not self._bed.store:
            self._store = self._bed.store
            self._found = self._store.get_clone(self._found.name)
        return self._found

    def mount(self, target: Path) -> None:
        """Mount the clone."""
        self._clone.mount(target)

    def unmount(self) -> None:
        """Unmount the clone."""
        self._clone.unmount()

    def commit(self) -> None:
        """Commit the clone to an image under a name that the next commit takes over."""
        self._clone.commit(f"{PREFIX}committed")

    def diff(self) -> int:
        """List the clone's changes."""
        return sum(1 for _ in self._clone.changes())

    def usage(self) -> Usage:
        """Ask the driver."""
        return self._bed.store.snapshotter.usage(self._clone.key)

    def remove(self) -> None:
        """Remove the clone."""
        self._clone.remove()


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
def opened(cell: Cell, options: Mapping[str, str], path: Path, layouts: Layouts) -> Iterator[Bed]:
    """Open the bed of a cell in a directory, and make it there if it is missing; ``options`` are the driver's."""
    if cell.is_baseline:
        path.mkdir(mode=0o700, exist_ok=True)
        yield PlainBed(cell, path, layouts)
        return
    bed = StoreBed(cell, partial(layerfs.open, path, driver=cell.driver, options=options), layouts)
    try:
        yield bed
    finally:
        bed.store.close()


@contextmanager
def shown(root: Root, target: Path) -> Iterator[Path]:
    """Mount a root for the time of the block."""
    root.mount(target)
    try:
        yield target
    finally:
        _unmount(root)


def _unmount(root: Root) -> None:
    try:
        root.unmount()
    except Busy as error:
        raise LayerfsError(f"something still works in the root: {error.message}", hint=error.hint) from error
