"""Progress as events: the core reports them, and whoever asked draws them (or not)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Report that ``done`` of ``total`` bytes of ``item`` have been through ``action`` ("import", "unpack", "diff").

    ``total`` is None where it is not known in advance; ``done == total`` ends an item.
    """

    action: str
    item: str
    done: int
    total: int | None = None


Listener = Callable[[Progress], None]
"""Receive events, in the thread that does the work; it should return quickly and must not raise."""


def ignore(event: Progress) -> None:
    """Drop an event: the listener of those who did not ask."""


class Report:
    """Tell a listener how many of an item's ``total`` bytes are done, as they are."""

    def __init__(self, listener: Listener, action: str, item: str, total: int) -> None:
        self._listener = listener
        self._action = action
        self._item = item
        self._total = total
        self._done = 0

    def add(self, length: int) -> None:
        """Say that so many more are done; what is more than the total does not count."""
        self._done = min(self._done + length, self._total)
        self._listener(Progress(self._action, self._item, self._done, self._total))

    def finish(self) -> None:
        """Say that everything is done: some of it may have taken no work at all."""
        self._listener(Progress(self._action, self._item, self._total, self._total))
