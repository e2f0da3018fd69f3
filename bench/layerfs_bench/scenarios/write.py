"""Writes: what the first change of a file of a lower layer costs, and what follows it."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from layerfs.errors import OperationFailed
from layerfs.kernel.children import fork
from layerfs_bench import clock
from layerfs_bench.inputs import Item
from layerfs_bench.results import CacheState, Parameters
from layerfs_bench.scenarios.base import Metric, Scale, Scenario
from layerfs_bench.scenarios.images import contents, files, files_of, small_files
from layerfs_bench.visit import Visit

_FEW = 4
"""Bytes of a small write."""
_BLOCK = 1 << 20
"""Bytes of one write of a sequential stream."""
_COPIED = "copy-up by file: grows with the size, unless by reflink; by block or redirected: the same at every size"


def _patch(path: str, offset: int) -> None:
    """Write four bytes at an offset: open, pwrite, close, which is when a program has done its write."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, b"4 B.", offset)
    finally:
        os.close(fd)


class _OnFiles(Scenario):
    """Change files of a lower layer of one size, each the first time."""

    def cases(self, scale: Scale) -> Iterator[Parameters]:
        """Go by size."""
        return (Parameters(size=size) for size in scale.sizes)

    def visit(self, visit: Visit) -> None:
        """Change every file of a fresh root once, the caches being cold, then see what that took."""
        size = visit.parameters.size or 0
        spec = files(size)
        visit.bed.load(spec)
        for _ in visit.rounds():
            root = visit.make(spec)
            try:
                with visit.shown(root, CacheState.COLD) as path:
                    free = visit.free()
                    self.change(visit, path, size)
                visit.space(self.metrics[0].name, root, free, operations=len(files_of(size)))
            finally:
                root.remove()

    @abstractmethod
    def change(self, visit: Visit, root: Path, size: int) -> None:
        """Change the files below a root."""


def _counting_one(visit: Visit, metric: str, names: list[str]) -> Iterator[str]:
    """Yield all names, and count the bytes at the device for the first alone.

    What a file system writes once for many changes, such as a journal or a tree of metadata, is then that of one.
    """
    first, *others = names
    with visit.traffic(metric):
        yield first
    yield from others


class First(_OnFiles):
    """Write 4 bytes into the middle of a file of a lower layer, then 4 bytes elsewhere in it."""

    name: ClassVar[str] = "write.first"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("first", "open, write 4 bytes in the middle, close, for the first time", _COPIED),
        Metric("second", "the same again, at another place of the file", "small and the same at every size"),
    )

    def change(self, visit: Visit, root: Path, size: int) -> None:
        """Time each file's first and second write."""
        names = [f"{root}/{name}" for name in files_of(size)]
        for metric, offset, state in (("first", size // 2, None), ("second", size // 4, CacheState.WARM)):
            for name in _counting_one(visit, metric, names):
                visit.record(metric, clock.timed(_patch, name, offset), written=_FEW, state=state)


class Append(_OnFiles):
    """Append 4 bytes to a file of a lower layer, then 4 more."""

    name: ClassVar[str] = "write.append"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("first", "open for appending, write 4 bytes, close, for the first time", _COPIED),
        Metric("second", "the same again", "small and the same at every size"),
    )

    def change(self, visit: Visit, root: Path, size: int) -> None:
        """Time each file's first and second append."""
        names = [f"{root}/{name}" for name in files_of(size)]
        for metric, offset, state in (("first", size, None), ("second", size + _FEW, CacheState.WARM)):
            for name in _counting_one(visit, metric, names):
                visit.record(metric, clock.timed(_patch, name, offset), written=_FEW, state=state)


class Overwrite(_OnFiles):
    """Overwrite a file of a lower layer from its beginning to its end without cutting it off first."""

    name: ClassVar[str] = "write.overwrite"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "whole",
            "open, write the whole file by the mebibyte, close",
            "copy-up by file writes everything twice; by block or redirected once",
        ),
    )

    def change(self, visit: Visit, root: Path, size: int) -> None:
        """Time each file."""
        block = os.urandom(min(size, _BLOCK))
        names = [f"{root}/{name}" for name in files_of(size)]
        with visit.traffic("whole", operations=len(names)):
            for name in names:
                visit.record("whole", clock.timed(_overwrite, name, block, size), written=size)


def _overwrite(path: str, block: bytes, size: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for offset in range(0, size, len(block)):
            os.pwrite(fd, block, offset)
    finally:
        os.close(fd)


class _OnNames(Scenario):
    """Change many small files of a lower layer, one after the other."""

    def cases(self, scale: Scale) -> Iterator[Parameters]:
        """Have one case, with the files of the profile."""
        yield Parameters(files=scale.files)

    def visit(self, visit: Visit) -> None:
        """Do it to every file of a fresh root."""
        count = visit.parameters.files or 1
        spec = small_files(count)
        visit.bed.load(spec)
        metric = self.metrics[0].name
        for _ in visit.rounds():
            with visit.root(spec) as root:
                names = [f"{root}/small/f{number}" for number in range(count)]
                visit.rng.shuffle(names)
                with visit.traffic(metric, operations=len(names)):
                    for name in names:
                        visit.time(metric, self.operation, name)

    @abstractmethod
    def operation(self, name: str) -> None:
        """Do it to one file."""


class Create(_OnNames):
    """Make new files of 4 KiB in a directory of a lower layer."""

    name: ClassVar[str] = "write.create"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("file", "create, write 4 KiB, close", "that of the file system below, and one lookup by layer"),
    )

    def operation(self, name: str) -> None:
        """Make a file beside one that is there."""
        fd = os.open(f"{name}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, bytes(4096))
        finally:
            os.close(fd)


class Chmod(_OnNames):
    """Change the mode of files of a lower layer."""

    name: ClassVar[str] = "write.chmod"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("file", "chmod", "copy-up by file copies the data too, unless metacopy is on; else one inode"),
    )

    def operation(self, name: str) -> None:
        """Change one file."""
        os.chmod(name, 0o600)


class Unlink(_OnNames):
    """Unlink files of a lower layer."""

    name: ClassVar[str] = "write.unlink"
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("file", "unlink", "a union makes a whiteout: one inode"),)

    def operation(self, name: str) -> None:
        """Unlink one file."""
        os.unlink(name)


class Rename(Scenario):
    """Rename a directory of a lower layer, as a program does: where it is refused, by copying it."""

    name: ClassVar[str] = "write.rename"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "directory",
            "rename of a directory, or its copy and removal where rename gives EXDEV",
            "overlay without redirect_dir refuses, so that everything is copied; else one rename",
        ),
    )

    def cases(self, scale: Scale) -> Iterator[Parameters]:
        """Have one case, with the files of the profile."""
        yield Parameters(files=scale.files)

    def visit(self, visit: Visit) -> None:
        """Rename the one directory of a fresh root, which holds all files."""
        import shutil  # noqa: PLC0415  what `mv` does

        spec = small_files(visit.parameters.files or 1)
        visit.bed.load(spec)
        for _ in visit.rounds():
            with visit.root(spec) as root, visit.traffic("directory"):
                visit.time("directory", shutil.move, f"{root}/small", f"{root}/moved")


class Parallel(Scenario):
    """Let several processes at once write 4 bytes into files of 1 MiB of a lower layer, each into its own."""

    name: ClassVar[str] = "write.parallel"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "file",
            "the time of all divided by the files that they changed",
            "falls with the processors there are; does not where copy-ups wait for each other",
        ),
    )
    SIZE: ClassVar[int] = 1 << 20
    FILES: ClassVar[int] = 64
    """As many as there are workers at the most."""

    def cases(self, scale: Scale) -> Iterator[Parameters]:
        """Go by workers."""
        return (Parameters(workers=workers) for workers in scale.workers)

    def visit(self, visit: Visit) -> None:
        """Start the workers together and wait for the last."""
        workers = visit.parameters.workers or 1
        names = [f"data/p{number}" for number in range(self.FILES)]
        spec = contents("parallel", [Item("data"), *(Item(name, self.SIZE) for name in names)])
        visit.bed.load(spec)
        for _ in visit.rounds():
            with visit.root(spec, CacheState.COLD) as root:
                shares = [[f"{root}/{name}" for name in names[worker::workers]] for worker in range(workers)]
                with visit.traffic("file", operations=len(names)):
                    seconds = _together(shares, self.SIZE // 2)
                    visit.record("file", seconds / len(names), written=_FEW)


def _together(shares: list[list[str]], offset: int) -> float:
    """Patch the files of each share in a process of its own; return the seconds from the start to the last end."""
    wait, go = os.pipe()
    children = [_worker(share, offset, wait, go) for share in shares]
    os.close(wait)
    start = time.perf_counter()
    os.close(go)  # which is what all wait for
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    seconds = time.perf_counter() - start
    if failed:
        raise OperationFailed(f"{failed} of {len(children)} workers failed")
    return seconds


def _worker(share: list[str], offset: int, wait: int, go: int) -> int:
    child = fork()
    if child:
        return child
    status = 1
    try:
        os.close(go)
        os.read(wait, 1)
        for name in share:
            _patch(name, offset)
        status = 0
    finally:
        os._exit(status)
