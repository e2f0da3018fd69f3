"""A store as a bed: roots are clones, made and mounted through the library, as a runtime would do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import layerfs
from layerfs.clones import Clone
from layerfs.contract import Traits, Usage
from layerfs.errors import FailedPrecondition, NotFound
from layerfs.store import Store
from layerfs_bench.beds import Layouts, Root, T
from layerfs_bench.inputs import ImageSpec
from layerfs_bench.layering import Layering, SnapshotLayering
from layerfs_bench.results import Cell

PREFIX = "layerfs-bench-"
"""Starts the names of all that we put into a store, which may be the user's own."""


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


@contextmanager
def opened(cell: Cell, options: Mapping[str, str], path: Path, layouts: Layouts) -> Iterator[StoreBed]:
    """Open the store of a cell in a directory, and make it there if it is missing; ``options`` are the driver's."""
    bed = StoreBed(cell, partial(layerfs.open, path, driver=cell.driver, options=options), layouts)
    try:
        yield bed
    finally:
        bed.store.close()
