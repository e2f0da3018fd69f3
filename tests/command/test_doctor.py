"""`layerfs doctor`: what works here, tried for real."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs import drivers
from layerfs.kernel import mountinfo
from tests.command.conftest import Command


@pytest.fixture
def doctor(fresh_dir: Path) -> Command:
    """Give the command on a store that is not there yet."""
    return Command(fresh_dir / "far/store", "auto")


def test_every_driver_has_a_line(doctor: Command, fresh_dir: Path) -> None:
    document = doctor.json("doctor")
    assert {one["name"] for one in document["drivers"]} == set(drivers.names())
    works = {one["name"] for one in document["drivers"] if one["works"]}
    assert "copy" in works
    for one in document["drivers"]:
        assert one["works"] or (one["reason"] and one["hint"])
    lines = doctor("doctor").splitlines()
    for name in drivers.names():
        assert any(line.split()[:2] == [name, "yes" if name in works else "no"] for line in lines)
    assert list(fresh_dir.iterdir()) == []
    assert not any(bytes(fresh_dir) in line for line in mountinfo.lines())


def test_the_kernel_is_tried(doctor: Command) -> None:
    document = doctor.json("doctor")
    assert os.uname().release in document["kernel"]
    names = {one["name"]: one for one in document["features"]}
    assert set(names) == {
        "user namespaces",
        "new mount API",
        "overlay layers by descriptor",
        "idmapped mounts",
        "/dev/fuse",
        "runc",
        "crun",
    }
    assert all(one["works"] or one["hint"] for one in names.values())


@pytest.mark.root
def test_idmapped_mounts_are_found_where_the_kernel_has_them(doctor: Command) -> None:
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    found = {one["name"]: one for one in doctor.json("doctor")["features"]}["idmapped mounts"]
    assert found["works"] == (release >= (6, 3)), found  # tmpfs since Linux 6.3


def test_the_place_of_the_store_is_described(doctor: Command, fresh_dir: Path) -> None:
    document = doctor.json("doctor")
    assert document["store"] == str(doctor.store)
    assert document["tried_in"] == str(fresh_dir)
    assert not document["exists"]
    here = mountinfo.holding(fresh_dir)
    assert here is not None
    assert here.type in document["file_system"]
