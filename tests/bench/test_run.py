"""Whole runs on file systems of their own: bytes at the device follow theory, and no end of a run leaves anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import layerfs
from layerfs_bench import document, events, profiles, runner, scenarios, setup, storebed
from layerfs_bench.codec import decode
from layerfs_bench.results import CacheState, Key, Measurement, Outcome, Parameters, Results
from layerfs_bench.scenarios import images
from layerfs_bench.scenarios.base import Metric, Scale, Scenario
from layerfs_bench.setup import Wishes
from layerfs_bench.visit import Visit
from tests.support import leftovers
from tests.support.rootless import Rootless

SCALE = Scale(depths=(1, 4), sizes=(4096, 65536), clones=(2,), workers=(2,), shared=(2,), files=8)
TINY = replace(profiles.QUICK, scale=SCALE, passes=1, slice=0.0, place=1 << 30, budget=None, limit=60.0)
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _nothing_left(fresh_dir: Path) -> Iterator[None]:
    """Hold every test to it: nothing is mounted or attached below its directory afterwards."""
    yield
    deadline = time.monotonic() + 5  # autoclear happens when the last user has gone
    while leftovers.find([fresh_dir]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert leftovers.find([fresh_dir]).lines() == []


def _run(wishes: Wishes, tmp: Path, heard: list[events.Event] | None = None) -> Results:
    """Run it in this process's namespace, as pytest does, with events as they come."""
    listener = heard.append if heard is not None else events.ignore
    with setup.prepared(replace(wishes, work=tmp), listener) as plan:
        return runner.Runner(plan, listener=listener).run()


def _one(results: Results, cell: str, text: str) -> Measurement:
    (found,) = [one for one in results.measurements if one.cell.name == cell and str(one.key) == text]
    return found


def _written(results: Results, cell: str) -> float:
    one = _one(results, cell, f"write.first:first[size={64 * MIB}]")
    quantity = one.quantity("device_written")
    assert quantity is not None, one
    return median(quantity.values)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.driver("overlay2")
@pytest.mark.driver("btrfs")
@pytest.mark.driver("fuse")
def test_the_bytes_of_a_first_write_follow_theory(fresh_dir: Path) -> None:
    profile = replace(TINY, scale=replace(SCALE, sizes=(64 * MIB,)), place=2 << 30)
    cells = ("overlay2-ext4", "overlay2-xfs", "btrfs", "fuse-redirect-ext4")
    results = _run(Wishes(profile, cells, ("write.first",)), fresh_dir)
    assert not [one.reason for one in results.measurements if one.reason], results.left_out
    assert _written(results, "overlay2-ext4") >= 64 * MIB
    for cell in ("btrfs", "overlay2-xfs", "fuse-redirect-ext4"):
        assert _written(results, cell) < MIB, cell
    states = {one.state.reached for one in results.measurements if one.key.metric == "first" and one.state}
    assert states == {CacheState.COLD}
    reflink = {one.cell.name: one.cell.reflink for one in results.measurements}
    assert reflink["overlay2-xfs"]
    assert not reflink["overlay2-ext4"]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.driver("overlay2")
@pytest.mark.driver("fuse")
@pytest.mark.parametrize("group", ["lookup", "write", "lifecycle", "lifecycle.apply", "read", "build", "mixed"])
def test_every_scenario_runs_in_every_kind_of_cell(group: str, fresh_dir: Path) -> None:
    heard: list[events.Event] = []
    cells = ("overlay2-ext4", "fuse-redirect-ext4", "copy-ext4")
    results = _run(Wishes(TINY, cells, (group,)), fresh_dir, heard)
    assert {one.reason for one in results.measurements if one.outcome is not Outcome.SKIPPED} == {""}
    skipped = {(one.key.scenario, one.reason) for one in results.measurements if one.outcome is Outcome.SKIPPED}
    assert all("not installed" in reason for _, reason in skipped), skipped
    expected = {(one.name, metric.name) for one in scenarios.matching((group,)) for metric in one.metrics}
    for cell in ("plain-ext4", *cells):
        measured = {(one.key.scenario, one.key.metric) for one in results.measurements if one.cell.name == cell}
        assert measured == expected, cell
    assert all(one.samples and min(one.samples) > 0 for one in results.measurements if one.outcome is Outcome.OK)
    ended = [one for one in heard if isinstance(one, events.VisitEnded)]
    assert [one.number for one in ended] == list(range(1, len(ended) + 1))
    assert isinstance(heard[-1], events.RunEnded)


class Failing(Scenario):
    """Fail in every way, by the cell that it is in."""

    name = "test.failing"
    metrics = (Metric("work", "nothing", "to fail"),)

    def cases(self, scale: Scale) -> Iterator[Parameters]:
        yield Parameters(workers=scale.workers[0])

    def visit(self, visit: Visit) -> None:
        spec = images.small_files(2)
        visit.bed.load(spec)
        with visit.root(spec) as root:
            visit.time("work", os.listdir, root)
            match visit.bed.cell.driver:
                case "overlay2":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "fuse":
                    time.sleep(60)
                case "copy":
                    raise ZeroDivisionError("on purpose")
                case _:
                    pass


@pytest.mark.root
@pytest.mark.driver("overlay2")
@pytest.mark.driver("fuse")
def test_a_cell_that_crashes_or_hangs_is_marked_and_the_rest_goes_on(fresh_dir: Path) -> None:
    heard: list[events.Event] = []
    profile = replace(TINY, passes=2, limit=3.0)
    wishes = Wishes(profile, ("overlay2-ext4", "fuse-copy-ext4", "copy-ext4"), ("lookup.stat",), work=fresh_dir)
    with setup.prepared(wishes, heard.append) as plan:
        chosen = (Failing(), *scenarios.matching(("lookup.walk",)))
        results = runner.Runner(replace(plan, scenarios=chosen), listener=heard.append).run()
        for lane in plan.lanes:
            with lane.opened(fresh_dir) as bed:
                assert not isinstance(bed, storebed.StoreBed) or bed.store.clones() == ()
    ends = {one.cell.name: one for one in results.measurements if one.key.scenario == "test.failing"}
    assert ends["plain-ext4"].outcome is Outcome.OK
    assert (ends["overlay2-ext4"].outcome, ends["overlay2-ext4"].reason) == (
        Outcome.FAILED,
        "its process ended with signal SIGKILL",
    )
    assert (ends["fuse-copy-ext4"].outcome, ends["fuse-copy-ext4"].reason) == (
        Outcome.TIMED_OUT,
        "it did not end within 3 s",
    )
    assert ends["copy-ext4"].reason.startswith("ZeroDivisionError: on purpose (test_run.py:")
    walks = [one for one in results.measurements if one.key.scenario == "lookup.walk"]
    assert len(walks) == 4 * 2 * 2  # cells, depths, metrics
    assert {one.outcome for one in walks} == {Outcome.OK}
    assert {max(one.visits) for one in walks} == {1}
    notes = [one.text for one in heard if isinstance(one, events.Note)]
    assert len(notes) == 3, "a cell that failed once is not visited again for the same case"


# --- the command ------------------------------------------------------------------------------------------------------


def _command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "layerfs.command", "bench", "run", *map(str, words)]


def _arguments(directory: Path) -> list[str | Path]:
    return [
        "--no-report",
        "--work",
        directory,
        "--out",
        directory / "result.json",
        "--cell",
        "overlay2-ext4",
        "--scenario",
        "lookup.walk",
    ]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.driver("overlay2")
def test_ctrl_c_leaves_a_valid_result_that_can_be_gone_on_with(fresh_dir: Path) -> None:
    words = _arguments(fresh_dir)
    child = subprocess.Popen(_command(*words), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (fresh_dir / "result.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert "Traceback" not in said
    first = document.read(fresh_dir / "result.json")
    assert first.run.interrupted
    assert 0 < first.run.visits < first.run.planned == 2 * 3 * 3
    assert first.measurements
    assert [path.name for path in fresh_dir.iterdir()] == ["result.json"]

    done = subprocess.run(
        _command("--no-report", "--resume", fresh_dir / "result.json", "--work", fresh_dir),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole = document.read(fresh_dir / "result.json")
    assert (whole.run.visits, whole.run.planned, whole.run.interrupted) == (18, 18, False)
    assert whole.run.started == first.run.started
    assert {len(set(one.visits)) for one in whole.measurements} == {3}


@pytest.mark.root
@pytest.mark.driver("overlay2")
def test_a_killed_run_leaves_nothing_mounted_and_the_next_one_clears_its_directory(fresh_dir: Path) -> None:
    child = subprocess.Popen(_command(*_arguments(fresh_dir)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (fresh_dir / "result.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.kill()
    child.wait()
    deadline = time.monotonic() + 10
    while leftovers.find([fresh_dir]).loops and time.monotonic() < deadline:
        time.sleep(0.1)
    left = leftovers.find([fresh_dir])
    assert not left.mounts
    assert not left.loops
    assert [path.name for path in fresh_dir.iterdir() if path.is_dir()] != []
    with setup.working_directory(fresh_dir) as path:
        assert [one for one in fresh_dir.iterdir() if one.is_dir()] == [path]


@pytest.mark.root
def test_a_directory_of_somebody_else_is_not_cleared(fresh_dir: Path) -> None:
    theirs, linked, ours = (fresh_dir / f"layerfs-bench-{name}" for name in ("theirs", "linked", "ours"))
    for path in (theirs, linked, ours):
        path.mkdir()
    for path in (theirs, ours):
        (path / "lock").touch()
    (linked / "lock").symlink_to(ours / "lock")
    os.chown(theirs, 65534, 65534)
    with setup.working_directory(fresh_dir) as made:
        assert sorted(fresh_dir.iterdir()) == sorted([theirs, linked, made])


@pytest.mark.root
@pytest.mark.driver("overlay2")
def test_a_store_of_the_users_is_measured_where_it_is_and_left_as_it_was(fresh_dir: Path) -> None:
    store = fresh_dir / "store"
    layerfs.open(store, driver="overlay2").close()
    words = [
        "--store",
        store,
        "bench",
        "run",
        "--budget",
        "20s",
        "--scenario",
        "lookup.walk",
        "--out",
        fresh_dir / "r.json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "layerfs.command", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = document.read(fresh_dir / "r.json")
    assert {one.cell.driver for one in results.measurements} == {"plain", "overlay2"}
    with layerfs.open(store) as opened:
        assert opened.images() == ()
        assert opened.clones() == ()
        assert opened.plan_prune().items == ()
    assert not list(store.rglob("layerfs-bench*"))


@pytest.mark.rootless
@pytest.mark.slow
@pytest.mark.driver("fuse")
def test_an_ordinary_user_measures_what_works_without_root(run_rootless: Rootless, rootless_dir: Path) -> None:
    def measure() -> tuple[int, str]:
        words = ["--budget", "30s", "--scenario", "lookup.walk", "--no-report", "--out", "r.json", "--work", "."]
        done = subprocess.run(_command(*words), capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    status, said = run_rootless(measure)
    assert status == 0, said
    results = document.read(rootless_dir / "r.json")
    drivers = {one.cell.driver for one in results.measurements if one.samples}
    assert drivers >= {"plain", "fuse", "copy"}
    assert results.fingerprint.user == "user namespace"
    left_out = {one.what: one for one in results.left_out}
    assert left_out["overlay2-xfs"].reason == "loop devices need root"
    assert left_out["btrfs"].hint == "run it as root"
    states = {
        (one.cell.driver, one.state.reached) for one in results.measurements if one.key.metric == "first" and one.state
    }
    assert ("fuse", CacheState.FIRST) in states, "a fresh mount knows no names"
    assert ("plain", CacheState.WARM) in states, "a user may not drop caches, and that is said"
    assert [path.name for path in rootless_dir.iterdir()] == ["r.json"]


@pytest.mark.rootless
@pytest.mark.driver("fuse")
def test_without_a_user_namespace_only_the_driver_that_needs_none_is_measured(
    run_rootless: Rootless, rootless_dir: Path
) -> None:
    def measure() -> tuple[list[str], list[str], list[str]]:
        wishes = Wishes(replace(TINY, scale=replace(SCALE, depths=(2,))), scenarios=("lookup.walk", "write.create"))
        results = _run(wishes, rootless_dir)
        reasons = [f"{one.cell.name}: {one.reason}" for one in results.measurements if one.reason]
        cells = sorted({one.cell.driver for one in results.measurements})
        return cells, reasons, [one.reason for one in results.left_out if one.what.startswith("copy-")]

    cells, reasons, why = run_rootless(measure)
    assert (cells, reasons) == (["fuse", "plain"], [])
    assert why[0] == "its mounts need a user namespace, which this host forbids"
    assert list(rootless_dir.iterdir()) == []


@pytest.mark.root
def test_json_is_the_result(fresh_dir: Path) -> None:
    words = ("--work", fresh_dir, "--out", fresh_dir / "r.json", "--cell", "copy-ext4", "--scenario", "write.create")
    done = subprocess.run([*_command(*words), "--json"], capture_output=True, text=True, check=True)
    assert document.from_document(json.loads(done.stdout)) == document.read(fresh_dir / "r.json")


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.driver("overlay2")
def test_pytest_runs_the_scenarios_as_benchmarks(fresh_dir: Path) -> None:
    words = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--pyargs",
        "layerfs_bench",
        "-k",
        "overlay2 and write.first",
    ]
    environment = {**os.environ, "LAYERFS_BENCH_WORK": str(fresh_dir)}
    done = subprocess.run(
        [sys.executable, *words, f"--benchmark-json={fresh_dir}/b.json", f"--benchmark-storage={fresh_dir}"],
        cwd=fresh_dir, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((fresh_dir / "b.json").read_text())["benchmarks"]
    assert len(found) == 2 * 2  # sizes and metrics
    for one in found:
        assert one["extra_info"]["layerfs"]["cell"]["name"] == "overlay2-ext4"
        assert one["group"] == str(_key(one["extra_info"]["layerfs"]["key"]))
        assert len(one["stats"]["data"]) == len(one["extra_info"]["layerfs"]["visits"])
        assert 1e-6 < one["stats"]["median"] < 1
    assert [path.name for path in fresh_dir.iterdir()] == ["b.json"]


def _key(words: Any) -> Key:  # noqa: ANN401  JSON
    return decode(Key, words)


@pytest.mark.root
@pytest.mark.driver("overlay2")
def test_what_a_killed_build_left_is_removed_layer_by_layer(fresh_dir: Path) -> None:
    with setup.prepared(Wishes(TINY, ("overlay2-ext4",), work=fresh_dir), events.ignore) as plan:
        lane = plan.lanes[-1]
        with lane.opened(fresh_dir) as bed:
            chain = bed.layering()
            for _ in range(3):
                chain.prepare()
                chain.commit()
            chain.prepare()
        assert runner.tidied(plan, lane)
        with lane.opened(fresh_dir) as bed:
            assert isinstance(bed, storebed.StoreBed)
            assert bed.store.snapshotter.infos() == []


@pytest.mark.root
def test_a_result_of_another_machine_is_not_gone_on_with(fresh_dir: Path) -> None:
    with setup.prepared(Wishes(TINY, ("copy-ext4",), ("lookup.walk",), work=fresh_dir), events.ignore) as plan:
        first = runner.Runner(plan).results()
        theirs = replace(first, fingerprint=replace(first.fingerprint, kernel="2.6.32"))
        runner.Runner(plan, earlier=first)
        with pytest.raises(layerfs.FailedPrecondition, match="another machine"):
            runner.Runner(plan, earlier=theirs)


@pytest.mark.root
@pytest.mark.parametrize(
    ("cells", "words", "said"),
    [(("overlay2-zfs",), (), "no cell 'overlay2-zfs'"), ((), ("lookups",), "no scenario 'lookups'")],
)
def test_what_does_not_exist_is_refused_before_anything_is_made(
    cells: tuple[str, ...], words: tuple[str, ...], said: str, fresh_dir: Path
) -> None:
    with (
        pytest.raises(layerfs.InvalidArgument, match=said),
        setup.prepared(Wishes(TINY, cells, words, work=fresh_dir), events.ignore),
    ):
        pass
    assert list(fresh_dir.iterdir()) == []


@pytest.mark.root
def test_the_scenario_of_the_guide_runs(fresh_dir: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs/how-to/add-a-scenario.md").read_text()
    code = guide.split("```python\n")[1].partition("```")[0]
    names: dict[str, Any] = {}
    exec(compile(code, "add-a-scenario.md", "exec"), names)  # noqa: S102  the guide's own code
    with setup.prepared(Wishes(TINY, ("copy-ext4",), work=fresh_dir), events.ignore) as plan:
        results = runner.Runner(replace(plan, scenarios=(names["Truncate"](),))).run()
    found = {(one.cell.name, one.key.parameters.size): one for one in results.measurements}
    assert set(found) == {(cell, size) for cell in ("plain-ext4", "copy-ext4") for size in SCALE.sizes}
    assert all(one.samples and not one.reason for one in found.values())
