"""Programs that people run, on the union: version control, databases, compilers, and one that breaks file systems."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from layerfs.testing.trees import describe
from tests.support.rootless import Rootless
from tests.support.served import Served

pytestmark = [pytest.mark.usefixtures("fuse_device"), pytest.mark.slow]

SOURCE = Path(__file__).parents[2] / "layerfs"
WAYS = [(), ("nopassthrough",), ("write=redirect", "redirect_from=1")]
_NAMES = ["passthrough", "no open", "redirect"]


def run(*words: str | Path, place: Path | None = None) -> str:
    """Run a program that must succeed."""
    environment = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def with_git(place: Path, options: tuple[str, ...]) -> None:
    """Clone a repository of a lower layer, work in both, and have git check every object."""
    repository = place / "lower/repository"
    shutil.copytree(SOURCE, repository)
    run("git", "init", "--quiet", repository)
    run("git", "add", ".", place=repository)
    run("git", "commit", "--quiet", "-m", "first", place=repository)
    with Served(place, *options) as union:
        ours, clone = union.root / "repository", union.root / "clone"
        assert run("git", "status", "--porcelain", place=ours) == ""
        run("git", "clone", "--quiet", "--no-local", ours, clone)
        (clone / "store.py").write_text("changed\n")
        run("git", "rm", "--quiet", "-r", "kernel", place=clone)
        run("git", "commit", "--quiet", "-a", "-m", "second", place=clone)
        run("git", "pull", "--quiet", clone, place=ours)
        for tree in (ours, clone):
            run("git", "gc", "--quiet", place=tree)
            run("git", "fsck", "--full", "--strict", place=tree)
            assert run("git", "status", "--porcelain", place=tree) == ""
        assert not (ours / "kernel").exists()
        run("git", "checkout", "--quiet", "HEAD~1", place=ours)
        shutil.rmtree(ours / ".git")
        assert describe(ours).keys() == describe(SOURCE).keys()


def _insert(path: Path, first: int) -> None:
    with sqlite3.connect(path, timeout=120) as connection:
        for number in range(first, first + 50):
            connection.execute("INSERT INTO numbers VALUES (?, ?)", (number, "x" * (number % 3000)))
            connection.commit()
    connection.close()


def with_sqlite(place: Path, options: tuple[str, ...]) -> None:
    """Write into a database of a lower layer from several connections, in WAL mode and without."""
    for mode in ("wal", "delete"):
        connection = sqlite3.connect(place / f"lower/{mode}.db")
        connection.execute("CREATE TABLE numbers (number INTEGER PRIMARY KEY, text TEXT)")
        connection.execute("INSERT INTO numbers VALUES (-1, ?)", ("y" * 500_000,))
        connection.commit()
        connection.close()
    with Served(place, *options) as union:
        for mode in ("wal", "delete"):
            path = union.root / f"{mode}.db"
            connection = sqlite3.connect(path)
            assert connection.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(partial(_insert, path), range(0, 200, 50)))
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert connection.execute("SELECT count(*) FROM numbers").fetchone() == (201,)
            connection.close()


def with_a_compiler(place: Path, options: tuple[str, ...]) -> None:
    """Build a program of many files whose sources lie below, twice, and run it."""
    numbers = range(30)
    for number in numbers:
        body = f'{{ printf("{number} "); return {number}; }}'
        source = f'#include <stdio.h>\n#include "all.h"\nint part{number}(void) {body}\n'
        (place / f"lower/part{number}.c").write_text(source)
    (place / "lower/all.h").write_text("".join(f"int part{number}(void);\n" for number in numbers))
    calls = " + ".join(f"part{number}()" for number in numbers)
    (place / "lower/main.c").write_text(f'#include "all.h"\nint main(void) {{ return {calls} == 435 ? 0 : 1; }}\n')
    with Served(place, *options) as union:
        sources = sorted(path.name for path in union.root.glob("*.c"))
        for _ in range(2):
            run("gcc", "-g", "-c", *sources, place=union.root)
            run("gcc", "-o", "program", *(name.replace(".c", ".o") for name in sources), place=union.root)
            assert sorted(run(union.root / "program").split(), key=int) == [str(number) for number in numbers]


CHECKS = [with_git, with_sqlite, with_a_compiler]


@pytest.mark.root
@pytest.mark.parametrize("options", WAYS, ids=_NAMES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_as_root(fresh_dir: Path, check: object, options: tuple[str, ...]) -> None:
    (fresh_dir / "lower").mkdir()
    check(fresh_dir, options)  # type: ignore[operator]


@pytest.mark.rootless
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_as_an_ordinary_user(run_rootless: Rootless, rootless_dir: Path, check: object) -> None:
    def work() -> None:
        (rootless_dir / "lower").mkdir()
        check(rootless_dir, ())  # type: ignore[operator]

    run_rootless(work)


_AT_ONCE = 6
"""Stressors that run beside each other, for two seconds."""
_STRESSORS = (
    "access", "chattr", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirdeep", "dup", "fallocate",
    "fiemap", "file-ioctl", "filename", "flock", "fpunch", "fstat", "getdents", "hdd", "io", "iomix", "lease",
    "link", "locka", "lockf", "mknod", "metamix", "open", "rename", "seek", "symlink", "sync-file", "touch",
    "unlink", "utime", "xattr",
)  # fmt: skip


@pytest.mark.root
@pytest.mark.parametrize("options", WAYS[:2], ids=_NAMES[:2])
def test_stress_ng_finds_nothing(fresh_dir: Path, options: tuple[str, ...]) -> None:
    program = shutil.which("stress-ng")
    if program is None:
        pytest.skip("apt-get install stress-ng")
    with Served(fresh_dir, *options) as union:
        known = run(program, "--stressors").split()
        names = [name for name in _STRESSORS if name in known]
        for first in range(0, len(names), _AT_ONCE):
            chosen = [word for name in names[first : first + _AT_ONCE] for word in (f"--{name}", "1")]
            words: list[str | Path] = [program, *chosen, "--timeout", "2", "--verify", "--temp-path", union.root]
            done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
            # 0 is success, 3 and 4 that a stressor cannot run here, as on any file system of this machine.
            assert done.returncode in {0, 3, 4}, f"{chosen}: {done.stdout}{done.stderr}"
        assert "failed" not in (fresh_dir / "log").read_text()
