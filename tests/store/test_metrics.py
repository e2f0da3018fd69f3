"""Metrics, read back by Prometheus's own parsers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import parser as older
from prometheus_client.openmetrics import parser

import layerfs
from layerfs import Store
from layerfs.kernel.mounting import mounted
from layerfs.metrics import openmetrics
from layerfs.metrics.openmetrics import Family, MetricType, Sample
from layerfs.serve.counting import CallCounter, kept_up
from tests.support.images import BASE, EDIT, write_layout

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(text: str) -> Values:
    """Read OpenMetrics with the parser of others, which is strict."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
        for family in parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


@pytest.fixture
def store(driver_name: str, driver_root: Path, tmp_path: Path) -> Iterator[Store]:
    """Give a store with an image and a clone of it."""
    with layerfs.open(driver_root / "store", driver=driver_name) as store:
        store.import_image(write_layout(tmp_path / "image", [BASE, EDIT], name="test:1"))
        store.clone("test:1", "web").snapshot()
        yield store


@pytest.mark.root
def test_what_is_there_is_counted(store: Store) -> None:
    values = read(openmetrics.render(store.metrics()))
    one = {name: value for (name, labels), value in values.items() if not labels}
    assert (one["layerfs_images"], one["layerfs_clones"], one["layerfs_layers"]) == (1, 1, 2)
    assert one["layerfs_blobs"] == 4
    assert one["layerfs_mounts"] == one["layerfs_unfinished_snapshots"] == one["layerfs_leases"] == 0
    assert one["layerfs_unchecked_snapshots"] == 3
    assert values["layerfs_snapshots", (("kind", "committed"),)] == 3
    assert values["layerfs_snapshots", (("kind", "active"),)] == 1
    assert values["layerfs_driver", (("driver", store.driver.name),)] == 1
    assert 0 < one["layerfs_filesystem_free_bytes"] <= one["layerfs_filesystem_size_bytes"]
    usage = store.du()
    for part, taken in usage.parts.items():
        assert values["layerfs_store_bytes", (("part", part),)] == pytest.approx(taken.size, abs=1 << 20)
        assert values["layerfs_store_inodes", (("part", part),)] == taken.inodes


@pytest.mark.root
def test_mounts_are_counted_where_they_are(store: Store) -> None:
    def count() -> float:
        return read(openmetrics.render(store.metrics()))["layerfs_mounts", ()]

    store.snapshotter.view("look", store.image("test:1").top)
    with store.get_clone("web").mounted():
        assert count() == 1
        with mounted(store.snapshotter.mounts("look")):
            assert count() == 2
    assert count() == 0
    store.snapshotter.remove("look")


@pytest.mark.root
def test_mounts_are_counted_of_a_store_on_a_volume(fresh_dir: Path, tmp_path: Path) -> None:
    """A bind mount of a subvolume shows a directory right below the root of the volume."""
    with layerfs.open(fresh_dir / "store", loop=layerfs.LoopVolume(256 << 20, "btrfs")) as store:
        try:
            store.import_image(write_layout(tmp_path / "image", [BASE], name="test:1"))
            with store.clone("test:1", "web").mounted():
                assert read(openmetrics.render(store.metrics()))["layerfs_mounts", ()] == 1
        finally:
            assert store.detach()


@pytest.mark.root
def test_a_store_whose_directory_is_gone_is_an_error_that_a_service_outlives(fresh_dir: Path) -> None:
    with layerfs.open(fresh_dir / "store", driver="copy") as store:
        (store.path / "copy").rmdir()
        with pytest.raises(layerfs.NotFound, match="how full"):
            store.metrics()


@pytest.mark.root
def test_the_last_check_is_told(fresh_dir: Path, tmp_path: Path) -> None:
    with layerfs.open(fresh_dir / "store", driver="copy", clock=lambda: 1_800_000_000_500_000_000) as store:
        store.import_image(write_layout(tmp_path / "image", [BASE], name="test:1"))
        assert store.check(deep=True) == ()
        values = read(openmetrics.render(store.metrics()))
    assert values["layerfs_last_check_timestamp_seconds", ()] == 1_800_000_000.5
    assert values["layerfs_unchecked_snapshots", ()] == 0


@settings(deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.floats(0, 1e15), min_size=1))
def test_any_label_is_read_back(labels: dict[str, float]) -> None:
    samples = [Sample(value, (("name", label),)) for label, value in labels.items()]
    text = openmetrics.render([Family("layerfs_any_bytes", MetricType.GAUGE, 'a "help"\n\\ text', samples, "bytes")])
    assert read(text) == {("layerfs_any_bytes", (("name", label),)): value for label, value in labels.items()}


@pytest.mark.parametrize("name", ["layerfs_calls_total", "Layerfs", "1", "layerfs bytes", "layerfs_size"])
def test_names_are_held_to_the_rules(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        Family(name, MetricType.GAUGE, "", [], "bytes")


def counter() -> CallCounter:
    """Count one call that works and one that fails, half a second each."""
    times = iter([0.0, 0.5, 1.0, 1.5])
    counting = CallCounter(clock=lambda: next(times))
    methods = counting.counted({b"/containerd/Stat": lambda data, _: [data], b"/containerd/Remove": _fail})
    assert list(methods[b"/containerd/Stat"](b"x", {})) == [b"x"]
    with pytest.raises(layerfs.NotFound):
        list(methods[b"/containerd/Remove"](b"x", {}))
    return counting


def _fail(data: bytes, _metadata: object) -> list[bytes]:
    raise layerfs.NotFound(f"there is no {data!r}")


def test_calls_are_counted() -> None:
    text = openmetrics.render(counter().families())
    assert read(text) == {
        ("layerfs_serve_calls_total", (("method", "Stat"), ("status", "OK"))): 1,
        ("layerfs_serve_calls_total", (("method", "Remove"), ("status", "NOT_FOUND"))): 1,
        ("layerfs_serve_call_seconds_total", (("method", "Stat"),)): 0.5,
        ("layerfs_serve_call_seconds_total", (("method", "Remove"),)): 0.5,
    }
    names = {sample.name for family in older.text_string_to_metric_families(text) for sample in family.samples}
    assert names == {"layerfs_serve_calls_total", "layerfs_serve_call_seconds_total"}


def test_a_call_that_the_client_ends_is_no_failure_of_the_service() -> None:
    counting = CallCounter()
    methods = counting.counted({b"/containerd/List": lambda data, _: iter([data, data])})
    answer = iter(methods[b"/containerd/List"](b"x", {}))
    assert next(answer) == b"x"
    del answer
    values = read(openmetrics.render(counting.families()))
    assert values["layerfs_serve_calls_total", (("method", "List"), ("status", "CANCELLED"))] == 1


def test_a_file_is_kept_up_to_date(tmp_path: Path) -> None:
    written: list[int] = []

    def measure() -> list[Family]:
        written.append(len(written))
        return [Family("layerfs_written", MetricType.GAUGE, "How often.", [Sample(len(written))])]

    path = tmp_path / "layerfs.prom"
    with kept_up(path, measure, every=0.001):
        while len(written) < 3:
            assert read(path.read_text())["layerfs_written", ()] >= 1
    assert read(path.read_text())["layerfs_written", ()] == len(written)
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["layerfs.prom"]
    with pytest.raises(layerfs.NotFound), kept_up(tmp_path / "nowhere/layerfs.prom", measure):
        pass


@pytest.mark.root
def test_the_reference_lists_every_family(fresh_dir: Path, tmp_path: Path) -> None:
    with layerfs.open(fresh_dir / "store", driver="copy") as store:
        store.import_image(write_layout(tmp_path / "image", [BASE], name="test:1"))
        store.check(deep=True)
        families = (*store.metrics(), *counter().families())
    page = (Path(__file__).parents[2] / "docs/reference/metrics.md").read_text()
    expected = [f"{family.name}_total" if family.type is MetricType.COUNTER else family.name for family in families]
    assert re.findall(r"^\| `(layerfs_\w+)", page, flags=re.MULTILINE) == expected
