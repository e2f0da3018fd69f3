"""The runner: it visits every cell for every case, in a random order that a seed fixes, until the passes are done.

A *pass* visits each case in each cell once; the cells of a case come one after the other, so that what drifts in the
machine meanwhile falls on all of them alike. Each visit is a process of its own (`layerfs_bench.child`). What happens
is reported as events (`layerfs_bench.events`).
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from layerfs.errors import FailedPrecondition
from layerfs_bench import child, fingerprint, places
from layerfs_bench.child import End, Ended
from layerfs_bench.counters import MemoryMeter
from layerfs_bench.events import Listener, Note, RunEnded, RunStarted, VisitEnded, VisitStarted, ignore
from layerfs_bench.lanes import Lane
from layerfs_bench.merging import Case, Collection
from layerfs_bench.profiles import Profile
from layerfs_bench.results import Fingerprint, Key, LeftOut, Measurement, Outcome, Parameters, Results, Run
from layerfs_bench.scenarios.base import Scenario
from layerfs_bench.visit import Found, Visit

SYNC_POLICY = (
    "no sync inside a sample but those that the driver or the program makes itself; a sync before each counted "
    "operation, and one after it, which is timed apart (sync) and whose bytes at the device are counted"
)
_TIDY_LIMIT = 60.0
"""Seconds for removing what a failed visit left."""
_OUTCOMES = {
    End.DONE: Outcome.OK,
    End.UNFIT: Outcome.SKIPPED,
    End.FAILED: Outcome.FAILED,
    End.TIMED_OUT: Outcome.TIMED_OUT,
    End.STUCK: Outcome.TIMED_OUT,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run, and where. ``work`` is an empty directory; ``budget`` are seconds."""

    profile: Profile
    lanes: tuple[Lane, ...]
    scenarios: tuple[Scenario, ...]
    work: Path
    seed: int
    budget: float | None = None
    left_out: tuple[LeftOut, ...] = ()
    command: tuple[str, ...] = ()
    memory: MemoryMeter = field(default_factory=MemoryMeter)
    only: frozenset[Case] | None = None
    """The cases that are wanted; all, if None."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A visit to come: a case of a scenario, and the lane in which it takes place."""

    scenario: Scenario
    parameters: Parameters
    lane: Lane


def itinerary(plan: Plan) -> Iterator[Stop]:
    """Yield all visits of all passes in the order of the seed.

    Scenarios take turns with their cases, so that a budget that ends within a pass has seen something of each.
    """
    for number in range(plan.profile.passes):
        rng = random.Random(f"{plan.seed}/{number}")  # noqa: S311  an order that can be had again
        for scenario, case in _taking_turns(plan, rng):
            for lane in rng.sample(plan.lanes, len(plan.lanes)):
                yield Stop(scenario, case, lane)


def _taking_turns(plan: Plan, rng: random.Random) -> list[tuple[Scenario, Parameters]]:
    turns: list[tuple[int, float, Scenario, Parameters]] = []
    for scenario in plan.scenarios:
        cases = [one for one in scenario.cases(plan.profile.scale) if _is_wanted(plan, scenario, one)]
        rng.shuffle(cases)
        turns += [(turn, rng.random(), scenario, case) for turn, case in enumerate(cases)]
    return [(scenario, case) for _, _, scenario, case in sorted(turns, key=lambda one: one[:2])]


def _is_wanted(plan: Plan, scenario: Scenario, case: Parameters) -> bool:
    return plan.only is None or (scenario.name, case) in plan.only


class Runner:
    """One run; ``earlier`` are the results of an interrupted one that it goes on with.

    Raise `FailedPrecondition` for one of another machine.
    """

    def __init__(self, plan: Plan, *, earlier: Results | None = None, listener: Listener = ignore) -> None:
        self.plan = plan
        self._listener = listener
        self._fingerprint: Fingerprint = fingerprint.take([lane.ground.place for lane in _grounds(plan)])
        if earlier and not _same_machine(earlier.fingerprint, self._fingerprint):
            raise FailedPrecondition(
                "the run to go on with was made on another machine or kernel", hint="begin a new one"
            )
        self._collection = Collection(earlier.measurements if earlier else ())
        self._earlier = earlier
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()
        self._visits = earlier.run.visits if earlier else 0
        self._planned = 0
        self._stuck: set[str] = set()
        self.interrupted = False

    def run(self, save: Callable[[Results], None] | None = None) -> Results:
        """Make all visits, or those for which the budget lasts; call ``save`` with what there is after each.

        Ctrl-C ends it early, with what was measured.
        """
        plan = self.plan
        stops = self._open_stops()
        self._planned = self._visits + len(stops)
        cells = tuple(lane.cell for lane in plan.lanes)
        names = tuple(scenario.name for scenario in plan.scenarios)
        started = RunStarted(self._fingerprint, cells, names, self._planned, plan.budget, plan.left_out)
        try:
            self._listener(started)
            for stop in stops:
                if self._is_over():
                    break
                if self._is_open(stop):
                    self._visit(stop)
                    if save:
                        save(self.results())
        except KeyboardInterrupt:
            self.interrupted = True
            self._listener(Note("interrupted: what was measured so far is kept"))
        results = self.results()
        self._listener(RunEnded(results))
        return results

    def results(self) -> Results:
        """Return what was found so far, with a line for what the budget was too short for."""
        before = self._earlier.run.took if self._earlier else 0.0
        run = Run(
            self.plan.profile.name,
            self.plan.seed,
            self._earlier.run.started if self._earlier else self._started,
            before + self._elapsed(),
            self._visits,
            self._planned,
            SYNC_POLICY,
            self.plan.budget,
            self.interrupted,
            self.plan.command,
            tuple(lane.cell.name for lane in self.plan.lanes),
            tuple(scenario.name for scenario in self.plan.scenarios),
        )
        return Results(run, self._fingerprint, self._collection.measurements(), self.plan.left_out)

    def _open_stops(self) -> list[Stop]:
        """Return the visits that are still to be made: those of earlier passes are there already."""
        seen: dict[tuple[str, Parameters, str], int] = {}
        stops: list[Stop] = []
        for stop in itinerary(self.plan):
            key = (stop.scenario.name, stop.parameters, stop.lane.cell.name)
            seen[key] = seen.get(key, 0) + 1
            if seen[key] > self._collection.visits((stop.scenario.name, stop.parameters), stop.lane.cell):
                stops.append(stop)
        return stops

    def _is_open(self, stop: Stop) -> bool:
        cell = stop.lane.cell
        if cell.name in self._stuck or self._collection.is_given_up((stop.scenario.name, stop.parameters), cell):
            self._planned -= 1
            return False
        return True

    def _is_over(self) -> bool:
        return self.plan.budget is not None and self._elapsed() >= self.plan.budget

    def _elapsed(self) -> float:
        return time.monotonic() - self._clock

    def _visit(self, stop: Stop) -> None:
        name, cell = stop.scenario.name, stop.lane.cell
        self._listener(VisitStarted(name, stop.parameters, cell, self._visits + 1, self._planned))
        begun = time.monotonic()
        ended = visited(self.plan, stop, self._visits)
        took = time.monotonic() - begun
        if ended.end not in {End.DONE, End.UNFIT}:
            self._mend(stop, ended)
        found = ended.value.measurements if ended.value else _marks(stop, ended)
        for measurement in found:
            self._collection.add(replace(measurement, took=took))
        self._visits += 1
        outcome = _OUTCOMES[ended.end]
        event = VisitEnded(
            name, stop.parameters, cell, outcome, found, self._visits, self._planned, took, self._elapsed()
        )
        self._listener(event)

    def _mend(self, stop: Stop, ended: Ended[Found]) -> None:
        """Say what went wrong and remove what it left, so that the next visit finds the cell as it should be."""
        cell = stop.lane.cell.name
        self._listener(Note(f"{stop.scenario.name} in {cell} {ended.end}: {ended.reason}"))
        if ended.end is End.STUCK or not tidied(self.plan, stop.lane):
            self._stuck.add(cell)
            self._listener(Note(f"{cell} is given up: it cannot be brought back to order"))


def _grounds(plan: Plan) -> list[Lane]:
    """Return one lane for each place."""
    return list({lane.ground.path: lane for lane in plan.lanes}.values())


def _same_machine(first: Fingerprint, second: Fingerprint) -> bool:
    sides = [(one.cpu, one.cores, one.kernel, one.user) for one in (first, second)]
    return sides[0] == sides[1]


def _marks(stop: Stop, ended: Ended[Found]) -> tuple[Measurement, ...]:
    """Return a measurement without samples for each metric of a visit that found nothing."""
    return tuple(
        Measurement(
            Key(stop.scenario.name, metric.name, stop.parameters),
            stop.lane.cell,
            _OUTCOMES[ended.end],
            reason=ended.reason,
        )
        for metric in stop.scenario.metrics
    )


def visited(plan: Plan, stop: Stop, number: int) -> Ended[Found]:
    """Make one visit in a process of its own, and return how it ended."""
    work = plan.work / f"visit-{number}"
    work.mkdir()
    try:
        return child.run(lambda: _in_child(plan, stop, work, number), Found, limit=plan.profile.limit)
    finally:
        places.discard(work)


def _in_child(plan: Plan, stop: Stop, work: Path, number: int) -> Found:
    plan.memory.enter()
    lane = stop.lane
    with lane.opened(plan.work) as bed:
        visit = Visit(
            stop.scenario.name,
            stop.parameters,
            bed,
            lane.ground,
            work,
            least=plan.profile.rounds,
            slice_=plan.profile.slice,
            rng=random.Random(f"{plan.seed}/{number}"),  # noqa: S311  choices that can be had again
            memory=plan.memory,
        )
        gc.disable()  # a collection in the middle of a sample would count
        stop.scenario.visit(visit)
    return visit.found()


@dataclass(frozen=True, slots=True)
class _Nothing:
    """What a child returns that is only to do something."""


def tidied(plan: Plan, lane: Lane) -> bool:
    """Remove the roots that a failed visit left in a lane, in a process of its own; tell whether that went well."""

    def tidy() -> _Nothing:
        with lane.opened(plan.work) as bed:
            bed.tidy()
        return _Nothing()

    with suppress(OSError):
        return child.run(tidy, _Nothing, limit=_TIDY_LIMIT).end is End.DONE
    return False
