r"""What `zfs diff` tells of two states of a file system, made complete (zfs-diff(8)).

It compares objects, and names each once: a file that has several names is told under one of them, and a name that was
added to a file, or taken from it, shows only in that its directory was modified. So modified directories are compared
name by name here, by inode number, and the other names of a modified file are looked for.

A line is a letter (``M`` modified, ``+`` made, ``-`` gone, ``R`` renamed), a letter of the kind of file (``/`` is a
directory) and one name or two, parted by tabs. Names are absolute; blanks, backslashes and what is not ASCII stand as
``\0ooo``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from layerfs import process
from layerfs.contract import Candidates
from layerfs.errors import CommandFailed, Unsupported

_ESCAPE = re.compile(rb"\\0([0-7]{3})")
_ATTRIBUTES = b"/<xattrdir>"
"""Follows the name of a file in the name of one of its extended attributes, where that is a file of its own."""


@dataclass(slots=True)
class _Told:
    """The names that the command told, relative to the root of the file system."""

    paths: set[bytes] = field(default_factory=set[bytes])
    trees: set[bytes] = field(default_factory=set[bytes])
    directories: set[bytes] = field(default_factory=set[bytes])
    """Those modified, so that names in them may be others."""


def candidates(base: str, target: str, old: Path, new: Path) -> Candidates:
    """Ask where ``target``, a dataset mounted at ``new``, differs from the ZFS snapshot ``base``.

    ``old`` shows the base. Raise `Unsupported` where the command fails, as it does when files are open that are gone.
    """
    try:
        lines = process.run(["zfs", "diff", "-FH", base, target], package="zfsutils-linux").splitlines()
    except CommandFailed as error:
        raise Unsupported(f"ZFS does not tell what changed in {target}: {error.message}") from error
    told = _read(lines, os.fsencode(new))
    for directory in told.directories:
        told.trees.update(_renamed(directory, old, new))
    told.paths.update(_other_names(told.paths, new))
    return Candidates(frozenset(told.paths), frozenset(told.trees))


def _read(lines: Iterable[str], place: bytes) -> _Told:
    told = _Told()
    for line in lines:
        change, kind, *names = line.split("\t")
        found = [_relative(name, place) for name in names if name.startswith("/")]  # else it is "(+1)"
        told.paths.update(found)
        if change == "M" and kind == "/":
            told.directories.update(found)
        elif change != "M":
            told.trees.update(found)
    return told


def _relative(name: str, place: bytes) -> bytes:
    plain = _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), name.encode()).partition(_ATTRIBUTES)[0]
    if plain != place and not plain.startswith(place.rstrip(b"/") + b"/"):
        raise Unsupported(f"zfs diff names {name}, which is not below {os.fsdecode(place)}")
    return plain[len(place) :].strip(b"/")


def _renamed(directory: bytes, old: Path, new: Path) -> Iterator[bytes]:
    """Give the names in a directory that are not the same file in both trees."""
    before, after = _inodes(directory, old), _inodes(directory, new)
    for name, _ in before.items() ^ after.items():
        yield os.path.join(directory, name)


def _inodes(directory: bytes, root: Path) -> dict[bytes, int]:
    try:
        with os.scandir(os.path.join(os.fsencode(root), directory)) as found:
            return {entry.name: entry.inode() for entry in found}
    except (FileNotFoundError, NotADirectoryError):  # it has another name there
        return {}


def _other_names(paths: Iterable[bytes], root: Path) -> Iterator[bytes]:
    """Give every name of the files among ``paths`` that have more than one; most often nothing is read for it."""
    wanted = {inode for path in paths if (inode := _linked(os.path.join(os.fsencode(root), path)))}
    if not wanted:
        return
    pending = [b""]
    while pending:
        directory = pending.pop()
        with os.scandir(os.path.join(os.fsencode(root), directory)) as found:
            for entry in found:
                path = os.path.join(directory, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.inode() in wanted:
                    yield path


def _linked(path: bytes) -> int:
    """Return the inode number of a file with several names, else 0."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return status.st_ino if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode) else 0
