"""The works: what is done on every file system, each on a mount of its own on which nothing was looked at before.

A *work* is a function from the mounted root to the client's work, ready to run: what is drawn from a seed is drawn
before the clock runs. Its cost is told for each *unit*: a name, a file, a MiB, or the whole run.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from peers.meter import Failed

from layerfs.kernel.descriptors import opened
from unions.stages import ARCHIVE, DATA, LAYERS, PIECE, PROJECT, REPOSITORY, SMALLER, Inputs, write_data
from unions.trees import MANY, TREE

Ready = Callable[[], None]
"""The work of a client, prepared."""
_NAMES, _OPENED, _MISSING_IN, _CREATED = 5000, 3000, 200, 10_000
_SMALL = 16 << 10
_REQUEST = 128 << 10
_PAGE = 4096
_RANDOM = 20_000
_NEW, _OWN = "new", "own"


@dataclass(frozen=True, slots=True)
class Context:
    """What a work gets to know: the inputs, where the archive is, and a seed that differs between rounds only."""

    inputs: Inputs
    place: Path
    seed: int

    @property
    def chance(self) -> random.Random:
        """Return the same randomness for each file system of a round."""
        return random.Random(self.seed)  # noqa: S311  to do the same again


@dataclass(frozen=True, slots=True)
class Work:
    """What is done; ``writes`` tells that it counts until all is written back, ``uses`` names what it changes.

    ``before`` puts something into the upper directory before the mount.
    """

    name: str
    unit: str
    units: Callable[[Inputs], int]
    ready: Callable[[Path, Context], Ready]
    writes: bool = False
    uses: Callable[[Inputs], str] = field(default=lambda _: "")
    before: Callable[[Path, Context], None] = field(default=lambda _path, _context: None)
    needs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    big: bool = False


def _program(*words: str | Path) -> None:
    done = subprocess.run(
        words, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    if done.returncode:
        raise Failed(f"`{' '.join(str(word) for word in words)}` failed: {done.stderr.decode(errors='replace')[-500:]}")


# -- looking -----------------------------------------------------------------------------------------------------------


def _stat(root: Path, context: Context) -> Ready:
    paths = context.chance.sample([entry.path for entry in context.inputs.tree.entries if entry.size], _NAMES)

    def work() -> None:
        with opened(os.open(root, os.O_PATH)) as fd:
            for path in paths:
                os.stat(path, dir_fd=fd, follow_symlinks=False)

    return work


def _walk(root: Path, context: Context) -> Ready:
    expected = sum(name.startswith(TREE) for name in context.inputs.tree.directories)
    expected += sum(entry.path.startswith(TREE) for entry in context.inputs.tree.entries)

    def work() -> None:
        found, todo = 1, [f"{root}/{TREE}"]
        while todo:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    entry.stat(follow_symlinks=False)
                    found += 1
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
        if found != expected:
            raise Failed(f"a walk found {found} names and not {expected}")

    return work


def _walked(inputs: Inputs) -> int:
    return inputs.tree.below(TREE)


def _open(root: Path, context: Context) -> Ready:
    small = [entry.path for entry in context.inputs.tree.entries if 0 < entry.size <= _SMALL]
    paths = context.chance.sample(small, _OPENED)

    def work() -> None:
        with opened(os.open(root, os.O_PATH)) as fd:
            for path in paths:
                file = os.open(path, os.O_RDONLY, dir_fd=fd)
                os.read(file, _SMALL)
                os.close(file)

    return work


def _missing(root: Path, context: Context) -> Ready:
    directories = context.chance.sample(context.inputs.tree.directories, _MISSING_IN)
    paths = [f"{name}/missing-{number}" for number in range(_NAMES // _MISSING_IN) for name in directories]

    def work() -> None:
        with opened(os.open(root, os.O_PATH)) as fd:
            if any(os.access(path, os.F_OK, dir_fd=fd) for path in paths):
                raise Failed("a name is there that should not be")

    return work


def _list(root: Path, context: Context) -> Ready:  # noqa: ARG001  the interface
    return lambda: None if len(os.listdir(root / MANY)) == _CREATED else _wrong()


def _wrong() -> None:
    raise Failed("a directory does not show what is in it")


def _status(root: Path, context: Context) -> Ready:  # noqa: ARG001  the interface
    return lambda: _program("git", "-C", root / REPOSITORY, "status", "--porcelain")


# -- changing ----------------------------------------------------------------------------------------------------------


def _create(root: Path, context: Context) -> Ready:  # noqa: ARG001  the interface
    def work() -> None:
        os.mkdir(root / _NEW)
        with opened(os.open(root / _NEW, os.O_PATH)) as fd:
            for number in range(_CREATED):
                os.close(os.open(f"file-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=fd))

    return work


def _remove(root: Path, context: Context) -> Ready:
    return lambda: _program("rm", "-r", root / context.inputs.subtree)


def _untar(root: Path, context: Context) -> Ready:
    def work() -> None:
        os.mkdir(root / _NEW)
        _program("tar", "--numeric-owner", "-xpf", context.place / ARCHIVE, "-C", root / _NEW)

    return work


def _copy(root: Path, context: Context) -> Ready:
    return lambda: _program("cp", "-a", root / context.inputs.subtree, root / _NEW)


def _mode(root: Path, context: Context) -> Ready:
    return lambda: _program("chmod", "-R", "o-rwx", root / context.inputs.subtree)


def _compile(root: Path, context: Context) -> Ready:  # noqa: ARG001  the interface
    return lambda: _program("make", "-s", "-j2", "-C", root / PROJECT)


def _subtree(inputs: Inputs) -> str:
    return inputs.subtree


def _in_subtree(inputs: Inputs) -> int:
    return inputs.tree.below(inputs.subtree)


# -- data --------------------------------------------------------------------------------------------------------------


def _read(root: Path, context: Context) -> Ready:
    buffer = bytearray(_REQUEST)

    def work() -> None:
        size = 0
        with opened(os.open(root / DATA, os.O_RDONLY)) as file:
            while got := os.readv(file, [buffer]):
                size += got
        if size != context.inputs.data:
            raise Failed(f"{size} bytes were read")

    return work


def _read_anywhere(root: Path, context: Context) -> Ready:
    offsets = _offsets(context)
    buffer = bytearray(_PAGE)

    def work() -> None:
        with opened(os.open(root / DATA, os.O_RDONLY)) as file:
            for offset in offsets:
                os.preadv(file, [buffer], offset)

    return work


def _write(root: Path, context: Context) -> Ready:
    def work() -> None:
        piece, left = bytes(_REQUEST), context.inputs.data
        with opened(os.open(root / _NEW, os.O_WRONLY | os.O_CREAT | os.O_EXCL)) as file:
            while left > 0:
                left -= os.write(file, piece)

    return work


def _write_anywhere(root: Path, context: Context) -> Ready:
    offsets = _offsets(context)
    piece = bytes(_PAGE)

    def work() -> None:
        with opened(os.open(root / _OWN, os.O_RDWR)) as file:
            for offset in offsets:
                os.pwrite(file, piece, offset)

    return work


def _offsets(context: Context) -> list[int]:
    pages = context.inputs.data // _PAGE
    return [page * _PAGE for page in context.chance.sample(range(pages), min(_RANDOM, pages))]


def _at_random(inputs: Inputs) -> int:
    return min(_RANDOM, inputs.data // _PAGE)


def _write_own(upper: Path, context: Context) -> None:
    write_data(upper / _OWN, context.inputs.data)


def _first_write(root: Path, context: Context) -> Ready:
    return lambda: _write_page(root / DATA, context, synced=False)


def _next_first_write(root: Path, context: Context) -> Ready:
    """Change another lower file before: without what a process does when it does something for the first time."""
    _write_page(root / SMALLER, replace(context, seed=0), synced=False)
    return lambda: _write_page(root / DATA, context, synced=False)


def _first_write_synced(root: Path, context: Context) -> Ready:
    return lambda: _write_page(root / DATA, context, synced=True)


def _write_page(path: Path, context: Context, *, synced: bool) -> None:
    with opened(os.open(path, os.O_RDWR)) as file:
        os.pwrite(file, bytes(_PAGE), context.seed % 1000 * _PAGE)
        if synced:
            os.fsync(file)


def _cool(_upper: Path, context: Context) -> None:
    """Let nothing of the large file be in memory, and nothing of another run be on its way to the disk."""
    os.sync()
    with opened(os.open(context.place / LAYERS / "0" / DATA, os.O_RDONLY)) as file:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def _megabytes(inputs: Inputs) -> int:
    return inputs.data // PIECE


def _once(_inputs: Inputs) -> int:
    return 1


WORKS = (
    Work("stat", "name", lambda _: _NAMES, _stat),
    Work("walk", "name", _walked, _walk),
    Work("open and read", "file", lambda _: _OPENED, _open),
    Work("missing names", "name", lambda _: _NAMES, _missing),
    Work("list 10,000", "name", lambda _: _CREATED, _list),
    Work("create 10,000", "file", lambda _: _CREATED, _create, writes=True),
    Work("rm -r", "name", _in_subtree, _remove, writes=True, uses=_subtree),
    Work("untar", "name", _in_subtree, _untar, writes=True, needs={"tar": "tar"}),
    Work("cp -a", "name", _in_subtree, _copy, writes=True, uses=_subtree),
    Work("chmod -R", "name", _in_subtree, _mode, writes=True, uses=_subtree),
    Work("git status", "run", _once, _status, needs={"git": "git"}),
    Work("compile", "run", _once, _compile, writes=True, uses=lambda _: PROJECT, needs={"gcc": "gcc", "make": "make"}),
    Work("read", "MiB", _megabytes, _read),
    Work("random read", "4 KiB", _at_random, _read_anywhere),
    Work("write", "MiB", _megabytes, _write, writes=True),
    Work("random write", "4 KiB", _at_random, _write_anywhere, writes=True, before=_write_own),
    Work("first write", "run", _once, _first_write, before=_cool, big=True),
    Work("next first write", "run", _once, _next_first_write, before=_cool, big=True),
    Work("first write, fsync", "run", _once, _first_write_synced, before=_cool, big=True),
)
"""All works; those with ``big`` have a stage of their own with one large file."""
