"""What the index of a stack of layers costs: to build, to open and to ask.

Run ``python bench/fuse_index.py [--sizes 30000,1000000] [--rounds 5]``. For each size a tree is made in memory, shaped
like a root file system (a tenth of the names are directories, a thirteenth symbolic links), and a small layer on top (a
hundred new, replaced and hidden names in fifty directories). In each round every step runs once, in an order drawn from
a seed, each in a process of its own. Printed are medians: CPU time, wall time, the growth of the process's memory, and
the ratio to what the step is to be compared with: to a plain walk with os.scandir and a stat of each name, or to
building the two layers anew.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from layerfs.kernel.children import fork
from layerfs_fuse.index.builder import build
from layerfs_fuse.index.checks import check
from layerfs_fuse.index.format import ROOT
from layerfs_fuse.index.reader import Index

MEMORY = Path("/dev/shm")  # noqa: S108  the place to measure without a disk
FILES, LINKS, DIRECTORIES = 33, 3, 4
ASKED = 20_000
"""Names that are looked up in one measurement."""
TOUCHED = 50
"""Directories that the small layer touches, with a new and a replaced name in each, and a hidden one in every fifth."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step took: seconds of CPU and wall time, and bytes of memory that the process grew by."""

    cpu: float
    wall: float
    memory: int


@dataclass(slots=True)
class Step:
    """Something to measure, ``count`` times in one run, compared with the step named ``base``."""

    name: str
    work: Callable[[], object]
    count: int = 1
    base: str = ""
    costs: list[Cost] = field(default_factory=list[Cost])

    def median(self, of: Callable[[Cost], float]) -> float:
        """Return the median of one part of its costs, for one of ``count``."""
        return statistics.median(of(cost) for cost in self.costs) / self.count


# -- trees -------------------------------------------------------------------------------------------------------------


def make_tree(root: Path, size: int) -> list[bytes]:
    """Make a tree of ``size`` names; return the paths of its directories, the nearest first."""
    root.mkdir()
    made = [b""]
    left = size
    for path in made:
        with _entered(root, path) as fd:
            for number in range(FILES + LINKS + DIRECTORIES):
                if not left:
                    return made
                left -= 1
                _make(fd, number, path, made)
    return made


def _make(fd: int, number: int, path: bytes, made: list[bytes]) -> None:
    if number < DIRECTORIES:
        name = b"directory-%d" % number
        os.mkdir(name, dir_fd=fd)
        made.append(os.path.join(path, name))
    elif number < DIRECTORIES + LINKS:
        os.symlink(b"libexample.so.%d.0.0" % number, b"libexample.so.%d" % number, dir_fd=fd)
    else:
        os.close(os.open(b"some-file-%02d.py" % number, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, dir_fd=fd))


def make_small(root: Path, directories: Sequence[bytes]) -> None:
    """Make a layer that touches some directories of the tree."""
    root.mkdir()
    for number, path in enumerate(directories):
        os.makedirs(os.path.join(os.fsencode(root), path), exist_ok=True)
        with _entered(root, path) as fd:
            for name in (b"new-file-%d" % number, b"some-file-10.py"):
                os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, dir_fd=fd))
            if number % 5 == 0:
                os.mknod(b"some-file-11.py", 0o020000, 0, dir_fd=fd)


@contextmanager
def _entered(root: Path, path: bytes) -> Iterator[int]:
    fd = os.open(os.path.join(os.fsencode(root), path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


# -- what is measured --------------------------------------------------------------------------------------------------


def walk(root: Path) -> int:
    """Walk a tree with os.scandir, and take the status of every name."""
    count = 0
    pending = [os.fsencode(root)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return count


def write(path: Path, layers: Sequence[Path], parent: Path | None = None) -> None:
    """Build an index, without syncing it."""
    with ExitStack() as stack:
        fds = [stack.enter_context(_entered(layer, b"")) for layer in layers]
        build(path, fds, parent=stack.enter_context(Index.open(parent)) if parent else None, sync=False)


def steps(work: Path, size: int, seed: int) -> list[Step]:
    """Make the trees, and return everything that is to be measured on them."""
    chance = random.Random(seed)  # noqa: S311  to repeat a run
    base, small, one, two = (work / name for name in ("base", "small", "base-index", "index"))
    directories = make_tree(base, size)
    make_small(small, chance.sample(directories[: len(directories) // 2], min(TOUCHED, len(directories) // 2)))
    write(one, [base])
    write(two, [small], one)
    check_equal(two, work / "other", [base, small])
    index = Index.open(two)
    rows = _living(index)
    asked = chance.choices(rows, k=ASKED // 5) * 5  # asked again and again, so that starting the process is forgotten
    names = [(index.parent(row), index.name(row)) for row in asked]
    wrong = [(parent, name + b"~") for parent, name in names]
    paths = [os.path.join(os.fsencode((base, small)[index.layer(row)]), index.path(row)) for row in asked]
    listed = [row for row in rows if index.is_directory(row)][:ASKED]
    build_whole = f"build whole, {size:,} names"
    rebuild = "build both layers anew"
    stat = "os.lstat of the same paths"
    return [
        Step("walk, os.scandir and stat", lambda: walk(base)),
        Step(build_whole, lambda: write(work / "w", [base]), base="walk, os.scandir and stat"),
        Step(rebuild, lambda: write(work / "r", [base, small]), base="walk, os.scandir and stat"),
        Step("build the small layer on its parent", lambda: write(work / "i", [small], one), base=rebuild),
        Step("open", lambda: opened(two, 50), 50, base=rebuild),
        Step("open and verify all checksums", lambda: verified(two), base=rebuild),
        Step(stat, lambda: [os.lstat(path) for path in paths], ASKED),
        Step("look up a name", lambda: [index.child(*name) for name in names], ASKED, stat),
        Step("look up a missing name", lambda: [index.child(*name) for name in wrong], ASKED, stat),
        Step("take an entry reply", lambda: [index.entry(row) for row in asked], ASKED, stat),
        Step("path of a row", lambda: [index.path(row) for row in asked], ASKED, stat),
        Step(
            "READDIRPLUS reply of 32 KiB", lambda: [index.records(row, 0, 32768) for row in listed], len(listed), stat
        ),
        Step("READDIR reply of 32 KiB", lambda: [index.dirents(row, 0, 32768) for row in listed], len(listed), stat),
    ]


def opened(path: Path, times: int) -> None:
    """Open and close an index some times."""
    for _ in range(times):
        Index.open(path).close()


def verified(path: Path) -> None:
    """Open an index and check every byte."""
    with Index.open(path) as index:
        index.verify()


def check_equal(path: Path, other: Path, layers: Sequence[Path]) -> None:
    """Make sure that what is measured is right: built in two steps or in one, an index shows the same."""
    write(other, layers)
    with Index.open(path) as one, Index.open(other) as two:
        check(one)
        if {one.path(row) for row in _living(one)} != {two.path(row) for row in _living(two)}:
            raise SystemExit("fuse_index.py: the index built in two steps is not the one built in one")
    other.unlink()


def _living(index: Index) -> list[int]:
    rows = [ROOT]
    for row in rows:
        rows.extend(index.children(row))
    return rows[1:]


def measure(step: Step) -> Cost:
    """Run a step in a child process."""
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        status = 1
        try:
            before = resource.getrusage(resource.RUSAGE_SELF)
            start = time.perf_counter()
            step.work()
            wall = time.perf_counter() - start
            after = resource.getrusage(resource.RUSAGE_SELF)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            os.write(writer, pickle.dumps(Cost(cpu, wall, (after.ru_maxrss - before.ru_maxrss) << 10)))
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    if not answer:
        raise SystemExit(f"fuse_index.py: {step.name!r} failed")
    cost: Cost = pickle.loads(answer)  # noqa: S301  from our own child
    return cost


# -- what is printed ---------------------------------------------------------------------------------------------------


def _time(seconds: float) -> str:
    for unit, factor in (("s ", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:8.2f} {unit}"
    return ""


def report(found: Sequence[Step]) -> list[str]:
    """Return a table of medians."""
    lines = [f"{'':42}{'CPU':>12}{'wall':>12}{'memory':>10}  ratio of CPU"]
    by_name = {step.name: step for step in found}
    for step in found:
        cpu, wall = step.median(lambda cost: cost.cpu), step.median(lambda cost: cost.wall)
        memory = step.median(lambda cost: cost.memory) * step.count / (1 << 20)
        base = by_name.get(step.base)
        ratio = f"{cpu / base.median(lambda cost: cost.cpu):10.4f} of {step.base}" if base else ""
        lines.append(f"{step.name:42}{_time(cpu):>12}{_time(wall):>12}{memory:6.0f} MiB{ratio}")
    return lines


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="30000,1000000", help="names in the tree (default 30000,1000000)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each step (default 5)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=MEMORY, help=f"directory to work in (default {MEMORY})")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the trees go
    for size in (int(size) for size in chosen.sizes.split(",")):
        work = Path(tempfile.mkdtemp(prefix="layerfs-bench-", dir=chosen.work))
        try:
            found = steps(work, size, chosen.seed)
            bytes_each = (work / "base-index").stat().st_size / size
            for number in range(chosen.rounds):
                for step in random.Random(chosen.seed + number).sample(found, len(found)):  # noqa: S311  to repeat a run
                    step.costs.append(measure(step))
            print(f"\n{size:,} names, {bytes_each:.0f} bytes of index for each, median of {chosen.rounds} rounds")
            print("\n".join(report(found)), flush=True)
        finally:
            shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
