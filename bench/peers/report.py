"""What a comparison says: medians, ratios to layerfs, and the bars that layerfs is held to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from peers.meter import Sample
from peers.tools import Kind

BASE = "layerfs"
"""The peer that the others are compared with."""
_FASTER = {"python": 3.0, "big": 2.0, "small": 3.0}
"""How many times faster than the best container tool an image must become a mounted root, by case."""
_PULL_FASTER = 2.5
"""The same from a registry."""
_PHYSICAL = {"gzip": "tar -I igzip", "zstd": "tar -I zstd"}
_SLOWER = 1.4
"""How many times the time of a tar that checks nothing it may take."""
_COMMIT_FASTER = {"umoci repack": 3.0, "buildah commit": 3.0, "tar | pigz | sha256sum": 1.2}
_MEMORY = 150
"""MiB that no process of layerfs may exceed, whatever the layer's size."""


@dataclass(slots=True)
class Row:
    """The samples of one peer."""

    peer: str
    kind: Kind
    samples: list[Sample] = field(default_factory=list[Sample])

    def of(self, what: str) -> float:
        """Return the median of a measure; of the memory the largest."""
        values = [float(getattr(sample, what)) for sample in self.samples]
        return max(values) if what == "memory" else median(values)


@dataclass(slots=True)
class Table:
    """One work on one input in one place."""

    work: str
    case: str
    compression: str
    place: str
    rows: list[Row] = field(default_factory=list[Row])

    @property
    def title(self) -> str:
        """Return what it is about."""
        return f"{self.work}: {self.case}, {self.compression}, {self.place}"

    def row(self, peer: str) -> Row | None:
        """Return the row of a peer that has run."""
        return next((row for row in self.rows if row.peer == peer and row.samples), None)

    @property
    def measured(self) -> list[Row]:
        """Return the rows with samples."""
        return [row for row in self.rows if row.samples]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar: what was reached in wall and CPU time, and what is asked; ``most`` tells that less is better."""

    what: str
    asked: float
    wall: float
    cpu: float
    most: bool = False

    def passed(self, value: float) -> bool:
        """Tell whether a value reaches the bar."""
        return value <= self.asked if self.most else value >= self.asked


def bars(table: Table) -> Iterator[Bar]:
    """Yield the bars that apply to a table."""
    ours = table.row(BASE)
    if ours is None:
        return
    if table.work == "commit":
        for peer, asked in _COMMIT_FASTER.items():
            if (other := table.row(peer)) is not None:
                yield _ratio(f"faster than {peer}", asked, [other], ours)
    else:
        containers = [row for row in table.measured if row.kind is Kind.CONTAINER]
        if containers:
            asked = _PULL_FASTER if table.work == "pull" else _FASTER[table.case]
            yield _ratio("faster than the best container tool", asked, containers, ours)
        if (tar := table.row(_PHYSICAL[table.compression])) is not None:
            ratio = [ours.of(what) / tar.of(what) for what in ("wall", "cpu")]
            yield Bar(f"times the time of {tar.peer}", _SLOWER, ratio[0], ratio[1], most=True)
    memory = max(row.of("memory") for row in table.measured if row.kind is Kind.OURS)
    yield Bar("MiB of memory", _MEMORY, memory, memory, most=True)


def _ratio(what: str, asked: float, others: Sequence[Row], ours: Row) -> Bar:
    """Compare with the best of others, in wall and CPU time apart."""
    wall, cpu = (min(row.of(each) for row in others) / ours.of(each) for each in ("wall", "cpu"))
    return Bar(what, asked, wall, cpu)


def lines(table: Table) -> Iterator[str]:
    """Yield a table as text, in Markdown that also reads well as it is."""
    ours = table.row(BASE)
    yield f"### {table.title}"
    yield f"| {'':28} | wall s | CPU s | sync s | wall | CPU  | MiB  |"
    yield f"|{'-' * 30}|-------:|------:|-------:|-----:|-----:|-----:|"
    for row in table.measured:
        yield _line(row, ours)
    yield ""
    for bar in bars(table):
        judged = ", ".join(
            f"{name} {value:.2f} {'pass' if bar.passed(value) else 'MISS'}"
            for name, value in (("wall", bar.wall), ("CPU", bar.cpu))
        )
        yield f"- {bar.what}: {'at most' if bar.most else 'at least'} {bar.asked:g}; {judged}"
    yield ""


def _line(row: Row, ours: Row | None) -> str:
    wall, cpu = row.of("wall"), row.of("cpu")
    ratios = f"{wall / ours.of('wall'):4.2f} | {cpu / ours.of('cpu'):4.2f}" if ours else "     |     "
    return f"| {row.peer:28} | {wall:6.2f} | {cpu:5.2f} | {row.of('sync'):6.2f} | {ratios} | {row.of('memory'):4.0f} |"


def document(tables: Iterable[Table], about: dict[str, Any]) -> dict[str, Any]:
    """Return everything measured, for machines."""
    return {**about, "tables": [_table_document(table) for table in tables]}


def _table_document(table: Table) -> dict[str, Any]:
    return {
        "work": table.work,
        "case": table.case,
        "compression": table.compression,
        "place": table.place,
        "peers": [
            {
                "peer": row.peer,
                "kind": row.kind,
                "samples": [
                    {"wall": one.wall, "cpu": one.cpu, "sync": one.sync, "memory": one.memory} for one in row.samples
                ],
            }
            for row in table.measured
        ],
        "bars": [
            {
                "what": bar.what,
                "asked": bar.asked,
                "most": bar.most,
                "wall": bar.wall,
                "cpu": bar.cpu,
                "wall_passed": bar.passed(bar.wall),
                "cpu_passed": bar.passed(bar.cpu),
            }
            for bar in bars(table)
        ],
    }
