"""Two processes that do something to one store at the same moment, again and again, and what came of each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import layerfs
from layerfs.kernel.children import fork

Act = Callable[[layerfs.Store], object]


class Racer:
    """A process with the store open, which acts when it is told to; a context manager that ends it."""

    def __init__(self, store: Path, act: Act) -> None:
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self._pid = fork()
        if self._pid == 0:
            os.close(self._orders)
            os.close(self._answers)
            try:
                _obey(store, act, orders, answers)
            finally:
                os._exit(1)
        os.close(orders)
        os.close(answers)
        assert os.read(self._answers, 1) == b"\n", "the store could not be opened"

    def go(self) -> None:
        """Let it act."""
        os.write(self._orders, b"x")

    def outcome(self) -> str:
        """Wait for it, and return "ok" or the class of its error with the message."""
        text = b""
        while not text.endswith(b"\n"):
            part = os.read(self._answers, 1 << 16)
            assert part, "a racer died"
            text += part
        return text.decode().rstrip("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._orders)
        os.close(self._answers)
        os.waitpid(self._pid, 0)


def _obey(path: Path, act: Act, orders: int, answers: int) -> None:
    with layerfs.open(path) as store:
        os.write(answers, b"\n")
        while os.read(orders, 1):
            try:
                act(store)
                said = "ok"
            except Exception as error:  # noqa: BLE001  whatever it is, the test has to judge it
                said = f"{type(error).__name__} {error}".replace("\n", "; ")
            os.write(answers, f"{said}\n".encode())
        os._exit(0)


def race(first: Racer, second: Racer) -> tuple[str, str]:
    """Let both act at once, and return what came of each."""
    first.go()
    second.go()
    return first.outcome(), second.outcome()
