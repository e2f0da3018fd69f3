"""The guest tier of the tests: those marked ``guest`` run in the guest, all in one, and are reported here one by one.

With ``--guest``, or where ``LAYERFS_REQUIRE`` names "guest", they run there when all others have run; otherwise they
are skipped. In the guest itself they are tests like any other, and each report is sent out as it is made.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.guest import machine
from tests.support import requirements
from tests.support.debian import Unavailable

_MACHINE = machine.Machine(memory=4096, processors=1, limit=2400)
_PASSED_ON = ("LAYERFS_REQUIRE", "LAYERFS_EXAMPLES", "LAYERFS_STRESS_SECONDS", "PYTHONPATH")


def wanted(config: pytest.Config) -> bool:
    """Tell whether this run is to have the tier."""
    return not machine.inside() and (config.getoption("guest") or "guest" in requirements.required())


def register(config: pytest.Config) -> None:
    """Add what this run needs: the tier outside, or the sender of reports inside."""
    if wanted(config) and not config.option.collectonly:
        config.pluginmanager.register(Tier(config), "layerfs-guest-tier")
    elif machine.inside() and machine.LIVE in os.environ:
        config.pluginmanager.register(Sender(config, Path(os.environ[machine.LIVE])), "layerfs-guest-sender")


def sort(items: list[pytest.Item]) -> None:
    """Mark the tests that the fixture ``driver_name`` makes for drivers of the guest, and put all marked ones last."""
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if parameters.get("driver_name") in requirements.IN_GUEST:
            item.add_marker("guest")
    items.sort(key=is_marked)


def is_marked(item: pytest.Item) -> bool:
    """Tell whether a test runs in the guest only."""
    return item.get_closest_marker("guest") is not None


class Sender:
    """Inside: write each report as a line of JSON."""

    def __init__(self, config: pytest.Config, device: Path) -> None:
        self._config = config
        self._device = device

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with self._device.open("a", encoding="utf-8") as device:
            device.write(json.dumps(data) + "\n")


class Tier:
    """Outside: run the marked tests in the guest when the first of them is to run, and hand on what it reported."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._reports: dict[str, list[pytest.TestReport]] | None = None
        self._said = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if not is_marked(item):
            return None
        if self._reports is None:
            self._reports = {}
            self._run(found for found in item.session.items if is_marked(found))
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports.get(item.nodeid) or [self._missing(item)]:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _run(self, items: Iterable[pytest.Item]) -> None:
        with tempfile.TemporaryDirectory(prefix="layerfs-guest-tier-") as directory:
            place = Path(directory)
            (place / "tests").write_text("\n".join(item.nodeid for item in items), encoding="utf-8")
            try:
                with (place / "output").open("wb") as output:
                    machine.run(
                        [*(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"), f"@{place}/tests"],
                        machine=_MACHINE,
                        variables={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                        directory=self._config.rootpath,
                        output=output,
                        live=place / "reports",
                    )
            except Unavailable as error:
                self._said = str(error)
                return
            self._said = (place / "output").read_text("utf-8", "replace")[-4000:]
            self._read((place / "reports").read_text("utf-8").splitlines())

    def _read(self, lines: Iterable[str]) -> None:
        assert self._reports is not None
        for line in lines:
            try:
                data = json.loads(line)
            except ValueError:  # the guest died while it wrote this
                continue
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
            self._reports.setdefault(report.nodeid, []).append(report)

    def _missing(self, item: pytest.Item) -> pytest.TestReport:
        said, self._said = self._said, "(the first failure says more)"
        reason = f"the guest did not report this test; it said:\n{said}"
        return pytest.TestReport(item.nodeid, item.location, dict(item.keywords), "failed", reason, "call")
