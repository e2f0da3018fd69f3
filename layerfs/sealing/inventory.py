"""The *inventory* of a tree: what every file in it is, with a digest of what it holds; and where two of them differ.

It is taken of a snapshot's own directory as it lies on the disk, with the marks of the driver, or of a mounted tree.
Not part of it are what changes without anybody's doing: times of access and of change, the length of directories,
inode numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from layerfs.errors import os_error
from layerfs.kernel.descent import Descent
from layerfs.layer import attributes
from layerfs.layer.links import Inode, inode
from layerfs.sealing import contents

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOREIGN = frozenset({b"security.selinux"})

Contents = Callable[[int, os.stat_result], str]
"""Return the digest of what an open regular file holds."""
Step = Callable[[int], None]
"""Hear how many bytes of files have been looked at; may raise to end the work."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: what stat(2) says, extended attributes in hexadecimal, a digest or the target of a symbolic link.

    ``linked`` is the first of the names that a file with several has.
    """

    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    device: int
    content: str
    xattrs: tuple[tuple[str, str], ...]
    linked: str


Inventory = Mapping[str, Entry]
"""The entries by path, relative and without a slash in front, bytes as `os.fsdecode` gives them; "" is the root."""


def take(root: Path, *, content: Contents | None = None, step: Step = lambda _: None) -> dict[str, Entry]:
    """Look at every file of a tree; ``content`` reads files in a way of its own. Raise `LayerfsError`."""
    try:
        with Descent(os.open(root, _DIRECTORY)) as walk:
            return dict(_Walk(walk, content or _content, step).run())
    except OSError as error:
        raise os_error(f"read all of {root}", error) from error


def _content(fd: int, status: os.stat_result) -> str:  # noqa: ARG001  the signature of `Contents`
    return contents.read(fd)


class _Walk:
    def __init__(self, walk: Descent, content: Contents, step: Step) -> None:
        self._walk = walk
        self._content = content
        self._step = step
        self._first: dict[Inode, str] = {}
        self._read: dict[Inode, str] = {}
        self._done = 0

    def run(self) -> Iterator[tuple[str, Entry]]:
        yield "", self._entry("", b".")
        frames = [("", _sorted(self._walk.fd))]
        while frames:
            above, names = frames[-1]
            if not names:
                frames.pop()
                if frames:
                    self._walk.up()
                continue
            name = names.pop()
            path = above + os.fsdecode(name)
            entry = self._entry(path, name)
            yield path, entry
            if stat.S_ISDIR(entry.mode):
                self._walk.down(name)
                frames.append((path + "/", _sorted(self._walk.fd)))

    def _entry(self, path: str, name: bytes) -> Entry:
        status = os.stat(name, dir_fd=self._walk.fd, follow_symlinks=False)
        is_directory = stat.S_ISDIR(status.st_mode)
        hides = stat.S_ISCHR(status.st_mode) and not status.st_rdev  # a whiteout, whose time is that of its making
        linked = ""
        if status.st_nlink > 1 and not is_directory:
            linked = self._first.setdefault(inode(status), path)
        return Entry(
            status.st_mode,
            status.st_uid,
            status.st_gid,
            0 if hides else status.st_mtime_ns,
            0 if is_directory else status.st_size,
            status.st_rdev if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else 0,
            self._held(name, status),
            _xattrs(attributes.proc_path(self._walk.fd, name)),
            linked,
        )

    def _held(self, name: bytes, status: os.stat_result) -> str:
        if stat.S_ISLNK(status.st_mode):
            return os.fsdecode(os.readlink(name, dir_fd=self._walk.fd))
        if not stat.S_ISREG(status.st_mode):
            return ""
        key = inode(status)
        if status.st_nlink > 1 and key in self._read:
            return self._read[key]
        self._done += status.st_size
        self._step(self._done)
        fd = os.open(name, _READ, dir_fd=self._walk.fd)
        try:
            held = self._content(fd, status)
        except OSError as error:
            held = (
                f"cannot be read: {error.strerror}"  # a bad sector is one file's damage, and the others are looked at
            )
        finally:
            os.close(fd)
        if status.st_nlink > 1:
            self._read[key] = held
        return held


def _sorted(fd: int) -> list[bytes]:
    return sorted(map(os.fsencode, os.listdir(fd)), reverse=True)


def _xattrs(path: bytes) -> tuple[tuple[str, str], ...]:
    found = attributes.read(path)
    return tuple((os.fsdecode(name), found[name].hex()) for name in sorted(found) if name not in _FOREIGN)


# -- two of them -------------------------------------------------------------------------------------------------------

_WORDS = (
    ("mode", "its mode is another"),
    ("uid", "its owner is another"),
    ("gid", "its group is another"),
    ("content", "its content is another"),
    ("size", "its length is another"),
    ("device", "its device number is another"),
    ("xattrs", "its extended attributes are others"),
    ("linked", "its hard links are others"),
    ("mtime", "its modification time is another"),
)


def differences(expected: Inventory, found: Inventory, *, root_time: bool = True) -> dict[str, str]:
    """Return the paths at which two trees differ, each with what is wrong there, sorted.

    What lies below a directory that is gone or new is not named again. ``root_time`` tells that the time of the root
    counts.
    """
    wrong: dict[str, str] = {}
    whole: set[str] = set()
    for path in sorted(expected.keys() | found.keys(), key=lambda path: path.split("/")):
        above = path.rpartition("/")[0]
        before, after = expected.get(path), found.get(path)
        if before is None or after is None:
            whole.add(path)
            if above not in whole or not path:
                wrong[path] = _GONE if after is None else _NEW
                if wrong.get(above) == _TIME:  # of course: a name in it is gone or new
                    del wrong[above]
            continue
        words = [text for name, text in _WORDS if getattr(before, name) != getattr(after, name)]
        if path == "" and not root_time:
            words = [text for text in words if text != _TIME]
        if words:
            wrong[path] = ", ".join(words)
    return wrong


_GONE, _NEW = "it is gone", "it does not belong there"
_TIME = _WORDS[-1][1]


# -- text --------------------------------------------------------------------------------------------------------------


def to_lines(inventory: Inventory) -> Iterator[bytes]:
    """Write an inventory, an entry to a line, in the order of the paths."""
    for path in sorted(inventory):
        yield json.dumps([path, *astuple(inventory[path])], separators=(",", ":")).encode() + b"\n"


def from_lines(lines: Iterable[bytes]) -> dict[str, Entry]:
    """Read what `to_lines` wrote."""
    found: dict[str, Entry] = {}
    for line in lines:
        path, mode, uid, gid, mtime, size, device, content, xattrs, linked = json.loads(line)
        pairs = tuple((name, value) for name, value in xattrs)
        found[path] = Entry(mode, uid, gid, mtime, size, device, content, pairs, linked)
    return found


def digest(inventory: Inventory) -> str:
    """Return one digest of all of it."""
    hashed = hashlib.sha256()
    for line in to_lines(inventory):
        hashed.update(line)
    return f"sha256:{hashed.hexdigest()}"
