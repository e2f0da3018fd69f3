"""Published findings are agreed with, contradicted or not measured, and never silently passed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from layerfs.command import cli
from layerfs_bench import document, quantities
from layerfs_bench.analysis import analyse
from layerfs_bench.results import Cell, Key, Measurement, Outcome, Parameters, Quantity, Results
from layerfs_bench.shapes import SHAPES, Agreement, judge
from tests.bench import samples

AGREED = {"lookup-slope", "lookup-cached", "copy-up-bytes", "reflink-bytes", "redirect-bytes", "crossover"}


def _agreements(results: Results) -> dict[str, Agreement]:
    return {one.shape.name: one.agreement for one in judge(analyse(results))}


def test_a_sound_result_agrees_with_what_it_measured() -> None:
    found = _agreements(samples.results())
    assert {name for name, agreement in found.items() if agreement is Agreement.AGREES} == AGREED
    assert {agreement for name, agreement in found.items() if name not in AGREED} == {Agreement.NOT_MEASURED}


def test_an_empty_result_agrees_with_nothing() -> None:
    empty = replace(samples.results(), measurements=())
    assert set(_agreements(empty).values()) == {Agreement.NOT_MEASURED}
    assert len(_agreements(empty)) == len(SHAPES)


def _with_device_bytes(results: Results, cell: str, count: float) -> Results:
    """Change the bytes at the device of a cell."""

    def changed(one: Measurement) -> Measurement:
        if one.cell.name != cell or one.quantity(quantities.DEVICE_WRITTEN.name) is None:
            return one
        kind = quantities.DEVICE_WRITTEN
        return replace(one, quantities=(Quantity(kind.name, kind.unit, (count,)),))

    return replace(results, measurements=tuple(map(changed, results.measurements)))


@pytest.mark.parametrize(
    ("cell", "count", "contradicted"),
    [
        ("overlay2-ext4", 1e6, "copy-up-bytes"),  # a copy-up that writes less than the file was not measured whole
        ("overlay2-xfs", 6.5e7, "reflink-bytes"),
        ("fuse-redirect-ext4", 2e6, "redirect-bytes"),
        ("btrfs", 1e3, "crossover"),  # ahead at every size
    ],
)
def test_a_wrong_figure_contradicts(cell: str, count: float, contradicted: str) -> None:
    found = _agreements(_with_device_bytes(samples.results(), cell, count))
    assert found[contradicted] is Agreement.DISAGREES


def test_a_slope_that_is_none_contradicts() -> None:
    flat = samples.results(
        slowed=lambda key, cell: 0.01 if cell.driver == "overlay2" and (key.parameters.depth or 0) > 1 else 1.0
    )
    assert _agreements(flat)["lookup-slope"] is Agreement.DISAGREES


def _ratio(scenario: str, metric: str, cells: tuple[Cell, Cell], times: float, **given: int) -> tuple[Measurement, ...]:
    key = Key(scenario, metric, Parameters(**given))  # type: ignore[arg-type]  # whole numbers only
    return tuple(
        Measurement(key, cell, Outcome.OK, (seconds,) * 8, (0,) * 8)
        for cell, seconds in zip(cells, (1e-3, 1e-3 * times), strict=True)
    )


PLAIN, OVERLAY, FUSE = samples.CELLS[0], samples.CELLS[3], samples.CELLS[6]
THIN = Cell("devicemapper", "devicemapper", "ext4", reflink=False)


@pytest.mark.parametrize(
    ("measurements", "name", "agreement"),
    [
        (_ratio("write.append", "first", (PLAIN, OVERLAY), 120, size=1 << 26), "append", Agreement.AGREES),
        (_ratio("write.append", "first", (PLAIN, OVERLAY), 1.1, size=1 << 26), "append", Agreement.DISAGREES),
        (_ratio("read.sequential", "first", (PLAIN, OVERLAY), 1.02, size=1 << 26), "reads", Agreement.AGREES),
        (_ratio("read.sequential", "first", (PLAIN, OVERLAY), 2.0, size=1 << 26), "reads", Agreement.DISAGREES),
        (_ratio("write.parallel", "first", (PLAIN, OVERLAY), 9, workers=64), "parallel-copy-up", Agreement.AGREES),
        (_ratio("build.containerd", "prepare", (OVERLAY, THIN), 81), "build", Agreement.AGREES),
        (_ratio("build.containerd", "prepare", (OVERLAY, THIN), 1), "build", Agreement.DISAGREES),
        (_ratio("lifecycle", "remove", (OVERLAY, THIN), 2.3, clones=100), "destroy", Agreement.AGREES),
        (_ratio("read.sequential", "first", (PLAIN, FUSE), 1.4), "fuse-read", Agreement.AGREES),
        (_ratio("lookup.walk", "first", (PLAIN, FUSE), 3.0, depth=8), "fuse-metadata", Agreement.AGREES),
        (_ratio("mixed.compile", "compile", (PLAIN, FUSE), 1.28), "fuse-compile", Agreement.AGREES),
        (_ratio("mixed.compile", "compile", (PLAIN, FUSE), 9.0), "fuse-compile", Agreement.DISAGREES),
    ],
)
def test_the_findings_about_ratios(measurements: tuple[Measurement, ...], name: str, agreement: Agreement) -> None:
    found = _agreements(replace(samples.results(), measurements=measurements))
    assert found[name] is agreement
    assert sum(one is not Agreement.NOT_MEASURED for one in found.values()) == 1


def test_the_command_tells_both_figures_and_its_status(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    document.write(samples.results(), path)
    done = CliRunner().invoke(cli, ["bench", "verify-shape", str(path)])
    assert done.exit_code == 9  # nothing is contradicted, but not all was measured
    assert "published: 0.7 µs a layer" in done.stdout
    assert "here:      0.7" in done.stdout
    assert f"{len(AGREED)} agrees, {len(SHAPES) - len(AGREED)} not measured" in done.stdout
    document.write(_with_device_bytes(samples.results(), "overlay2-ext4", 5.0), path)
    wrong = CliRunner().invoke(cli, ["--json", "bench", "verify-shape", str(path)])
    assert wrong.exit_code == 8
    found = {one["name"]: one["agreement"] for one in json.loads(wrong.stdout)["findings"]}
    assert found["copy-up-bytes"] == "disagrees"
