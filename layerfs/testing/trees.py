"""Directory trees as values, so that a test compares all that a file system knows of them at once."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

_OVERLAY = ("trusted.overlay.", "user.overlay.")


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a tree: ``mode`` with the type, ``data`` of a file or the target of a link, attributes, owner.

    ``links`` are the names of the same inode in the tree, sorted, its own among them; ``mtime_ns`` is 0 where times
    were not asked for.
    """

    mode: int
    data: bytes = b""
    uid: int = 0
    gid: int = 0
    device: int = 0
    attributes: tuple[tuple[str, bytes], ...] = ()
    links: tuple[bytes, ...] = ()
    mtime_ns: int = 0


def describe(root: Path, *, times: bool = False) -> dict[bytes, Entry]:
    """Return every entry below ``root`` by its path relative to it; the root itself is ``b"."``."""
    top = os.fsencode(root)
    paths = [b"."]
    for directory, names, files in os.walk(top):
        below = os.path.relpath(directory, top)
        paths += [os.path.normpath(os.path.join(below, name)) for name in (*names, *files)]
    statuses = {path: os.lstat(os.path.join(top, path)) for path in sorted(paths)}
    inodes: dict[tuple[int, int], list[bytes]] = {}
    for path, status in statuses.items():
        inodes.setdefault((status.st_dev, status.st_ino), []).append(path)
    return {
        path: _entry(os.path.join(top, path), status, inodes[status.st_dev, status.st_ino], times=times)
        for path, status in statuses.items()
    }


def contents(root: Path) -> dict[str, str]:
    """Return the text of every file and ``-> target`` of every link below ``root``, and "/" for directories."""
    found: dict[str, str] = {}
    for path, entry in describe(root).items():
        if path != b".":
            text = entry.data.decode()
            kind = stat.S_IFMT(entry.mode)
            found[path.decode()] = {stat.S_IFDIR: "/", stat.S_IFLNK: f"-> {text}"}.get(kind, text)
    return found


def write(root: Path, **files: str) -> None:
    """Write text files below ``root``; ``__`` in a name stands for "/", and directories are made."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _entry(path: bytes, status: os.stat_result, names: list[bytes], *, times: bool) -> Entry:
    data = b""
    if stat.S_ISLNK(status.st_mode):
        data = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        data = Path(os.fsdecode(path)).read_bytes()
    attributes = [name for name in sorted(os.listxattr(path, follow_symlinks=False)) if not name.startswith(_OVERLAY)]
    return Entry(
        status.st_mode,
        data,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in attributes),
        tuple(names),
        status.st_mtime_ns if times else 0,
    )
