"""What is below a layer that is being unpacked: the lower layers merged, as a mount shows them or as we do ourselves.

A mount of many layers takes longer than a small layer. Whoever has the directories of the single layers can look names
up in them instead, from the uppermost down, by the rules of overlayfs (Documentation/filesystems/overlayfs.rst,
"Directories", "whiteouts and opaque directories").
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

from layerfs.contract import LayerRoot, Whiteouts
from layerfs.kernel import syscalls
from layerfs.layer import attributes

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_STAY = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
_MOST_HELD = 4096
"""Directories of which it is remembered which layers have them."""
_MOST_LISTED = 1024
"""Names of a directory up to which it is listed once: of many layers most do not have the one that is looked for."""
_MOST_NAMES = 100_000
"""Names that are remembered, of some 100 bytes each."""


class Below(Protocol):
    """The lower layers merged. Paths are relative to the root, without ``.``, ``..`` and symbolic links in the way.

    ``whiteouts`` tells how extended attributes must be read (`attributes.from_disk`).
    """

    whiteouts: Whiteouts

    def open(self, path: bytes) -> int:
        """Open what has a path by O_PATH, without following it; raise ``OSError`` where nothing has."""
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

    def names(self) -> list[bytes]:
        """List the root."""
        return list(_listed(self._fd))

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


class Stack:
    """The lower layers, each in an overlay's directory of its own, pushed one upon the other as they are unpacked.

    Nobody may change them meanwhile. Each holds a descriptor until `drop`.
    """

    def __init__(self) -> None:
        self.whiteouts = Whiteouts.REMOVE
        self._held: dict[bytes, list[int]] = {b"": []}
        """For each directory that was looked at the layers that show in it, by their roots, the uppermost last."""
        self._names: dict[tuple[int, bytes], frozenset[bytes] | None] = {}
        """What a layer has in a directory; None for too much."""
        self._count = 0

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self._held[b""])

    def push(self, root: LayerRoot) -> None:
        """Put one more layer on top."""
        self.whiteouts = root.whiteouts
        fd = os.open(root.path, _DIRECTORY)
        self._held[b""].append(fd)
        here, gone = {b""}, set[bytes]()
        for path in sorted(self._held.keys() - here, key=len):  # what is above comes first
            above = path.rpartition(b"/")[0]
            if above in gone:
                gone.add(path)
            elif above in here and (status := _status(fd, path)) is not None:
                if stat.S_ISDIR(status.st_mode) and not self._is_opaque(fd, path):
                    here.add(path)
                    self._held[path].append(fd)
                else:
                    gone.add(path)
        for path in gone:
            del self._held[path]

    def drop(self) -> None:
        """Let go of all layers."""
        for fd in self._held[b""]:
            os.close(fd)
        self._held = {b"": []}
        self._names.clear()
        self._count = 0

    def open(self, path: bytes) -> int:
        """Open a path, as `Below.open` says."""
        above, _, name = path.rpartition(b"/")
        for fd in reversed(self._holders(above)):
            names = self._names_in(fd, above)
            status = _status(fd, path) if names is None or name in names else None
            if status is not None:
                if is_whiteout(status):
                    break
                return syscalls.openat2(fd, path, os.O_PATH | os.O_NOFOLLOW, resolve=_STAY)
        raise FileNotFoundError(2, "no lower layer has it", path)

    def names(self) -> list[bytes]:
        """List the root."""
        seen: dict[bytes, bool] = {}
        for fd in reversed(self._held[b""]):
            for name in _listed(fd):
                if name not in seen:
                    status = _status(fd, name)
                    seen[name] = status is not None and not is_whiteout(status)
        return [name for name, shown in seen.items() if shown]

    def close(self) -> None:
        """Do nothing: the next layer may ask, too."""

    def _names_in(self, fd: int, path: bytes) -> frozenset[bytes] | None:
        """Return what a layer has in one of its directories; None where that is too much to remember."""
        key = (fd, path)
        if key not in self._names:
            names = frozenset(islice(_listed(fd, path), _MOST_LISTED))
            self._count += len(names)
            if self._count > _MOST_NAMES:
                self._names.clear()
                self._count = len(names)
            self._names[key] = None if len(names) == _MOST_LISTED else names
        return self._names[key]

    def _holders(self, path: bytes) -> list[int]:
        """Return the layers that show in a directory; none where it is no directory."""
        if len(self._held) > _MOST_HELD:
            self._held = {b"": self._held[b""]}
        end = -1
        holders = self._held[b""]
        while holders and end < len(path) and path:
            end = path.find(b"/", end + 1)
            end = len(path) if end < 0 else end
            part = path[:end]
            if part not in self._held:
                self._held[part] = self._among(holders, part)
            holders = self._held[part]
        return holders

    def _among(self, above: list[int], path: bytes) -> list[int]:
        """Return those of the layers above that show in a directory of theirs."""
        found: list[int] = []
        for fd in reversed(above):
            status = _status(fd, path)
            if status is None:
                continue
            if not stat.S_ISDIR(status.st_mode):
                break  # a whiteout, or another file in the way
            found.append(fd)
            if self._is_opaque(fd, path):
                break
        return found[::-1]

    def _is_opaque(self, fd: int, path: bytes) -> bool:
        return attributes.get(attributes.proc_path(fd, path), attributes.opaque_name(self.whiteouts)) == b"y"


def _status(fd: int, path: bytes) -> os.stat_result | None:
    """Return the status of a path of which all directories are there; None where the last part is not."""
    try:
        return os.stat(path, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _listed(root: int, path: bytes = b"") -> Iterator[bytes]:
    fd = os.open(path or b".", _LIST, dir_fd=root)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                yield os.fsencode(entry.name)
    finally:
        os.close(fd)
