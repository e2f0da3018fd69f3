"""The guest tier of the tests: those marked ``guest`` run in guests, beside all others, and are reported here.

With ``--guest``, or where ``LAYERFS_REQUIRE`` names "guest", guests of each kind that is needed start when the tests
are collected, and have one processor each; otherwise these tests are skipped. They come last here, so that most reports
are there when they are asked for. In the guest they are tests like any other, and each report is sent out as it is
made.

The mark's argument names the kind, ``guest("uml")``; the tests of the driver devicemapper go there without it, all
others to QEMU's, which has ZFS.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.guest import machine
from tests.guest.machine import Kind
from tests.support import requirements, sharing

_HERE = Path(__file__).parent
_LIMIT = 2700
"""Seconds for a guest."""
_NICE = 5
"""Below the tests that run beside the guests: those measure the host, and the guests have the time that they need."""
_MACHINES = {Kind.QEMU: 2, Kind.UML: 1}
"""How many guests of a kind work side by side: emulated, a single one would be the last to end by far."""
_PASSED_ON = ("LAYERFS_REQUIRE", "LAYERFS_EXAMPLES", "LAYERFS_STRESS_SECONDS", "PYTHONPATH")


def wanted(config: pytest.Config) -> bool:
    """Tell whether this run is to have the tier."""
    return not machine.inside() and (config.getoption("guest") or "guest" in requirements.required())


def register(config: pytest.Config, share: sharing.Share) -> None:
    """Add what this process needs: the tier outside, unless another one has it, or the sender of reports inside."""
    if wanted(config) and not config.option.collectonly and share.take(sharing.GUEST):
        config.pluginmanager.register(Tier(config), "layerfs-guest-tier")
    elif machine.inside() and machine.LIVE in os.environ:
        config.pluginmanager.register(Sender(config, Path(os.environ[machine.LIVE])), "layerfs-guest-sender")


def sort(items: list[pytest.Item]) -> list[pytest.Item]:
    """Mark the tests that the fixture ``driver_name`` makes for drivers of the guest, and put all marked ones last.

    Right before them come the tests of the guest itself, which wait for it to be built. Those of the marked ones that
    are too much for it are taken out and returned.
    """
    for item in items:
        if _driver(item) in requirements.IN_GUEST:
            item.add_marker("guest")
    too_much = [item for item in items if is_marked(item) and _is_kept_out(item)]
    kept = (item for item in items if item not in too_much)
    items[:] = sorted(kept, key=lambda item: (is_marked(item), item.path.parent == _HERE))
    return too_much


def _driver(item: pytest.Item) -> object:
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return parameters.get("driver_name")


def _is_kept_out(item: pytest.Item) -> bool:
    """Tell whether a test stays on the host, with all drivers or with those that the mark names."""
    return any(not mark.args or _driver(item) in mark.args for mark in item.iter_markers("host"))


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
    """Outside: have the marked tests run in guests, and hand on what these report."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._guests: Sequence[Guest] = ()
        self._guest_of: Mapping[str, Guest] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        shares = _dealt(filter(is_marked, session.items))
        self._guests = [Guest(self._config, kind, tests) for kind, tests in shares]
        self._guest_of = {test: guest for guest, (_, tests) in zip(self._guests, shares, strict=True) for test in tests}

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """Take over what was covered before pytest-cov, which wraps this from outside, adds up the files."""
        result = yield
        if _measures(self._config):
            for number, guest in enumerate(self._guests):
                guest.take_coverage(f"{os.environ.get('COVERAGE_FILE', '.coverage')}.guest-{number}")
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if not is_marked(item):
            return None
        faulthandler.cancel_dump_traceback_later()  # a guest has a time limit of its own, a longer one
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._guest_of[item.nodeid].reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_sessionfinish(self) -> None:
        for guest in self._guests:
            guest.end()


def _measures(config: pytest.Config) -> bool:
    return config.pluginmanager.hasplugin("_cov")


def _kind(item: pytest.Item) -> Kind:
    """Return the kind of guest that a test runs in."""
    named = [Kind(kind) for mark in item.iter_markers("guest") for kind in mark.args]
    return named[0] if named else Kind.UML if "devicemapper" in requirements.concerns(item) else Kind.QEMU


def _dealt(items: Iterable[pytest.Item]) -> Sequence[tuple[Kind, list[str]]]:
    """Deal the tests of each kind to its guests, in turns: so these end at about the same time."""
    tests: dict[Kind, list[str]] = {}
    for item in items:
        tests.setdefault(_kind(item), []).append(item.nodeid)
    return [
        (kind, share)
        for kind, those in tests.items()
        for number in range(_MACHINES[kind])
        if (share := those[number :: _MACHINES[kind]])
    ]


class Guest:
    """A guest that runs some of the tests, in a process of its own: threads here would disturb tests that fork."""

    def __init__(self, config: pytest.Config, kind: Kind, tests: Iterable[str]) -> None:
        self._config = config
        self._kind = kind
        self._place = Path(tempfile.mkdtemp(prefix="layerfs-guest-tier-"))
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._read = 0
        self._told = False
        for name in ("output", "reports"):
            (self._place / name).touch()
        (self._place / "tests").write_text("\n".join(tests), encoding="utf-8")
        with (self._place / "output").open("wb") as output:
            self._process = subprocess.Popen(
                self._command(),
                cwd=config.rootpath,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Wait until a test has run, and return its reports."""
        while not any(report.when == "teardown" for report in self._reports.get(item.nodeid, ())):
            ended = self._process.poll() is not None
            self._take_reports()
            if ended:
                break
            time.sleep(0.2)
        return self._reports.get(item.nodeid) or [self._missing(item)]

    def take_coverage(self, target: str) -> None:
        """Wait until the guest has ended, and copy its file of coverage, if it got so far."""
        self._process.wait()
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(self._place / "out/coverage", target)

    def end(self) -> None:
        """End the guest, if it still runs, and what it is made of."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)  # the compiler too, while it is built
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._place)

    def _command(self) -> list[str]:
        variables = [f"{name}={os.environ[name]}" for name in _PASSED_ON if name in os.environ]
        options = ["-q", "-p", "no:cacheprovider"]
        if _measures(self._config):
            variables.append("COVERAGE_FILE=/out/coverage")
            options += ["--cov", "--cov-report="]
        return [
            *("setpriv", "--pdeathsig", "TERM", "nice", "-n", str(_NICE)),
            *(sys.executable, "-m", "tests.guest", "run", "--machine", self._kind, "--limit", str(_LIMIT)),
            *("--live", str(self._place / "reports"), "--out", str(self._place / "out"), "--", "env", *variables),
            *(sys.executable, "-m", "pytest", *options, f"@{self._place}/tests"),
        ]

    def _take_reports(self) -> None:
        with (self._place / "reports").open("rb") as stream:
            stream.seek(self._read)
            text, end, _ = stream.read().rpartition(b"\n")  # the rest is still to come
        self._read += len(text + end)
        for line in text.splitlines():
            data = json.loads(line)
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
            if isinstance(report.longrepr, list):  # of a skip; JSON has no tuples
                report.longrepr = tuple(report.longrepr)
            self._reports.setdefault(report.nodeid, []).append(report)

    def _missing(self, item: pytest.Item) -> pytest.TestReport:
        said = "the first failure says more"
        if not self._told:
            said = "it said:\n" + (self._place / "output").read_text("utf-8", "replace")[-4000:]
        self._told = True
        return pytest.TestReport(
            item.nodeid, item.location, dict(item.keywords), "failed", f"no report came from the guest; {said}", "call"
        )
