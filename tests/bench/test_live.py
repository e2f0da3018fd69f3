"""What is shown of a run while it runs: lines where nobody draws, a view on a terminal, nothing with -q."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from layerfs.commands.frame.session import Session
from layerfs_bench import events
from layerfs_bench.live import live, told
from layerfs_bench.results import Cell, Outcome, Parameters
from tests.bench import samples

CELL = samples.CELLS[3]
HOSTILE = replace(CELL, name="\x1b[2Jcell")


def run_of(cell: Cell) -> Iterator[events.Event]:
    """Yield the events of a run of two visits, of which the second fails."""
    results = samples.results()
    first = next(one for one in results.measurements if one.key.scenario == "write.first")
    failed = replace(first, samples=(), visits=(), outcome=Outcome.FAILED, reason="no space\x1b[31m")
    given = Parameters(size=4096)
    yield events.RunStarted(results.fingerprint, (cell,), ("write.first",), 2, 60.0, results.left_out)
    yield events.Preparing("the file system ext4")
    yield events.VisitStarted("write.first", given, cell, 1, 2)
    yield events.VisitEnded("write.first", given, cell, Outcome.OK, (first,), 1, 2, 0.5, 1.0)
    yield events.Note("the machine is busy")
    yield events.VisitStarted("write.first", given, cell, 2, 2)
    yield events.VisitEnded("write.first", given, cell, Outcome.FAILED, (failed,), 2, 2, 0.5, 2.0)
    yield events.RunEnded(results)


def test_events_in_words() -> None:
    lines = [line for event in run_of(CELL) for line in told(event)]
    assert lines[:3] == [
        "2 visits, 1 cell, 1 scenario",
        "left out: zfs: the kernel has no ZFS (install zfs-dkms)",
        "making the file system ext4",
    ]
    assert lines[3].startswith("1/2 write.first 4.0 KiB on overlay2-ext4: first ")
    assert lines[4:] == [
        "the machine is busy",
        "2/2 write.first 4.0 KiB on overlay2-ext4: failed: no space\x1b[31m",
    ]


def test_lines_where_nobody_draws(capsys: pytest.CaptureFixture[str]) -> None:
    with live(Session()) as listener:
        for event in run_of(HOSTILE):
            listener(event)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 6
    assert "\x1b" not in shown.err


def test_nothing_with_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with live(Session(quiet=True)) as listener:
        for event in run_of(CELL):
            listener(event)
    assert capsys.readouterr() == ("", "")


DRAWN = """
import sys
from layerfs.commands.frame.session import Session
from layerfs_bench.live import live
from tests.bench.test_live import HOSTILE, run_of
with live(Session()) as listener:
    for event in run_of(HOSTILE):
        listener(event)
"""


@pytest.mark.parametrize("colour", [True, False])
def test_the_view_on_a_terminal(*, colour: bool) -> None:
    shown = _on_a_terminal({} if colour else {"NO_COLOR": "1"})
    assert "1 of 2 visits, about 1.00 s left: write.first 4.0 KiB on \\x1b[2Jcell" in shown
    assert "2 of 2 visits" in shown
    assert "2 (1 failed)" in shown
    assert "failed: no space\\x1b[31m" in shown
    assert "━" in shown
    assert "\x1b[2J" not in shown
    assert ("\x1b[38;" in shown) == colour  # what has a colour, not what moves the cursor


def _on_a_terminal(environment: dict[str, str]) -> str:
    """Return what the view writes on a terminal of 120 columns."""
    control, terminal = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    settings = {**kept, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40", **environment}
    repository = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", DRAWN], stderr=terminal, env=settings, cwd=repository)
    os.close(terminal)
    seen = b""
    try:
        while part := os.read(control, 65536):
            seen += part
    except OSError:  # EIO: the other end is closed
        pass
    os.close(control)
    assert child.wait() == 0
    return seen.decode()
