"""Results as files: what is written is read again, by us and by pytest-benchmark, and what is damaged is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfs.errors import Corrupt, NotFound, Unsupported
from layerfs_bench import document, results
from layerfs_bench.codec import decode, encode
from layerfs_bench.results import (
    CacheState,
    Cell,
    Fingerprint,
    Key,
    LeftOut,
    Measurement,
    Outcome,
    Parameters,
    Place,
    Position,
    Quantity,
    Results,
    Run,
    State,
    Unit,
    Version,
)

CELL = Cell("fuse-redirect-ext4", "fuse", "ext4", reflink=False, options=(("write", "redirect"),))
MEASURED = Measurement(
    Key("lookup.stat", "first", Parameters(depth=8, position=Position.TOP)),
    CELL,
    Outcome.OK,
    samples=(3e-6, 1e-6, 2e-6),
    visits=(0, 0, 1),
    operations=10,
    written=4,
    quantities=(Quantity("device_written", Unit.BYTES, (4096.0, 0.0)),),
    state=State(CacheState.COLD, CacheState.FIRST, "remount"),
)
FAILED = Measurement(Key("write.first", "first", Parameters(size=4096)), CELL, Outcome.TIMED_OUT, reason="30 s")
RESULTS = Results(
    Run("quick", 7, datetime(2026, 11, 20, 19, 30, tzinfo=UTC), 61.5, 2, 3, "no sync", 60.0),
    Fingerprint(
        "a processor", 2, 1 << 34, "x86_64", "6.18", "Debian", "kvm", "", "root", 0.5, 1e-9, 4e-8,
        (Version("python", "3.11.2"),), (Version("vm.dirty_ratio", "20"),),
        (Place("ext4", False, ("rw",), "loop0", "a file on ext4", 1 << 30),),
    ),
    (MEASURED, FAILED),
    (LeftOut("zfs", "no such file system", "modprobe zfs"),),
)  # fmt: skip


Change = Callable[[Any], object]


def _changed(change: Change) -> Any:  # noqa: ANN401  JSON, to be damaged
    whole: Any = json.loads(json.dumps(document.to_document(RESULTS)))
    change(whole)
    return whole


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    document.write(RESULTS, path)
    assert document.read(path) == RESULTS
    assert [one.name for one in tmp_path.iterdir()] == ["result.json"]


@given(st.builds(Parameters, depth=st.none() | st.integers(0, 2**63), position=st.none() | st.sampled_from(Position)))
def test_parameters_survive_json(parameters: Parameters) -> None:
    assert decode(Parameters, json.loads(json.dumps(encode(parameters)))) == parameters


def test_the_document_follows_the_published_schema() -> None:
    published = json.loads(resources.files("layerfs_bench").joinpath("result.schema.json").read_text())
    assert published == document.json_schema(), "write it anew: python -m layerfs_bench.document"
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(json.loads(json.dumps(document.to_document(RESULTS))), published)
    broken = _changed(lambda whole: whole["benchmarks"][0]["extra_info"]["layerfs"]["key"].pop("metric"))
    with pytest.raises(jsonschema.ValidationError, match="'metric' is a required property"):
        jsonschema.validate(broken, published)


def test_pytest_benchmark_compares_it(tmp_path: Path) -> None:
    for name, factor in (("old", 1.0), ("new", 2.0)):
        changed = replace(MEASURED, samples=tuple(one * factor for one in MEASURED.samples))
        document.write(replace(RESULTS, measurements=(changed,)), tmp_path / f"{name}.json")
    command = [sys.executable, "-m", "pytest_benchmark", "compare", "--columns=median,rounds,iterations"]
    files = [str(tmp_path / "old.json"), str(tmp_path / "new.json")]
    done = subprocess.run([*command, *files], check=True, capture_output=True, text=True)
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("lookup.stat")]
    assert [row[-2:] for row in rows] == [["3", "10"], ["3", "10"]], done.stdout
    assert {"2.0000", "4.0000"} <= {word for row in rows for word in row}


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (lambda whole: whole.pop("layerfs"), Corrupt, "no key 'layerfs'|no result"),
        (lambda whole: whole["layerfs"].update(format=2), Unsupported, "format 2"),
        (lambda whole: whole["layerfs"]["run"].pop("seed"), Corrupt, "run has no 'seed'"),
        (lambda whole: whole["layerfs"]["run"].update(seed="7"), Corrupt, "seed is not of type integer"),
        (lambda whole: whole["layerfs"]["run"].update(seed=True), Corrupt, "seed is not of type integer"),
        (lambda whole: whole["layerfs"]["run"].update(started="soon"), Corrupt, "started cannot be 'soon'"),
        (lambda whole: whole.update(benchmarks=None), Corrupt, "no list of benchmarks"),
        (lambda whole: whole["benchmarks"][0].pop("extra_info"), Corrupt, r"benchmarks\[0\] has no 'extra_info'"),
        (lambda whole: whole["benchmarks"][0]["stats"].update(data=["x"]), Corrupt, r"data\[0\] is not of type number"),
        (lambda whole: whole["benchmarks"][0]["stats"].update(data=[math.nan]), Corrupt, "no number that can be"),
        (lambda whole: whole["benchmarks"][0]["stats"].update(data=[10**400]), Corrupt, "no number that can be"),
        (lambda whole: whole["benchmarks"][0]["stats"].update(data=[-1.0]), Corrupt, "negative"),
        (lambda whole: whole["benchmarks"][0]["stats"].update(data=[1.0]), Corrupt, "1 samples, and visits of"),
        (lambda whole: whole["benchmarks"].append(whole["benchmarks"][0]), Corrupt, "same measurement twice"),
        (lambda whole: whole["layerfs"]["run"].update(seed=10**400), Corrupt, "no number that can be"),
    ],
)
def test_what_is_damaged_is_refused(change: Change, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        document.from_document(_changed(change))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        document.read(tmp_path / "missing.json")
    for number, content in enumerate((b"{", b"\xff", b"[]", b"[" * 100_000)):
        path = tmp_path / f"{number}.json"
        path.write_bytes(content)
        with pytest.raises(Corrupt):
            document.read(path)


def test_a_key_is_shown_in_words() -> None:
    assert str(MEASURED.key) == "lookup.stat:first[depth=8,position=top]"
    assert str(Key("mixed.git", "status")) == "mixed.git:status"
    assert results.Cell("plain-xfs", "plain", "xfs", reflink=True).is_baseline
