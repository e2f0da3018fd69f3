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
