"""containerd's own tests of snapshotters, in Go and from Debian's package, against our socket."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.serving import Serving

GOPATH = Path("/usr/share/gocode")
SOURCES = GOPATH / "src/github.com/containerd/containerd/snapshots/testsuite"
TESTS = 21
"""Tests of the suite, of which containerd itself always skips one (Rename)."""

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("go") or not SOURCES.is_dir(),
        reason="apt-get install golang-go golang-github-containerd-containerd-dev",
    ),
]


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the tests, and give the program."""
    place = tmp_path_factory.mktemp("suite")
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": str(GOPATH),
        "GOFLAGS": "",
        "GOCACHE": os.environ.get("GOCACHE", str(Path.home() / ".cache/go-build")),
    }
    subprocess.run(
        ["go", "test", "-c", "-o", str(place / "suite"), "."],
        cwd=Path(__file__).parent / "suite",
        env=environment,
        check=True,
        timeout=600,
    )
    return place / "suite"


@pytest.mark.parametrize("driver_name", ["overlay2", "btrfs", "copy", "fuse"], indirect=True)
def test_containerd_s_own_suite_passes(suite: Path, serving: Serving, place: Path) -> None:
    temporary = place / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "LAYERFS_SOCKET": str(serving.socket), "TMPDIR": str(temporary)}
    done = subprocess.run(
        [str(suite), "-test.v"], env=environment, capture_output=True, text=True, timeout=540, check=False
    )
    results = re.findall(r"^    --- (\w+): TestSnapshotter/(\w+)", done.stdout, re.MULTILINE)
    assert done.returncode == 0, done.stdout[-20000:]
    assert {name for result, name in results if result != "PASS"} == {"Rename"}
    assert len(results) == TESTS
