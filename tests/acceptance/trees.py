"""Trees in full, read by lstat(2) and its like: to compare, and to tell what changed without the code under test."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime

Tree = Mapping[bytes, "Entry"]
"""Entries by path, relative to the root; the root itself is "."."""

_SHOWN = 25
"""Differences that are printed; more say nothing new."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Everything that a container can see of a name, but the length of a directory, atime, ctime and inode number."""

    mode: str
    owner: tuple[int, int]
    mtime: int
    size: int
    content: str
    device: tuple[int, int]
    xattrs: tuple[tuple[bytes, bytes], ...]
    links: tuple[bytes, ...]
    """All names of the same file, sorted."""

    @property
    def is_directory(self) -> bool:
        return self.mode.startswith("d")


def read(root: str | os.PathLike[str]) -> Tree:
    """Read a tree without crossing into other file systems; sockets are left out, as layers leave them out."""
    top = os.fsencode(root)
    found = {path: os.lstat(os.path.join(top, path)) for path in _walk(top)}
    groups: defaultdict[tuple[int, int], list[bytes]] = defaultdict(list)
    for path, status in found.items():
        groups[status.st_dev, status.st_ino].append(path)
    return {
        path: _entry(os.path.join(top, path), status, tuple(sorted(groups[status.st_dev, status.st_ino])))
        for path, status in found.items()
        if not stat.S_ISSOCK(status.st_mode)
    }


def _walk(top: bytes) -> Iterator[bytes]:
    yield b"."
    waiting = [b""]
    while waiting:
        here = waiting.pop()
        with os.scandir(os.path.join(top, here)) as entries:
            for entry in entries:
                path = here + entry.name
                yield path
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path + b"/")


def _entry(path: bytes, status: os.stat_result, links: tuple[bytes, ...]) -> Entry:
    kind = stat.S_IFMT(status.st_mode)
    content = os.fsdecode(os.readlink(path)) if kind == stat.S_IFLNK else ""
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    is_device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    names = sorted(map(os.fsencode, os.listxattr(path, follow_symlinks=False)))
    return Entry(
        stat.filemode(status.st_mode),
        (status.st_uid, status.st_gid),
        status.st_mtime_ns,
        status.st_size if kind == stat.S_IFREG else 0,
        content,
        (os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0),
        tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names),
        links,
    )


def differences(expected: Tree, found: Tree) -> list[str]:
    """Return a line for each name or attribute that differs, sorted by path."""
    return [line for path in sorted(expected.keys() | found.keys()) for line in _differing(path, expected, found)]


def check_same(expected: Tree, found: Tree, what: str) -> None:
    """Fail with the first differences if the trees are not one and the same."""
    lines = differences(expected, found)
    if lines:
        more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise AssertionError("\n".join([f"{what}: {len(lines)} differences", *lines[:_SHOWN], *more]))


def _differing(path: bytes, expected: Tree, found: Tree) -> Iterator[str]:
    shown = path.decode(errors="backslashreplace")
    if path not in found:
        yield f"{shown!r} is missing ({expected[path].mode})"
    elif path not in expected:
        yield f"{shown!r} is there, and should not be ({found[path].mode})"
    else:
        for field in fields(Entry):
            wanted, got = getattr(expected[path], field.name), getattr(found[path], field.name)
            if wanted != got:
                yield f"{shown!r} has the {field.name} {_value(field.name, got)}, not {_value(field.name, wanted)}"


def _value(name: str, value: object) -> str:
    if name == "mtime" and isinstance(value, int):
        return f"{datetime.fromtimestamp(value // 10**9, UTC):%F %T}.{value % 10**9:09}"
    return repr(value)


def changes(before: Tree, after: Tree) -> list[tuple[str, bytes]]:
    """Return kind and path of what makes ``before`` into ``after``, in the terms of `layerfs.layer.changes`.

    What lies in a directory that is gone, or that something else replaced, is not listed by itself; nor is a name of
    which only the other names of its file changed (`relinked`).
    """
    gone = {path for path, entry in before.items() if entry.is_directory and not _is_directory(after, path)}
    found = [
        ("deleted" if path not in after else "added" if path not in before else "modified", path)
        for path in (before.keys() | after.keys()) - relinked(before, after)
        if not (path not in after and any(above in gone for above in _above(path)))
        and before.get(path) != after.get(path)
    ]
    return sorted(found, key=lambda change: b"" if change[1] == b"." else change[1].replace(b"/", b"\0"))


def relinked(before: Tree, after: Tree) -> set[bytes]:
    """Return the names that show the same file as before, which has got or lost other names.

    Whether such a name is listed as a change depends on what became of the others; the layer has to restore them all.
    """
    return {
        path
        for path in before.keys() & after.keys()
        if before[path] != after[path] and before[path] == replace(after[path], links=before[path].links)
    }


def _is_directory(tree: Tree, path: bytes) -> bool:
    return path in tree and tree[path].is_directory


def _above(path: bytes) -> Iterator[bytes]:
    while (path := path.rpartition(b"/")[0]) != b"":
        yield path
