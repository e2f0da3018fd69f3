"""``LAYERFS_REQUIRE``: the drivers and tiers whose tests may not be skipped."""

from __future__ import annotations

import os
import re

import pytest

IN_GUEST = frozenset({"zfs", "devicemapper"})
"""The drivers that need what few kernels have, so that their tests run in guests (`tests.guest.tier`)."""


def required() -> frozenset[str]:
    """Return the names in ``LAYERFS_REQUIRE``, separated there by commas or spaces."""
    return frozenset(os.environ.get("LAYERFS_REQUIRE", "").replace(",", " ").split())


def concerns(item: pytest.Item) -> frozenset[str]:
    """Return what a test is about: its tier, its drivers, and the words of its name and parameters.

    One that runs in the guest is about that and its drivers only: there it is root, and has what the host may lack.
    """
    if item.get_closest_marker("outside"):
        return frozenset()
    marked = {mark.name for mark in item.iter_markers()}
    named = {str(name) for mark in item.iter_markers("driver") for name in mark.args}
    about = words(item.nodeid) | named
    return (about & IN_GUEST) | {"guest"} if "guest" in marked else about | marked


def words(nodeid: str) -> frozenset[str]:
    """Split "tests/backends/test_btrfs.py::TestOverlay2::test_x[copy]" into words in lower case."""
    return frozenset(word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z0-9]+(?![a-z])", nodeid))


def demand(report: pytest.TestReport | pytest.CollectReport, about: frozenset[str]) -> None:
    """Turn the report of a skip into a failure when it is about something required."""
    if wanted := sorted(required() & about):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"LAYERFS_REQUIRE names {', '.join(wanted)}, and this was to be skipped: {reason}"
