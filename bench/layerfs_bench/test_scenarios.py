"""The scenarios as benchmarks of pytest: ``pytest --pyargs layerfs_bench``, with all options of pytest-benchmark.

Each test is one metric of one case in one cell; ``-k`` chooses among them, and only what is chosen is measured. That
happens in a process apart, before the first test: as in `layerfs bench run`, cells take turns, and each visit is a
process of its own. The tests hand the samples to pytest-benchmark's fixture, as if it had taken them itself.

``LAYERFS_BENCH_PROFILE`` names the profile, "ci" unless it is given, and ``LAYERFS_BENCH_WORK`` the directory in which
file systems are made. What this machine cannot measure is skipped with the reason.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from layerfs_bench import child, codec, events, lanes, scenarios, setup
from layerfs_bench.child import End
from layerfs_bench.profiles import PROFILES, Profile
from layerfs_bench.results import Key, Measurement, Parameters, Position, Results
from layerfs_bench.runner import Runner

pytest.importorskip("pytest_benchmark", reason='these are benchmarks: pip install "layerfs[bench]"')
from pytest_benchmark.fixture import BenchmarkFixture

_LIMIT = 24 * 3600.0
"""Seconds for all that is chosen together; each visit has a limit of its own."""


class Replay:
    """Samples that were taken before, for a clock that moves only while the operation is called."""

    def __init__(self) -> None:
        self._now = 0.0
        self._samples: Iterator[float] = iter(())

    def load(self, samples: Sequence[float]) -> None:
        """Take the samples, in seconds, over and over."""
        self._now, self._samples = 0.0, itertools.cycle(samples)

    def clock(self) -> float:
        """Return the time."""
        return self._now

    def operation(self) -> None:
        """Let the next sample pass."""
        self._now += next(self._samples)


@dataclass(frozen=True, slots=True)
class Case:
    """What one test is about."""

    key: Key
    cell: str
    replay: Replay

    def __str__(self) -> str:
        """Return it as the test's id."""
        return f"{self.cell}-{self.key}"


def _profile() -> Profile:
    return PROFILES[os.environ.get("LAYERFS_BENCH_PROFILE", "ci")]


def _work() -> Path | None:
    given = os.environ.get("LAYERFS_BENCH_WORK")
    return Path(given) if given else None


def _cells(profile: Profile) -> Sequence[str]:
    if os.geteuid() == 0:
        return [one.name for one in lanes.selected(profile.cells)]
    return lanes.names_without_root(_work() or setup.workplace(None))


def _cases() -> Iterator[Case]:
    profile = _profile()
    for scenario in scenarios.matching(profile.scenarios):
        places: tuple[Position | None, ...] = scenario.positions or (None,)
        for parameters, metric, place in itertools.product(scenario.cases(profile.scale), scenario.metrics, places):
            key = Key(scenario.name, metric.name, replace(parameters, position=place))
            yield from (Case(key, cell, Replay()) for cell in _cells(profile))


def _marked(case: Case) -> object:
    mark = pytest.mark.benchmark(timer=case.replay.clock, group=str(case.key))
    return pytest.param(case, id=str(case), marks=mark)


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Results:
    """Measure everything that is chosen, in a process apart."""
    functions = [item for item in request.session.items if isinstance(item, pytest.Function)]
    chosen = [item.callspec.params.get("case") for item in functions if hasattr(item, "callspec")]
    cases: list[Case] = [one for one in chosen if isinstance(one, Case)]
    profile = replace(_profile(), budget=None)
    cells = tuple(dict.fromkeys(one.cell for one in cases))
    names = tuple(dict.fromkeys(one.key.scenario for one in cases))
    wanted = {(one.key.scenario, replace(one.key.parameters, position=None)) for one in cases}
    ended = child.run(
        lambda: _measured(setup.Wishes(profile, cells, names, work=_work()), wanted), Results, limit=_LIMIT
    )
    if ended.end is not End.DONE or ended.value is None:
        pytest.fail(f"nothing could be measured: {ended.reason}")
    return ended.value


def _measured(wishes: setup.Wishes, wanted: set[tuple[str, Parameters]]) -> Results:
    setup.isolate()
    with setup.prepared(wishes, events.ignore) as plan:
        return Runner(replace(plan, only=frozenset(wanted))).run()


@pytest.mark.parametrize("case", [_marked(case) for case in _cases()])
def test_scenario(case: Case, results: Results, benchmark: BenchmarkFixture) -> None:
    """Give the samples of one metric of one case in one cell to pytest-benchmark."""
    found = [one for one in results.measurements if (one.key, one.cell.name) == (case.key, case.cell)]
    if not found or not found[0].samples:
        pytest.skip(_reason(case, results))
    (measurement,) = found
    case.replay.load(measurement.samples)
    benchmark.extra_info["layerfs"] = codec.encode(replace(measurement, samples=()))
    rounds = len(measurement.samples)
    benchmark.pedantic(case.replay.operation, rounds=rounds)  # type: ignore[no-untyped-call]  # it has no annotations


def _reason(case: Case, results: Results) -> str:
    """Say why there are no samples of a case."""
    left_out = [one.reason for one in results.left_out if one.what == case.cell]
    return (left_out or [one.reason for one in results.measurements if _is_about(one, case)] or ["not measured"])[0]


def _is_about(one: Measurement, case: Case) -> bool:
    return one.cell.name == case.cell and one.key.scenario == case.key.scenario and bool(one.reason)
