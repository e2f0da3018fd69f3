"""The pieces that measure: the clock, images from a seed, caches and counters, and how visits add up."""

from __future__ import annotations

import os
import time
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

import layerfs
from layerfs_bench import caches, clock, counters, inputs, lanes, profiles, runner, scenarios
from layerfs_bench.counters import Traffic
from layerfs_bench.inputs import ImageSpec, Item
from layerfs_bench.lanes import Lane
from layerfs_bench.merging import Collection
from layerfs_bench.places import Ground
from layerfs_bench.results import (
    CacheState,
    Cell,
    Key,
    Measurement,
    Outcome,
    Parameters,
    Place,
    Position,
    Quantity,
    Unit,
)
from layerfs_bench.scenarios.images import NAMES_PER_LAYER, files, files_of, stack

CELL = Cell("plain-ext4", "plain", "ext4", reflink=False)


def test_the_harness_adds_less_than_a_fiftieth_to_a_hundred_microseconds() -> None:
    assert clock.overhead() < 100e-6 / 50
    # The same from outside: operations that are timed one by one against the same in a bare loop. The least of many
    # turns is what no interruption touched.
    turns = [(_seconds(timed=True), _seconds(timed=False)) for _ in range(20)]
    added = min(one for one, _ in turns) - min(one for _, one in turns)
    assert added < 100e-6 / 50


def _seconds(*, timed: bool) -> float:
    """Return what one call of an operation that does next to nothing takes, with the harness or without."""
    operation = os.getpid
    numbers = range(2000)
    start = time.perf_counter()
    if timed:
        for _ in numbers:
            clock.timed(operation)
    else:
        for _ in numbers:
            operation()
    return (time.perf_counter() - start) / len(numbers)


def test_a_sample_is_the_time_of_one_operation() -> None:
    asked: list[str] = []
    seconds = clock.timed_each(asked.append, ["a", "b"])
    assert asked == ["a", "b"]
    assert 0 < seconds < 1


# --- images -----------------------------------------------------------------------------------------------------------


def test_images_are_the_same_each_time_and_can_be_imported(tmp_path: Path) -> None:
    spec = ImageSpec("two", lambda: [(Item("d"), Item("d/a", 300_000)), (Item("d"), Item("d/b", data=b"text"))])
    first, second = (inputs.write(spec, tmp_path / name) for name in ("one", "other"))
    names = [sorted(path.name for path in (layout / "blobs/sha256").iterdir()) for layout in (first, second)]
    assert names[0] == names[1]
    assert len(inputs.layers(first)) == 2
    with layerfs.open(tmp_path / "store", driver="copy") as store:
        (image,) = store.import_image(first, names=("two:1",))
        found = {os.fsdecode(change.path): change.size for change in store.changes(image.digest)}
    assert found == {".": 0, "d": 0, "d/a": 300_000, "d/b": 4}


def test_a_flattened_image_shows_the_same_names() -> None:
    (layer,) = inputs.flattened(stack(3)).layers()
    names = [item.path for item in layer]
    assert len(names) == len(set(names))
    assert sum(name.startswith("names/") for name in names) == 3 * NAMES_PER_LAYER


def test_file_data_does_not_compress_within_a_block() -> None:
    raw = inputs.data(1 << 20, "x").getvalue()
    assert len(raw) == 1 << 20
    assert all(len(zlib.compress(raw[at : at + 131072], 1)) > 130_000 for at in range(0, 1 << 20, 131072))


@pytest.mark.parametrize(("size", "count"), [(4096, 16), (4 << 20, 16), (16 << 20, 4), (64 << 20, 1), (1 << 30, 1)])
def test_big_files_are_few(size: int, count: int) -> None:
    assert len(files_of(size)) == count
    assert files(size).name == f"files-{size}"


# --- counters ---------------------------------------------------------------------------------------------------------


def test_pages_in_memory_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1_000_000))
    assert caches.resident(path) == 1_003_520  # whole pages of 4 KiB
    path.write_bytes(b"")
    assert caches.resident(path) == 0


def test_traffic_is_what_went_over_it_in_between() -> None:
    assert Traffic(10, 20) - Traffic(4, 5) + Traffic(1, 1) == Traffic(7, 16)


def test_memory_is_read_without_a_group_too() -> None:
    found = counters.MemoryMeter().read()
    assert found.kernel > 0
    assert found.page_cache > 0
    assert not counters.MemoryMeter().is_own


def test_a_warm_cache_is_what_it_is(tmp_path: Path) -> None:
    assert caches.reach(CacheState.WARM, None, tmp_path).reached is CacheState.WARM


# --- the order, and how visits add up ---------------------------------------------------------------------------------


def _lane(name: str) -> Lane:
    place = Place("ext4", False, (), "loop0", "a file", 1)
    return Lane(Cell(name, "plain", "ext4", reflink=False), Ground(Path("/x"), (), place), Path("/x", name))


def _plan(seed: int, passes: int = 2) -> runner.Plan:
    profile = replace(profiles.QUICK, passes=passes)
    chosen = scenarios.matching(("lookup.stat", "write.create"))
    return runner.Plan(profile, tuple(map(_lane, "abc")), chosen, Path("/x"), seed)


def test_the_seed_fixes_the_order_and_cells_of_a_case_stay_together() -> None:
    orders = [
        [(one.scenario.name, one.parameters, one.lane.cell.name) for one in runner.itinerary(_plan(s))]
        for s in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert len(orders[0]) == len(set(orders[0])) * 2 == 2 * 3 * 4
    for three in zip(*[iter(orders[0])] * 3, strict=True):
        assert len({one[:2] for one in three}) == 1
        assert {one[2] for one in three} == set("abc")


def test_the_passes_differ_in_their_order() -> None:
    stops = [(one.scenario.name, one.parameters, one.lane.cell.name) for one in runner.itinerary(_plan(1))]
    assert stops[:12] != stops[12:]
    assert sorted(map(str, stops[:12])) == sorted(map(str, stops[12:]))


def _measured(*samples: float, position: Position | None = None, outcome: Outcome = Outcome.OK) -> Measurement:
    key = Key("lookup.stat", "first", Parameters(depth=8, position=position))
    quantity = Quantity("cpu", Unit.SECONDS, samples[:1])
    return Measurement(key, CELL, outcome, samples, (0,) * len(samples), quantities=(quantity,), took=1.0)


def test_visits_add_up() -> None:
    found = Collection()
    found.add(_measured(1.0, 2.0, position=Position.TOP))
    found.add(_measured(3.0, position=Position.TOP))
    found.add(_measured(9.0, position=Position.BOTTOM))
    top, bottom = found.measurements()
    assert (top.samples, top.visits, top.took) == ((1.0, 2.0, 3.0), (0, 0, 1), 2.0)
    assert top.quantities == (Quantity("cpu", Unit.SECONDS, (1.0, 3.0)),)
    assert bottom.samples == (9.0,)
    case = ("lookup.stat", Parameters(depth=8))
    assert found.visits(case, CELL) == 2
    assert found.visits(("lookup.stat", Parameters(depth=1)), CELL) == 0
    assert not found.is_given_up(case, CELL)


def test_a_visit_that_failed_keeps_the_samples_before_it() -> None:
    found = Collection([_measured(1.0)])
    found.add(_measured(outcome=Outcome.TIMED_OUT))
    (one,) = found.measurements()
    assert (one.samples, one.outcome) == ((1.0,), Outcome.TIMED_OUT)
    assert found.is_given_up(("lookup.stat", Parameters(depth=8)), CELL)


# --- what there is ----------------------------------------------------------------------------------------------------


def test_every_scenario_says_what_it_measures_and_what_theory_expects() -> None:
    names = [one.name for one in scenarios.builtin()]
    assert len(names) == len(set(names)) == 22
    for scenario in scenarios.every():
        assert scenario.summary.endswith("."), scenario.name
        assert scenario.metrics
        assert len({metric.name for metric in scenario.metrics}) == len(scenario.metrics)
        assert all(metric.measures and metric.expects for metric in scenario.metrics)
        assert list(scenario.cases(profiles.PAPER.scale)), scenario.name


@pytest.mark.parametrize("profile", profiles.PROFILES.values(), ids=str)
def test_a_profile_names_what_there_is(profile: profiles.Profile) -> None:
    assert scenarios.matching(profile.scenarios)
    assert lanes.unknown(profile.cells) == []
    assert profile.passes >= 3, "fewer visits than three tell nothing of their spread"


def test_a_baseline_comes_with_each_file_system() -> None:
    names = [one.name for one in lanes.selected(("devicemapper", "btrfs"))]
    assert names == ["plain-ext4", "plain-btrfs", "btrfs", "devicemapper"]


def test_a_word_is_a_name_or_else_a_group() -> None:
    assert [one.name for one in scenarios.matching(("lifecycle",))] == ["lifecycle"]
    assert [one.name for one in scenarios.matching(("read", "mixed.git"))] == [
        "read.sequential",
        "read.random",
        "read.shared",
        "mixed.git",
    ]


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(layerfs.InvalidArgument, match="no scenario 'lookups'"):
        scenarios.matching(("lookups",))
    assert lanes.unknown(("overlay3",)) == ["overlay3"]
