"""Work in a process of its own: it comes back, fails, crashes or hangs, and the rest goes on."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from layerfs.errors import Unsupported
from layerfs_bench import child
from layerfs_bench.child import End, Unfit


@dataclass(frozen=True, slots=True)
class Answer:
    number: int


def _raise(error: BaseException) -> Answer:
    raise error


def _die() -> Answer:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Answer(0)


def test_what_it_returns_comes_back() -> None:
    ended = child.run(lambda: Answer(os.getpid()), Answer, limit=10)
    assert ended.end is End.DONE
    assert ended.value is not None
    assert ended.value.number != os.getpid()


@pytest.mark.parametrize(
    ("error", "end", "said"),
    [
        (Unfit("no such depth"), End.UNFIT, "no such depth"),
        (Unsupported("no overlay", hint="modprobe"), End.FAILED, "no overlay"),
        (KeyError("x"), End.FAILED, r"KeyError: 'x' \(test_child.py:\d+\)"),
    ],
)
def test_what_it_raises_is_told(error: Exception, end: End, said: str) -> None:
    ended = child.run(lambda: _raise(error), Answer, limit=10)
    assert ended.end is end
    assert re.search(said, ended.reason)
    assert ended.value is None


def test_a_crash_is_a_failure() -> None:
    ended = child.run(_die, Answer, limit=10)
    assert (ended.end, ended.reason) == (End.FAILED, "its process ended with signal SIGSEGV")


def test_one_that_takes_too_long_is_ended_and_may_tidy_up(tmp_path: Path) -> None:
    def wait() -> Answer:
        try:
            time.sleep(60)
        finally:
            (tmp_path / "tidied").touch()
        return Answer(0)

    ended = child.run(wait, Answer, limit=0.2)
    assert (ended.end, ended.reason) == (End.TIMED_OUT, "it did not end within 0.2 s")
    assert (tmp_path / "tidied").exists()


def test_one_that_does_not_want_to_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_GRACE", 0.3)

    def deaf() -> Answer:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
        return Answer(0)

    assert child.run(deaf, Answer, limit=0.3).end is End.TIMED_OUT


def test_ctrl_c_ends_it_first(tmp_path: Path) -> None:
    def wait() -> Answer:
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(60)
        return Answer(0)

    def interrupt() -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        child.run(wait, Answer, limit=30)
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()
