"""The Debian image for every test here, and the figures that a run prints at its end."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.acceptance import trees
from tests.support import debian, drivers

Stopwatch = Callable[[str], AbstractContextManager[None]]
"""``with stopwatch("import on btrfs"):`` prints the seconds at the end of the run; no test depends on them."""

_FIGURES = pytest.StashKey[list[tuple[str, float]]]()


@pytest.fixture(scope="session")
def debian_layout() -> Path:
    """Give the OCI layout of a real Debian image (`tests.support.debian`)."""
    try:
        return debian.layout()
    except debian.Unavailable as error:
        pytest.skip(f"no Debian image: {error}")


@pytest.fixture(scope="session")
def umoci_tree(debian_layout: Path) -> trees.Tree:
    """Give the tree of the Debian image as umoci unpacks it."""
    with drivers.workspace("umoci") as work:
        words = ("umoci", "unpack", "--image", f"{debian_layout}:edited", work / "bundle")
        subprocess.run(words, check=True, capture_output=True)
        return trees.read(work / "bundle/rootfs")


@pytest.fixture
def stopwatch(request: pytest.FixtureRequest) -> Stopwatch:
    """Give a way to note how long something took."""
    figures = request.config.stash.setdefault(_FIGURES, [])

    @contextmanager
    def measure(what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        figures.append((what, time.perf_counter() - start))

    return measure


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures."""
    figures = config.stash.get(_FIGURES, [])
    if figures:
        terminalreporter.section("how long it took (wall time of this run, no benchmark)")
    for what, seconds in figures:
        terminalreporter.line(f"{seconds:8.2f} s  {what}")
