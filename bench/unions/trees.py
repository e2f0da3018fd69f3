"""A directory tree from a seed, and its layers: however many there are, they merge to the same tree.

The *tree* is what everybody shows in the end. A *layer* holds part of its files, older versions of others, files and
directories that a higher layer deletes (*ghosts*), and the marks of an overlay that delete: whiteouts and opaque
directories (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"). The lowest layer brings
half of the files; what is in one directory comes from few layers, as it does in images.
"""

from __future__ import annotations

import os
import random
import stat
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path

TREE = "tree"
"""The directory that is walked and looked up in."""
MANY = "many"
"""The directory with `MANY_ENTRIES` empty files."""
MANY_ENTRIES = 10_000

_TOPS = ("usr", "etc", "var", "opt", "srv")
_DEEPEST = 9
_FILES_A_DIRECTORY = 10
_MEDIAN, _SPREAD = 2500, 1.6
"""Sizes of files in bytes: a log-normal distribution, mean 9 KB."""
_LARGEST = 1 << 20
_LINKS = 0.03
_IN_BASE = 0.5
_CHANGED = 0.08
"""Share of the files outside of the lowest layer that have an older version below."""
_GHOSTS = 1600
"""Names that higher layers delete, over all layers."""
_GHOST_FILES = 5
"""Files in each directory that is deleted whole; every tenth ghost is one."""
_OPAQUE = 60
"""Directories that are opaque, over all layers."""
_READ_EACH = 10
"""In a listing the content of one file in so many is read: deep stacks take minutes for all."""
_EPOCH = 1_700_000_000
_SYLLABLES = ("ba", "co", "di", "fu", "lib", "me", "na", "py", "st", "tra")
_SUFFIXES = (".py", ".h", ".c", ".so", ".txt", ".conf", ".gz", ".json", ".mo", "", "", ".html", ".pyc", ".service")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, or with a ``target`` a symbolic link; ``version`` 0 is what the tree shows."""

    path: str
    size: int = 0
    mode: int = 0o644
    target: str = ""
    version: int = 0

    @property
    def directory(self) -> str:
        """Return the directory that it is in."""
        return self.path.rpartition("/")[0]

    @property
    def content(self) -> memoryview:
        """Return its bytes."""
        start = zlib.crc32(f"{self.path}:{self.version}".encode()) % _LARGEST
        return memoryview(_pool())[start : start + self.size]


@dataclass(frozen=True, slots=True)
class Tree:
    """What everybody shows: directories, parents first, and what is in them."""

    directories: tuple[str, ...]
    entries: tuple[Entry, ...]

    def below(self, directory: str) -> int:
        """Return how many names a directory has below it, its own included."""
        prefix = f"{directory}/"
        names = (*self.directories, *(entry.path for entry in self.entries))
        return 1 + sum(name.startswith(prefix) for name in names)

    def subtree(self, wanted: int) -> str:
        """Return the directory with closest to so many names below it."""
        counts: dict[str, int] = defaultdict(int)
        for name in (*self.directories, *(entry.path for entry in self.entries)):
            while name := name.rpartition("/")[0]:
                counts[name] += 1
        return min(self.directories, key=lambda directory: (abs(counts[directory] - wanted), directory))


@dataclass(slots=True)
class Layer:
    """One layer: what it brings, the names that it deletes, and its opaque directories."""

    entries: list[Entry] = field(default_factory=list[Entry])
    directories: list[str] = field(default_factory=list[str])
    whiteouts: list[str] = field(default_factory=list[str])
    opaque: list[str] = field(default_factory=list[str])


@cache
def _pool() -> bytes:
    """Return random bytes that contents are pieces of."""
    return random.Random(1).randbytes(2 * _LARGEST)  # noqa: S311  to make the same again


# -- the tree ----------------------------------------------------------------------------------------------------------


def make_tree(seed: int, files: int) -> Tree:
    """Make up a tree of so many files."""
    chance = random.Random(seed)  # noqa: S311  to make the same again
    directories = [TREE, *(f"{TREE}/{top}" for top in _TOPS)]
    taken = set(directories)
    while len(directories) < files // _FILES_A_DIRECTORY:
        parent = chance.choice(directories[1:])
        if parent.count("/") < _DEEPEST and (path := f"{parent}/{_word(chance)}") not in taken:
            taken.add(path)
            directories.append(path)
    weights = list(accumulate(min(chance.paretovariate(1.2), 60.0) for _ in directories))
    entries: list[Entry] = []
    while len(entries) < files:
        parent = chance.choices(directories, cum_weights=weights)[0]
        if (path := f"{parent}/{_word(chance)}{chance.choice(_SUFFIXES)}") not in taken:
            taken.add(path)
            entries.append(_entry(chance, path))
    many = [Entry(f"{MANY}/{_word(chance)}-{number:05d}") for number in range(MANY_ENTRIES)]
    return Tree((*directories, MANY), (*entries, *many))


def _word(chance: random.Random) -> str:
    return "".join(chance.choices(_SYLLABLES, k=chance.randint(2, 6)))


def _entry(chance: random.Random, path: str, version: int = 0) -> Entry:
    if not version and chance.random() < _LINKS:
        return Entry(path, mode=0o777, target=f"../{_word(chance)}/{_word(chance)}")
    size = min(int(chance.lognormvariate(0, _SPREAD) * _MEDIAN), _LARGEST)
    mode = chance.choices((0o644, 0o755, 0o640), (85, 12, 3))[0]
    return Entry(path, size, mode, version=version)


# -- its layers --------------------------------------------------------------------------------------------------------


def make_layers(tree: Tree, depth: int, seed: int) -> list[Layer]:
    """Take a tree apart into layers, the lowest first."""
    layers = [Layer() for _ in range(depth)]
    layers[0].directories.extend(tree.directories)
    if depth == 1:
        layers[0].entries.extend(tree.entries)
        return layers
    chance = random.Random(seed * 1000 + depth)  # noqa: S311  to make the same again
    opaque = _place_opaque(tree, layers, chance)
    owners = {name: _owners(name, depth, chance) for name in tree.directories}
    for entry in tree.entries:
        number = opaque.get(entry.directory, -1)
        if number < 0:
            number = 0 if chance.random() < _IN_BASE else chance.choice(owners[entry.directory])
        layers[number].entries.append(entry)
        if number and not entry.target and chance.random() < _CHANGED:
            layers[chance.randrange(number)].entries.append(_entry(chance, entry.path, version=1))
    _place_ghosts([name for name in tree.directories[1:-1] if name not in opaque], layers, chance)
    return layers


def _owners(directory: str, depth: int, chance: random.Random) -> list[int]:
    """Draw the layers above the lowest that bring something to a directory."""
    return chance.sample(range(1, depth), min(depth - 1, 8 if directory == MANY else chance.randint(1, 3)))


def _place_opaque(tree: Tree, layers: list[Layer], chance: random.Random) -> dict[str, int]:
    """Make some directories opaque, each in one layer that brings all of it; return the layers' numbers by name."""
    parents = {name.rpartition("/")[0] for name in tree.directories}
    leaves = [name for name in tree.directories[1:-1] if name not in parents]
    a_layer = max(1, _OPAQUE // len(layers))
    drawn = chance.sample(leaves, min(a_layer * (len(layers) - 1), len(leaves) // 2))
    placed = {name: 1 + number % (len(layers) - 1) for number, name in enumerate(drawn)}
    for name, number in placed.items():
        layers[number].opaque.append(name)
        layers[chance.randrange(number)].entries.extend(
            _entry(chance, f"{name}/hidden-{index}", version=1) for index in range(_GHOST_FILES)
        )
    return placed


def _place_ghosts(directories: list[str], layers: list[Layer], chance: random.Random) -> None:
    """Let layers bring names, files and now and then whole directories, that higher layers delete."""
    for number in range(1, len(layers)):
        for index in range(max(4, _GHOSTS // len(layers))):
            below = layers[chance.randrange(number)]
            path = f"{chance.choice(directories)}/ghost-{number}-{index}"
            names = [f"{path}/{each}" for each in range(_GHOST_FILES)] if index % 10 == 0 else [path]
            below.entries.extend(_entry(chance, name, version=1) for name in names)
            layers[number].whiteouts.append(path)


# -- on disk -----------------------------------------------------------------------------------------------------------


def write_layer(layer: Layer, root: Path) -> None:
    """Write a layer into a directory, which is made; needs root, for the marks are those of a mount by root."""
    made: list[str] = []
    root.mkdir()
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        known = {""}
        for directory in layer.directories:
            _make_directory(fd, directory, known, made)
        for entry in layer.entries:
            _make_directory(fd, entry.directory, known, made)
            _write_entry(fd, entry)
        for path in layer.whiteouts:
            _make_directory(fd, path.rpartition("/")[0], known, made)
            os.mknod(path, stat.S_IFCHR, 0, dir_fd=fd)
        for path in layer.opaque:
            _make_directory(fd, path, known, made)
            os.setxattr(root / path, "trusted.overlay.opaque", b"y")
        for directory in (*made, "."):
            os.utime(directory, (_EPOCH, _EPOCH), dir_fd=fd)
    finally:
        os.close(fd)


def _make_directory(root: int, path: str, known: set[str], made: list[str]) -> None:
    if path in known:
        return
    _make_directory(root, path.rpartition("/")[0], known, made)
    os.mkdir(path, 0o755, dir_fd=root)
    known.add(path)
    made.append(path)


def _write_entry(root: int, entry: Entry) -> None:
    if entry.target:
        os.symlink(entry.target, entry.path, dir_fd=root)
    else:
        file = os.open(entry.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, entry.mode, dir_fd=root)
        os.write(file, entry.content)
        os.close(file)
    time = _EPOCH + zlib.crc32(entry.path.encode()) % 1_000_000 + entry.version
    os.utime(entry.path, (time, time), dir_fd=root, follow_symlinks=False)


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """Return what a root shows of the tree by path: kind, mode, size, time, target; of every tenth file the content."""
    found: dict[str, tuple[object, ...]] = {}
    for top in (TREE, MANY):
        for directory, _, files in os.walk(root / top):
            status = os.lstat(directory)
            found[os.path.relpath(directory, root)] = (status.st_mode, status.st_mtime)
            for name in files:
                path = os.path.join(directory, name)
                shown = os.path.relpath(path, root)
                status = os.lstat(path)
                told: tuple[object, ...] = (status.st_mode, status.st_size, status.st_mtime)
                if stat.S_ISLNK(status.st_mode):
                    told = (*told, os.readlink(path))
                elif zlib.crc32(shown.encode()) % _READ_EACH == 0:
                    told = (*told, zlib.crc32(Path(path).read_bytes()))
                found[shown] = told
    return found
