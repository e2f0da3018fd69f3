"""What a run does, while it runs: a view on a terminal, a line for each visit elsewhere, nothing with ``-q``.

The view is drawn between visits only: a process that redraws beside a measurement takes part in it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from layerfs.commands.frame.session import Session
from layerfs.commands.frame.text import printable
from layerfs_bench import words
from layerfs_bench.events import (
    Event,
    Listener,
    Note,
    Preparing,
    RunEnded,
    RunStarted,
    VisitEnded,
    VisitStarted,
    ignore,
)
from layerfs_bench.results import Cell, Measurement, Outcome

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text


@contextmanager
def live(session: Session) -> Iterator[Listener]:
    """Give a listener that shows the events of a run until the block ends."""
    if session.quiet:
        yield ignore
        return
    if not sys.stderr.isatty():
        yield _Lines(session)
        return
    from rich.console import Console  # noqa: PLC0415  rich takes 100 ms, and only a terminal sees it
    from rich.live import Live  # noqa: PLC0415  as above

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as screen:
        yield _Drawing(screen)


# -- lines -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Lines:
    """Say each event in a line."""

    session: Session

    def __call__(self, event: Event) -> None:
        """Receive an event."""
        for line in told(event):
            self.session.say(printable(line))


def told(event: Event) -> Iterator[str]:
    """Yield what an event says in lines."""
    match event:
        case RunStarted():
            counts = (event.visits, "visit"), (len(event.cells), "cell"), (len(event.scenarios), "scenario")
            yield ", ".join(words.many(count, noun) for count, noun in counts)
            for one in event.left_out:
                yield f"left out: {one.what}: {one.reason}" + (f" ({one.hint})" if one.hint else "")
        case Preparing():
            yield f"making {event.what}"
        case VisitEnded():
            what = _work(event)
            found = ", ".join(_figure(one) for one in event.measurements if one.samples)
            ended = found if event.outcome is Outcome.OK else _failure(event)
            yield f"{event.number}/{event.total} {what} on {event.cell.name}: {ended}"
        case Note():
            yield event.text
        case VisitStarted() | RunEnded():
            return


def _work(event: VisitStarted | VisitEnded) -> str:
    return " ".join(word for word in (event.scenario, words.parameters(event.parameters)) if word)


def _figure(measurement: Measurement) -> str:
    return f"{measurement.key.metric} {words.duration(median(measurement.samples))}"


def _failure(event: VisitEnded) -> str:
    reason = next((one.reason for one in event.measurements if one.reason), "")
    return f"{event.outcome}: {reason}" if reason else str(event.outcome)


# -- the view ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Standing:
    """What is known of a cell so far."""

    cell: Cell
    visits: int = 0
    failed: int = 0
    last: str = ""


@dataclass(slots=True)
class _Drawing:
    """Draw the state of the run: how far it is, what is measured now, and what each cell had last."""

    screen: Live
    standings: dict[str, _Standing] = field(default_factory=dict[str, _Standing])
    now: str = "making ready"
    number: int = 0
    total: int = 1
    elapsed: float = 0.0

    def __call__(self, event: Event) -> None:
        """Receive an event; what should stay on the screen is written above the view."""
        match event:
            case RunStarted():
                self.standings = {cell.name: _Standing(cell) for cell in event.cells}
                self.total = event.visits
                self._say(event)
            case Preparing():
                self.now = f"making {event.what}"
            case VisitStarted():
                self.now = f"{_work(event)} on {event.cell.name}"
                self.total = event.total
            case VisitEnded():
                self._take(event)
            case Note():
                self._say(event)
            case RunEnded():
                self.now = "done"
        self.screen.update(self._view(), refresh=True)

    def _take(self, event: VisitEnded) -> None:
        self.number, self.total, self.elapsed = event.number, event.total, event.elapsed
        standing = self.standings.setdefault(event.cell.name, _Standing(event.cell))
        standing.visits += 1
        if event.outcome is Outcome.OK:
            found = ", ".join(_figure(one) for one in event.measurements[:2] if one.samples)
            standing.last = f"{_work(event)}: {found}"
        elif event.outcome is not Outcome.SKIPPED:
            standing.failed += 1
            self._say(event)

    def _say(self, event: Event) -> None:
        from rich.text import Text  # noqa: PLC0415  as above

        for line in told(event):
            self.screen.console.print(Text(printable(line)))

    def _view(self) -> Group:
        from rich.console import Group  # noqa: PLC0415  as above
        from rich.progress_bar import ProgressBar  # noqa: PLC0415  as above

        bar = ProgressBar(total=max(1, self.total), completed=self.number)
        return Group(self._table(), self._line(), bar)  # a bar ends no line, so it comes last

    def _table(self) -> Table:
        from rich.table import Table  # noqa: PLC0415  as above
        from rich.text import Text  # noqa: PLC0415  as above

        shown = Table(box=None, pad_edge=False, header_style="bold")
        shown.add_column("cell")
        shown.add_column("visits", justify="right")
        shown.add_column("last", no_wrap=True, overflow="ellipsis")
        for one in self.standings.values():
            count = f"{one.visits}" + (f" ({one.failed} failed)" if one.failed else "")
            shown.add_row(Text(printable(one.cell.name)), count, Text(printable(one.last)))
        return shown

    def _line(self) -> Text:
        from rich.text import Text  # noqa: PLC0415  as above

        left = self.elapsed / self.number * (self.total - self.number) if self.number else 0.0
        rest = f", about {words.duration(left)} left" if self.number else ""
        return Text(printable(f"{self.number:,} of {self.total:,} visits{rest}: {self.now}"), no_wrap=True)
