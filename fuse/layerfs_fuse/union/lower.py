"""Reach the files of the lower layers that rows of the index stand for."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from layerfs_fuse.index.reader import Index
from layerfs_fuse.union.upper import PATH

_LONGEST_PATH = 4000
"""Bytes that the kernel takes in one path are 4095."""
_LAYER_BITS = 16
_MOST_OPEN = 64
"""Descriptors of directories of layers that are kept."""
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE})
_LOWER = os.O_NOFOLLOW | os.O_CLOEXEC


class Lower:
    """The directories of the layers, open, with the index over them."""

    def __init__(self, index: Index, layers: Sequence[int]) -> None:
        """Borrow O_PATH descriptors, the lowest layer first."""
        self.index = index
        self.layers = tuple(layers)
        self.devices = tuple(os.fstat(fd).st_dev for fd in layers)
        self._places: dict[int, int] = {}
        """Descriptors of the directories of layers that were used last, by row and layer."""

    def close(self) -> None:
        """Close what was opened; the layers stay open."""
        for fd in self._places.values():
            os.close(fd)
        self._places.clear()

    def open(self, row: int, flags: int) -> int:
        """Open the file of a row; raise ``OSError``, EIO where the layer does not have it any more.

        Access times of a layer are left alone where its owner opens it: layers are shared and may be read-only.
        """
        index = self.index
        try:
            place = self._place(index.parent(row), index.layer(row))
            name = index.name(row) or b"."
            if not flags & os.O_PATH:
                try:
                    return os.open(name, flags | _LOWER | os.O_NOATIME, dir_fd=place)
                except PermissionError:
                    pass  # it is somebody else's, or nobody may read it
            return os.open(name, flags | _LOWER, dir_fd=place)
        except OSError as error:
            raise _lost(error) from error

    def _place(self, parent: int, layer: int) -> int:
        """Return a descriptor of a layer's directory; files are mostly opened directory by directory."""
        key = parent << _LAYER_BITS | layer
        places = self._places
        if key not in places:
            fd = self._open_deep(self.layers[layer], self.index.path(parent) or b".", PATH)
            if len(places) >= _MOST_OPEN:
                os.close(places.pop(next(iter(places))))
            places[key] = fd
        return places[key]

    def _open_deep(self, layer: int, path: bytes, flags: int) -> int:
        """Open a path that is too long for one call, piece by piece."""
        held = -1
        try:
            while len(path) > _LONGEST_PATH:
                cut = path.rindex(b"/", 0, _LONGEST_PATH)
                opened = os.open(path[:cut], PATH, dir_fd=layer if held < 0 else held)
                if held >= 0:
                    os.close(held)
                held, path = opened, path[cut + 1 :]
            return os.open(path, flags | _LOWER, dir_fd=layer if held < 0 else held)
        finally:
            if held >= 0:
                os.close(held)


def _lost(error: OSError) -> OSError:
    """Return EIO for what the index has and the layer has not; other errors stay what they are."""
    if error.errno not in _GONE:
        return error
    return OSError(errno.EIO, "a lower layer has changed or is gone", error.filename)
