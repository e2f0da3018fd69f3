"""The programs of docs/how-to/programs.md, as they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import layerfs
from tests.support.images import with_busybox, write_layout

PROGRAMS = Path(__file__).parents[2] / "docs/how-to/programs"
IMAGE = "box:1"

pytestmark = [pytest.mark.root, pytest.mark.driver("overlay2")]


@pytest.fixture
def store(fresh_dir: Path) -> Path:
    """Give a store with an image that has a shell."""
    layout = write_layout(fresh_dir / "layout", [with_busybox()], name=IMAGE)
    with layerfs.open(fresh_dir / "store", driver="overlay2") as opened:
        opened.import_image(layout)
    return fresh_dir / "store"


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAMS / program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def clones(store: Path) -> int:
    with layerfs.open(store) as opened:
        return len(opened.clones())


@pytest.mark.skipif(not shutil.which("runc", path="/usr/sbin:/usr/bin:/sbin"), reason="apt-get install runc")
def test_the_runtime_runs_a_command_and_tells_what_it_changed(store: Path) -> None:
    done = run("runtime.py", store, IMAGE, "/bin/sh", "-c", "echo hello; echo new > /new; rm /etc/issue; exit 7")
    assert (done.returncode, done.stdout) == (7, "hello\n"), done.stderr
    assert done.stderr.splitlines() == ["modified .", "modified etc", "deleted etc/issue", "added new"]
    assert clones(store) == 0
    assert len((PROGRAMS / "runtime.py").read_text().splitlines()) <= 60


def test_the_sandbox_takes_back_what_fails(store: Path) -> None:
    done = run("sandbox.py", store, IMAGE)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("fork: ")]
    assert lines == [
        "0 ['.', 'notes']",
        "3 ['.', 'notes']",
        "0 ['.', 'copy', 'notes']",
        "plan",
        "0 ['.', 'notes']",
    ]
    assert clones(store) == 0


def test_the_build_cache_builds_each_step_once(store: Path) -> None:
    steps = ["echo one > /one", "cat /one > /two"]
    first, second = run("build_cache.py", store, IMAGE, *steps), run("build_cache.py", store, IMAGE, *steps, "rm /one")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert re.findall(r"^(cached|built)", first.stdout, re.MULTILINE) == ["built", "built"]
    assert re.findall(r"^(cached|built)", second.stdout, re.MULTILINE) == ["cached", "cached", "built"]
    failed = run("build_cache.py", store, IMAGE, "false")
    assert (failed.returncode, failed.stderr) == (1, "'false' ended with 1\n")
    with layerfs.open(store) as opened:
        names = [name for image in opened.images() for name in image.names]
        assert sum(name.startswith("build-cache:") for name in names) == 3
        assert opened.clones() == ()
