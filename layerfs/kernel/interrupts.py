"""Keep Ctrl-C away from the few steps that must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SignalHandler = Callable[[int, FrameType | None], object] | int


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block ends, and deliver them then.

    Blocking them for this thread would not do: another thread would take them, and Python would still run the handler
    here. Outside the main thread there is nothing to do, for Python runs handlers in the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handlers: list[tuple[signal.Signals, SignalHandler]] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        held.append(number)

    # A handler that was not set from Python (None) could not be put back.
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler is not None:
                handlers.append((number, handler))
                signal.signal(number, hold)
        yield
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
        for late in dict.fromkeys(held):
            signal.raise_signal(late)
