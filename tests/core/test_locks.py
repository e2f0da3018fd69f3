"""Locks on single bytes of one file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from layerfs import locks
from layerfs.errors import Busy
from layerfs.kernel.children import fork

_HOLD = """
import sys, time
from pathlib import Path
from layerfs import locks
owner = locks.Owner(Path(sys.argv[1]))
with locks.locked(Path(sys.argv[1]), locks.named("x"), exclusive=True, what="x"):
    print(owner.token, flush=True)
    time.sleep(60)
"""


def _try(file: Path, place: locks.Place, *, exclusive: bool) -> bool:
    try:
        with locks.locked(file, place, exclusive=exclusive, what="it", timeout=0):
            return True
    except Busy:
        return False


def test_shared_locks_go_together_and_exclusive_ones_do_not(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with locks.locked(file, locks.STORE, exclusive=False, what="it"):
        assert _try(file, locks.STORE, exclusive=False)
        assert not _try(file, locks.STORE, exclusive=True)
        assert _try(file, locks.upper(7), exclusive=True)
    with locks.locked(file, locks.STORE, exclusive=True, what="it"):
        assert not _try(file, locks.STORE, exclusive=False)
    assert _try(file, locks.STORE, exclusive=True)


def test_busy_says_what_is_held(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with (
        locks.locked(file, locks.STORE, exclusive=True, what="it"),
        pytest.raises(Busy, match="the clone 'a' is in use"),
        locks.locked(file, locks.STORE, exclusive=True, what="the clone 'a'", timeout=0.05),
    ):
        pass


def test_a_waiting_thread_gets_the_lock(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    got = threading.Event()

    def wait() -> None:
        with locks.locked(file, locks.STORE, exclusive=True, what="it"):
            got.set()

    with locks.locked(file, locks.STORE, exclusive=True, what="it"):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not got.wait(0.1)
    assert got.wait(10)
    thread.join()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    owner = locks.Owner(file)
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(file)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        token = int(child.stdout.readline())
        assert owner.is_alive(token)
        assert not _try(file, locks.named("x"), exclusive=True)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not owner.is_alive(token)
    assert _try(file, locks.named("x"), exclusive=True)
    owner.close()


def test_an_owner_is_alive_until_it_closes(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    one, two = locks.Owner(file), locks.Owner(file)
    token = one.token
    assert one.is_alive(token)
    assert two.is_alive(token)
    one.close()
    one.close()
    assert not two.is_alive(token)
    two.close()


def test_a_forked_child_gets_a_token_of_its_own(tmp_path: Path) -> None:
    owner = locks.Owner(tmp_path / "lock")
    token = owner.token
    child = fork()
    if child == 0:
        os._exit(0 if owner.token != token and owner.is_alive(token) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    owner.close()
