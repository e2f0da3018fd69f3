"""Signals of a process that waits for another: left to that one, or handed on to it, as system(3) and docker run do."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

RELAYED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Sent to the one that waits, and meant for the other."""
FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
"""The terminal sends these to the command as well: whoever waits for it leaves them to it, as system(3) does."""


@contextmanager
def signals_left_to_child() -> Iterator[Callable[[int], None]]:
    """Leave the terminal's signals to the child, and hand others on to it once the yielded function is told its id."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda _pid: None
        return
    children: list[int] = []
    early: list[int] = []

    def relay(number: int, _frame: FrameType | None) -> None:
        if not children:
            early.append(number)
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, number)

    def told(child: int) -> None:
        children.append(child)
        while early:
            relay(early.pop(), None)

    # A handler, where ignoring would do as well: a program that the child becomes would go on ignoring.
    before = [(number, signal.signal(number, _leave)) for number in FROM_TERMINAL]
    before += [(number, signal.signal(number, relay)) for number in RELAYED]
    try:
        yield told
    finally:
        for number, handler in before:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _leave(_number: int, _frame: FrameType | None) -> None:
    """Do nothing."""
