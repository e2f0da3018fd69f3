"""Beds: what a scenario does its work in. One is a store of some driver, the other a plain directory, the baseline.

Both keep images and give *roots*, writable trees that hold the files of an image (`layerfs_bench.storebed`,
`layerfs_bench.plainbed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from layerfs.contract import Traits, Usage
from layerfs.errors import Busy, LayerfsError
from layerfs_bench.inputs import ImageSpec
from layerfs_bench.layering import Layering
from layerfs_bench.results import Cell

T = TypeVar("T")

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
