"""What is below a layer that is being unpacked: the lower layers merged, as a mount shows them or as we do ourselves.

A mount of many layers takes longer than a small layer. Whoever has the directories of the single layers can look names
up in them instead, from the uppermost down, by the rules of overlayfs (Documentation/filesystems/overlayfs.rst,
"Directories", "whiteouts and opaque directories").
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

from layerfs.contract import LayerRoot, Whiteouts
from layerfs.kernel import syscalls
from layerfs.layer.attributes import get, opaque_name, proc_path

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_STAY = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV})
"""How `Below.open` says that nothing has a path. One that is too long for the kernel to say so is an error."""
_MOST_HELD = 4096
"""Directories of which it is remembered which layers have them."""
_MOST_LISTED = 4096
"""Names of a directory up to which they are remembered."""
_MOST_NAMES = 100_000
"""Names of all directories that are remembered, of some 100 bytes each."""


class Below(Protocol):
    """The lower layers merged. Paths are relative to the root, without ``.``, ``..`` and symbolic links in the way.

    ``whiteouts`` tells how extended attributes must be read (`attributes.from_disk`).
    """

    whiteouts: Whiteouts

    def open(self, path: bytes) -> int:
        """Open what has a path by O_PATH, without following it; raise ``OSError`` where nothing has."""
        ...

    def has(self, path: bytes) -> bool:
        """Tell whether something has a path."""
        ...

    def names(self) -> list[bytes]:
        """List the root."""
        ...

    def close(self) -> None:
        """End the use of it for one layer."""
        ...


def is_whiteout(status: os.stat_result) -> bool:
    """Tell whether a file is a character device 0/0, by which an overlay hides a name."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


class Mounted:
    """The lower layers as a mount shows them."""

    whiteouts = Whiteouts.REMOVE

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, _DIRECTORY)

    def open(self, path: bytes) -> int:
        """Open a path, as `Below.open` says."""
        return syscalls.openat2(self._fd, path, os.O_PATH | os.O_NOFOLLOW, resolve=_STAY)

    def has(self, path: bytes) -> bool:
        """Tell whether something has a path."""
        try:
            os.close(self.open(path))
        except OSError as error:
            if error.errno in NOT_THERE:
                return False
            raise
        return True

    def names(self) -> list[bytes]:
        """List the root."""
        return os.listdir(proc_path(self._fd, b"."))

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


@dataclass(slots=True)
class _Shown:
    """The layers that show in a directory, by their roots, the uppermost last.

    They were found among the first ``seen`` of the layers ``above``, which show in the directory above it. ``names``
    has what the first ``listed`` of them have in it, each with the uppermost; it is None where that is too much.
    """

    above: list[int]
    layers: list[int] = field(default_factory=list[int])
    seen: int = 0
    names: dict[bytes, int] | None = field(default_factory=dict[bytes, int])
    listed: int = 0


class Stack:
    """The lower layers, each in an overlay's directory of its own, pushed one upon the other as they are unpacked.

    Nobody may change them meanwhile. Each holds a descriptor until `drop`.
    """

    def __init__(self) -> None:
        self.whiteouts = Whiteouts.REMOVE
        self._root = _Shown([])
        self._shown: dict[bytes, _Shown] = {}
        """What was found out of directories; each catches up when it is asked for again."""
        self._names = 0
        """Names in all of them."""

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self._root.layers)

    def push(self, root: LayerRoot) -> None:
        """Put one more layer on top."""
        self.whiteouts = root.whiteouts
        self._root.layers.append(os.open(root.path, _DIRECTORY))

    def drop(self) -> None:
        """Let go of all layers."""
        for fd in self._root.layers:
            os.close(fd)
        self._root = _Shown([])
        self._shown.clear()

    def open(self, path: bytes) -> int:
        """Open a path, as `Below.open` says."""
        fd = self._find(path)
        if fd < 0:
            raise FileNotFoundError(2, "no lower layer has it", path)
        return syscalls.openat2(fd, path, os.O_PATH | os.O_NOFOLLOW, resolve=_STAY)

    def has(self, path: bytes) -> bool:
        """Tell whether something has a path."""
        return self._find(path) >= 0

    def names(self) -> list[bytes]:
        """List the root."""
        found = {name for fd in self._root.layers for name in os.listdir(proc_path(fd, b"."))}
        return [name for name in found if self.has(name)]

    def close(self) -> None:
        """Do nothing: the next layer may ask, too."""

    def _find(self, path: bytes) -> int:
        """Return the root of the uppermost layer that has a path, -1 where none has or it is hidden."""
        above, _, name = path.rpartition(b"/")
        shown = self._showing(above)
        self._list(above, shown)
        if shown.names is None:
            layers: Iterable[int] = reversed(shown.layers)
        else:
            layers = (shown.names[name],) if name in shown.names else ()
        for fd in layers:
            status = _status(fd, path)
            if status is not None:
                return -1 if is_whiteout(status) else fd
        return -1

    def _list(self, path: bytes, shown: _Shown) -> None:
        """List a directory in the layers that were not listed yet: of many layers most do not have a certain name."""
        for fd in islice(shown.layers, shown.listed, None):
            if shown.names is None:
                return
            with os.scandir(proc_path(fd, path or b".")) as entries:
                found = [entry.name for entry in islice(entries, _MOST_LISTED)]
            shown.names.update(dict.fromkeys(found, fd))
            self._names += len(found)
            if len(shown.names) >= _MOST_LISTED:
                shown.names = None
        shown.listed = len(shown.layers)

    def _showing(self, path: bytes) -> _Shown:
        """Return which layers show in a directory; none where it is no directory."""
        if len(self._shown) > _MOST_HELD or self._names > _MOST_NAMES:
            self._shown.clear()
            self._names = 0
        shown = self._root
        end = -1
        while path and shown.layers and end < len(path):
            end = path.find(b"/", end + 1)
            end = len(path) if end < 0 else end
            shown = self._caught_up(path[:end], shown.layers)
        return shown

    def _caught_up(self, path: bytes, above: list[int]) -> _Shown:
        """Return which of the layers above show in a directory, looking only at those that are new."""
        found = self._shown.get(path)
        if found is None or found.above is not above:
            found = self._shown[path] = _Shown(above)
        for fd in islice(above, found.seen, None):
            status = _status(fd, path)
            if status is None:
                continue
            is_directory = stat.S_ISDIR(status.st_mode)
            if not is_directory or self._is_opaque(fd, path):
                found = self._shown[path] = _Shown(above)  # with another list: directories below start anew, too
            if is_directory:
                found.layers.append(fd)
        found.seen = len(above)
        return found

    def _is_opaque(self, fd: int, path: bytes) -> bool:
        return get(proc_path(fd, path), opaque_name(self.whiteouts)) == b"y"


def _status(fd: int, path: bytes) -> os.stat_result | None:
    """Return the status of a path of which all directories are there; None where the last part is not."""
    try:
        return os.stat(path, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
