"""Progress bars on standard error, drawn from the core's events; on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from layerfs.commands.frame.session import Session
from layerfs.commands.frame.text import printable
from layerfs.commands.frame.units import short
from layerfs.events import Listener, Progress, ignore

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


@contextmanager
def progress(session: Session) -> Iterator[Listener]:
    """Draw the events that the listener receives, a bar an item, until the block ends."""
    if session.quiet or not sys.stderr.isatty():
        yield ignore
        return
    with _bars() as bars:
        yield _Drawing(bars)


class _Drawing:
    """Turn events into bars: one for each action on each item."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def __call__(self, event: Progress) -> None:
        """Receive an event; rich takes its own lock, so any thread may call."""
        key = event.action, event.item
        if key not in self._tasks:
            item = short(event.item) if event.item.startswith("sha256:") else event.item
            self._tasks[key] = self._bars.add_task(f"{event.action} {printable(item)}", total=event.total)
        self._bars.update(self._tasks[key], completed=event.done, total=event.total)


def _bars() -> Bars:
    from rich import progress as parts  # noqa: PLC0415  rich takes 100 ms, and only a terminal sees it
    from rich.console import Console  # noqa: PLC0415  as above

    return parts.Progress(
        parts.TextColumn("{task.description}", markup=False),
        parts.BarColumn(),
        parts.DownloadColumn(binary_units=True),
        parts.TransferSpeedColumn(),
        parts.TimeRemainingColumn(),
        console=Console(stderr=True),
    )
