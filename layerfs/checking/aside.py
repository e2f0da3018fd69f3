"""Put a file or directory aside that is none of the store's, or that nobody can name, where it is found again."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from layerfs.kernel import syscalls
from layerfs.tree import LOST


def aside(path: Path, lost: Path, name: str) -> Path:
    """Rename a file or directory into ``lost`` under a name, or that and a number; return where it is now.

    What cannot be moved there stays in its directory under a name that begins with "lost+found": what is on a file
    system of its own, and a read-only subvolume, which btrfs moves to no other directory.
    """
    try:
        return _rename(path, lost, name)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EROFS}:
            raise
    return _rename(path, path.parent, f"{LOST}.{name}")


def _rename(path: Path, directory: Path, name: str) -> Path:
    number = 0
    while True:
        target = directory / (name + (f".{number}" if number else ""))
        try:
            syscalls.rename_noreplace(syscalls.AT_FDCWD, os.fsencode(path), syscalls.AT_FDCWD, os.fsencode(target))
        except FileExistsError:
            number += 1
        else:
            return target
