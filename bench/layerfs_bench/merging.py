"""What visits found, put together: each adds its samples to those of the visits before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from layerfs_bench.results import Cell, Key, Measurement, Outcome, Parameters, Quantity

Case = tuple[str, Parameters]
"""A scenario's name and the parameters of one of its cases."""


class Collection:
    """The measurements of a run so far, in the order in which they came."""

    def __init__(self, measurements: Iterable[Measurement] = ()) -> None:
        self._found: dict[tuple[Key, str], Measurement] = {}
        for one in measurements:
            self._found[one.identity] = one

    def add(self, measurement: Measurement) -> None:
        """Put what one visit found to what is there of the same key and cell."""
        before = self._found.get(measurement.identity)
        self._found[measurement.identity] = measurement if before is None else merged(before, measurement)

    def visits(self, case: Case, cell: Cell) -> int:
        """Return how many visits there were for a case in a cell."""
        return max((_visits(one) for one in self._of(case, cell)), default=0)

    def is_given_up(self, case: Case, cell: Cell) -> bool:
        """Tell whether a visit did not end well, so that no other is worth its time."""
        return any(one.outcome is not Outcome.OK for one in self._of(case, cell))

    def measurements(self) -> tuple[Measurement, ...]:
        """Return everything."""
        return tuple(self._found.values())

    def _of(self, case: Case, cell: Cell) -> Iterable[Measurement]:
        scenario, parameters = case
        return (
            one
            for (key, name), one in self._found.items()
            if name == cell.name
            and key.scenario == scenario
            and replace(key.parameters, position=parameters.position) == parameters
        )


def _visits(measurement: Measurement) -> int:
    return max(measurement.visits, default=-1) + 1


def merged(before: Measurement, after: Measurement) -> Measurement:
    """Put the samples of a further visit behind those that are there; the outcome is that of the last visit."""
    first = _visits(before)
    return replace(
        before,
        outcome=after.outcome,
        reason=after.reason,
        samples=before.samples + after.samples,
        visits=before.visits + tuple(number + first for number in after.visits),
        operations=after.operations if after.samples else before.operations,
        overhead=after.overhead if after.samples else before.overhead,
        written=after.written if after.written is not None else before.written,
        quantities=_joined(before.quantities, after.quantities),
        state=after.state or before.state,
        took=before.took + after.took,
    )


def _joined(before: tuple[Quantity, ...], after: tuple[Quantity, ...]) -> tuple[Quantity, ...]:
    found = {one.name: one for one in before}
    for one in after:
        earlier = found.get(one.name)
        found[one.name] = replace(one, values=earlier.values + one.values) if earlier else one
    return tuple(found.values())
