"""Results as a file: JSON of pytest-benchmark, so that its tools read it, with what is ours in ``extra_info``.

https://pytest-benchmark.readthedocs.io: ``benchmarks`` has one entry with ``stats`` for each measurement that has
samples, in seconds. The rest of a measurement is its ``extra_info.layerfs``; the run, the machine and what was not
measured are the key ``layerfs`` of the document, which pytest-benchmark does not look at. `schema` describes it all.
"""

from __future__ import annotations

import json
import os
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from layerfs.errors import Corrupt, Unsupported, os_error
from layerfs_bench.codec import Json, decode, encode, schema
from layerfs_bench.results import Fingerprint, LeftOut, Measurement, Results, Run

FORMAT = 1
"""The number of our part of the document; it changes when a reader of the old one would be misled."""
_MODULE = "layerfs_bench"


@dataclass(frozen=True, slots=True)
class _Header:
    """Our key of the document: everything but the measurements that have samples."""

    format: int
    run: Run
    fingerprint: Fingerprint
    unmeasured: tuple[Measurement, ...]
    left_out: tuple[LeftOut, ...] = ()


def to_document(results: Results) -> dict[str, Json]:
    """Return the document of results, as pytest-benchmark writes its own."""
    measured = tuple(one for one in results.measurements if one.samples)
    unmeasured = tuple(one for one in results.measurements if not one.samples)
    return {
        "machine_info": _machine(results.fingerprint),
        "commit_info": {},
        "benchmarks": [_benchmark(one) for one in measured],
        "datetime": results.run.started.isoformat(),
        "version": "5.3.1",  # of pytest-benchmark, whose form this is
        "layerfs": encode(_Header(FORMAT, results.run, results.fingerprint, unmeasured, results.left_out)),
    }


def from_document(document: Json, *, name: str = "the result") -> Results:
    """Return the results that a document holds; raise `Corrupt` for one that is not ours or is damaged."""
    if not isinstance(document, dict) or not isinstance(document.get("layerfs"), dict):
        raise Corrupt(f"{name} is no result of `layerfs bench`", hint="it has no key 'layerfs'")
    ours = document["layerfs"]
    if isinstance(ours, dict) and isinstance(ours.get("format"), int) and ours["format"] != FORMAT:
        raise Unsupported(
            f"{name} has format {ours['format']}, this is for {FORMAT}", hint="use the layerfs that made it"
        )
    header = decode(_Header, ours, f"{name}: layerfs")
    benchmarks = document.get("benchmarks")
    if not isinstance(benchmarks, list):
        raise Corrupt(f"{name} has no list of benchmarks")
    measured = tuple(_measurement(one, f"{name}: benchmarks[{number}]") for number, one in enumerate(benchmarks))
    measurements = (*measured, *header.unmeasured)
    if len({one.identity for one in measurements}) < len(measurements):
        raise Corrupt(f"{name} has the same measurement twice")
    return Results(header.run, header.fingerprint, measurements, header.left_out)


def read(path: Path) -> Results:
    """Read a result file; raise `NotFound`, or `Corrupt` for one that is damaged or somebody else's."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise os_error(f"read {path}", error) from error
    except UnicodeDecodeError as error:
        raise Corrupt(f"{path} is no text") from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{path} is no JSON: {error}") from error
    return from_document(document, name=str(path))


def write(results: Results, path: Path) -> None:
    """Write a result file in one step: whoever reads it sees the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(to_document(results), indent=1, allow_nan=False), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise os_error(f"write {path}", error) from error


def json_schema() -> dict[str, Json]:
    """Return the JSON schema (draft 2020-12) of a result file."""
    number: Json = {"type": "number"}
    benchmark: dict[str, Json] = {
        "type": "object",
        "description": "One measurement, as pytest-benchmark has it; the figures of stats are seconds.",
        "properties": {
            "group": {"type": "string"},
            "name": {"type": "string"},
            "fullname": {"type": "string"},
            "stats": {
                "type": "object",
                "properties": {
                    **dict.fromkeys(("min", "max", "mean", "median", "stddev", "q1", "q3", "iqr", "total"), number),
                    "data": {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 1},
                    "iterations": {"type": "integer", "minimum": 1},
                },
                "required": ["mean", "data", "iterations"],
            },
            "extra_info": {
                "type": "object",
                "properties": {"layerfs": _without_samples()},
                "required": ["layerfs"],
            },
        },
        "required": ["group", "name", "fullname", "stats", "extra_info"],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A result of layerfs bench",
        "type": "object",
        "properties": {
            "machine_info": {"type": "object"},
            "commit_info": {"type": "object"},
            "datetime": {"type": "string", "format": "date-time"},
            "version": {"type": "string"},
            "benchmarks": {"type": "array", "items": benchmark},
            "layerfs": {**schema(_Header), "description": "The run, the machine, and what was not measured."},
        },
        "required": ["machine_info", "benchmarks", "datetime", "version", "layerfs"],
    }


def _without_samples() -> Json:
    """Return the schema of a measurement in ``extra_info``: its samples are the ``data`` of the statistics."""
    whole = schema(Measurement)
    properties = whole["properties"]
    if isinstance(properties, dict):
        whole["properties"] = {name: one for name, one in properties.items() if name != "samples"}
    return whole


def _machine(fingerprint: Fingerprint) -> Json:
    """Return the keys that pytest-benchmark's own tools show of a machine."""
    python = next((one.version for one in fingerprint.versions if one.name == "python"), "")
    return {
        "node": "",  # a machine's name is nobody's business in a published result
        "processor": fingerprint.cpu,
        "machine": fingerprint.architecture,
        "python_implementation": "CPython",
        "python_version": python,
        "release": fingerprint.kernel,
        "system": "Linux",
        "cpu": {"brand_raw": fingerprint.cpu, "count": fingerprint.cores, "arch": fingerprint.architecture},
    }


def _benchmark(measurement: Measurement) -> Json:
    ours = encode(replace(measurement, samples=()))
    if isinstance(ours, dict):
        ours.pop("samples")
    parameters = {name: value for name, value in asdict(measurement.key.parameters).items() if value is not None}
    words = (measurement.cell.name, *measurement.key.parameters.words())
    name = f"{measurement.key.scenario}:{measurement.key.metric}[{'-'.join(words)}]"
    return {
        "group": str(measurement.key),
        "name": name,
        "fullname": f"{_MODULE}::{name}",
        "params": {"cell": measurement.cell.name, **parameters},
        "param": "-".join(words),
        "extra_info": {"layerfs": ours},
        "options": {},
        "stats": {**_statistics(measurement.samples), "iterations": measurement.operations},
    }


@dataclass(frozen=True, slots=True)
class _Extra:
    layerfs: Measurement


@dataclass(frozen=True, slots=True)
class _Samples:
    data: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is ours of a benchmark's entry."""

    extra_info: _Extra
    stats: _Samples


def _measurement(entry: Json, where: str) -> Measurement:
    found = decode(_Entry, entry, where)
    measurement = replace(found.extra_info.layerfs, samples=found.stats.data)
    if not measurement.samples or min(measurement.samples) < 0:
        raise Corrupt(f"{where} has no samples, or negative ones")
    if len(measurement.visits) not in {0, len(measurement.samples)}:
        raise Corrupt(f"{where} has {len(measurement.samples)} samples, and visits of {len(measurement.visits)}")
    return measurement


def _statistics(samples: Sequence[float]) -> dict[str, Json]:
    """Return what pytest-benchmark says of samples, by its own definitions, for its own readers."""
    ordered = sorted(samples)
    mean, middle = statistics.fmean(ordered), statistics.median(ordered)
    deviation = statistics.stdev(ordered) if len(ordered) > 1 else 0.0
    q1, _, q3 = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else (middle,) * 3
    iqr, total = q3 - q1, sum(ordered)
    low, high = q1 - 1.5 * iqr, q3 + 1.5 * iqr
    outside = sum(not low <= one <= high for one in ordered)
    far = sum(abs(one - mean) > deviation for one in ordered)
    return {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": mean,
        "stddev": deviation,
        "rounds": len(ordered),
        "median": middle,
        "iqr": iqr,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": outside,
        "stddev_outliers": far,
        "outliers": f"{far};{outside}",
        "ld15iqr": ordered[bisect_left(ordered, low)],
        "hd15iqr": ordered[bisect_right(ordered, high) - 1],
        "ops": len(ordered) / total if total else 0.0,
        "total": total,
        "data": list(samples),
    }


if __name__ == "__main__":  # writes the published schema anew, after a change of `layerfs_bench.results`
    Path(__file__).with_name("result.schema.json").write_text(json.dumps(json_schema(), indent=1) + "\n", "utf-8")
