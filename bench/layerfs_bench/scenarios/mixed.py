"""Mixed: what people do in a container, by the programs that they do it with."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from layerfs import process
from layerfs.errors import Unsupported
from layerfs_bench import inputs
from layerfs_bench.child import Unfit
from layerfs_bench.inputs import ImageSpec, Item
from layerfs_bench.results import Parameters
from layerfs_bench.scenarios.base import Metric, Scale, Scenario
from layerfs_bench.scenarios.images import contents, tree_of
from layerfs_bench.visit import Visit

_WHOLE = "between that of lookups, creates and writes by their share; a fast path that matters shows here"


def _require(tool: str, package: str) -> None:
    try:
        process.require(tool, package=package)
    except Unsupported as error:
        raise Unfit(f"{error.message} ({error.hint})") from error


def _run(command: Sequence[str], directory: Path) -> None:
    """Run a program in a directory; raise ``CalledProcessError`` where it fails."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(directory), "LC_ALL": "C"}
    subprocess.run(command, cwd=directory, env=environment, check=True, stdin=subprocess.DEVNULL, capture_output=True)


class _InRoot(Scenario):
    """Do a piece of work in a fresh root, once a round."""

    def cases(self, scale: Scale) -> Iterator[Parameters]:
        """Have one case, with the files of the profile."""
        yield Parameters(files=scale.files)

    def visit(self, visit: Visit) -> None:
        """Do the work over and over."""
        self.check()
        spec = self.image(visit.parameters)
        visit.bed.load(spec)
        for _ in visit.rounds(most=16):
            with visit.root(spec) as root, visit.traffic(self.metrics[0].name):
                self.work(visit, root)

    def check(self) -> None:
        """Raise `Unfit` where a program is missing."""

    def image(self, parameters: Parameters) -> ImageSpec:
        """Return the image of the root."""
        return tree_of(parameters.files or 1)

    @abstractmethod
    def work(self, visit: Visit, root: Path) -> None:
        """Do the work and take the samples."""


class Untar(_InRoot):
    """Unpack a tar of small files with GNU tar, then delete what it made."""

    name: ClassVar[str] = "mixed.untar"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("untar", "tar -xf of small files", _WHOLE),
        Metric("delete", "rm -r of what was unpacked", _WHOLE),
    )

    def check(self) -> None:
        """Look for tar."""
        _require("tar", "tar")

    def work(self, visit: Visit, root: Path) -> None:
        """Unpack into a new directory and delete it."""
        archive, place = visit.work / "small.tar", root / "unpacked"
        if not archive.exists():
            source = visit.work / "small"
            for number in range(visit.parameters.files or 1):
                (source / f"d{number // 32}").mkdir(parents=True, exist_ok=True)
                (source / f"d{number // 32}/f{number}").write_bytes(inputs.data(1024, str(number)).getvalue())
            _run(["tar", "-cf", str(archive), "."], source)
        place.mkdir()
        visit.time("untar", _run, ["tar", "-xf", str(archive)], place)
        visit.time("delete", shutil.rmtree, place)


class Git(_InRoot):
    """Put a tree of a lower layer under version control, and ask what has changed."""

    name: ClassVar[str] = "mixed.git"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("commit", "git init, add and commit of all files", _WHOLE),
        Metric("status", "git status of what was just committed", "mostly lookups: flat where these are"),
    )

    def check(self) -> None:
        """Look for git."""
        _require("git", "git")

    def work(self, visit: Visit, root: Path) -> None:
        """Commit and ask."""
        git = ["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0"]
        place = root / "src"

        def commit() -> None:
            for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
                _run([*git, *words], place)

        visit.time("commit", commit)
        visit.time("status", _run, [*git, "status", "--porcelain"], place)


class Compile(_InRoot):
    """Compile small C files of a lower layer and link them."""

    name: ClassVar[str] = "mixed.compile"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("build", "cc -c of 8 files, and the link", "nearly that of a plain directory: the compiler works"),
    )
    FILES: ClassVar[int] = 8

    def cases(self, scale: Scale) -> Iterator[Parameters]:  # noqa: ARG002  the same in every profile
        """Have one case."""
        yield Parameters()

    def check(self) -> None:
        """Look for a compiler."""
        _require("cc", "gcc")

    def image(self, parameters: Parameters) -> ImageSpec:  # noqa: ARG002  the same at every scale
        """Return an image with the sources."""
        calls = "".join(f"int f{n}(void);" for n in range(self.FILES))
        total = "+".join(f"f{n}()" for n in range(self.FILES))
        main = f"{calls} int main(void) {{ return {total} != 0; }}\n".encode()
        parts = (
            Item(f"c/f{n}.c", data=f'#include "all.h"\nint f{n}(void) {{ return zero; }}\n'.encode())
            for n in range(self.FILES)
        )
        header = Item("c/all.h", data=b"#include <stdio.h>\n#include <stdlib.h>\nstatic const int zero = 0;\n")
        return contents("c-sources", [Item("c"), header, *parts, Item("c/main.c", data=main)])

    def work(self, visit: Visit, root: Path) -> None:
        """Compile and link in one go, in the directory of the sources."""
        place = root / "c"
        sources = [f"f{n}.c" for n in range(self.FILES)]

        def build() -> None:
            _run(["cc", "-c", "-O0", "main.c", *sources], place)
            _run(["cc", "-o", "program", "main.o", *(f"{one[:-2]}.o" for one in sources)], place)

        visit.time("build", build)


class Sqlite(_InRoot):
    """Insert rows into a database of a lower layer, each in a transaction of its own, then read them all."""

    name: ClassVar[str] = "mixed.sqlite"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("insert", "one transaction, durably (journal, synchronous=FULL)", "that of two syncs; the first copies"),
        Metric("select", "a query that reads the whole table", "that of cached reads"),
    )
    ROWS: ClassVar[int] = 2000
    INSERTS: ClassVar[int] = 16

    def cases(self, scale: Scale) -> Iterator[Parameters]:  # noqa: ARG002  the same in every profile
        """Have one case."""
        yield Parameters()

    def image(self, parameters: Parameters) -> ImageSpec:  # noqa: ARG002  the same at every scale
        """Return an image with a database of 2,000 rows."""
        database = sqlite3.connect(":memory:")
        database.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, body BLOB)")
        rows = ((bytes([number % 256]) * 500,) for number in range(self.ROWS))
        database.executemany("INSERT INTO entries (body) VALUES (?)", rows)
        database.commit()
        raw = database.serialize()
        database.close()
        return contents("database", [Item("db"), Item("db/entries.sqlite", data=raw)])

    def work(self, visit: Visit, root: Path) -> None:
        """Insert and select; the first insert is the first write to the lower file."""
        database = sqlite3.connect(root / "db/entries.sqlite", isolation_level=None)
        try:
            database.execute("PRAGMA synchronous=FULL")
            insert = "INSERT INTO entries (body) VALUES (randomblob(500))"
            for _ in range(self.INSERTS):
                visit.time("insert", database.execute, insert)
            visit.time("select", lambda: database.execute("SELECT sum(length(body)) FROM entries").fetchall())
        finally:
            database.close()
