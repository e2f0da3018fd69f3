"""What every test may use, and what holds of every run: skips are loud, and nothing is left behind.

``LAYERFS_REQUIRE=overlay2,btrfs,root`` turns a skip of a test that concerns one of these into a failure. The header
names each driver and why it is not here; the last lines count the tests of each tier.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import gettempdir
from typing import ParamSpec, TypeVar

import pytest

from layerfs.contract import Mount
from layerfs.kernel import loop
from layerfs.kernel.mounting import mounted
from tests.guest import machine
from tests.guest import tier as guest
from tests.support import drivers, leftovers, requirements, rootless
from tests.support.sharing import Share

P = ParamSpec("P")
T = TypeVar("T")

TIERS = ("plain", "rootless", "root", "guest")

_PRESENCE = pytest.StashKey[tuple[drivers.Presence, ...]]()
_LEFT = pytest.StashKey[leftovers.Leftovers]()
_SWEPT = pytest.StashKey[leftovers.Leftovers]()


# --- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_dir() -> Iterator[Path]:
    """Give an empty directory in memory (where that takes xattrs); what is left mounted in it fails the test."""
    with drivers.workspace("fresh") as path:
        yield path


@pytest.fixture
def trees_dir(fresh_dir: Path) -> Iterator[Path]:
    """Give an empty directory that takes user.* xattrs, which memory does not before Linux 6.6."""
    try:
        os.setxattr(fresh_dir, "user.layerfs", b"")
    except OSError:
        loop.create_image(fresh_dir / "ext4.img", 512 << 20)
        loop.make_file_system(fresh_dir / "ext4.img", "ext4")
        with loop.attach(fresh_dir / "ext4.img") as disk, mounted([Mount("ext4", str(disk.path))]) as path:
            yield path
    else:
        os.removexattr(fresh_dir, "user.layerfs")
        yield fresh_dir


@pytest.fixture
def rootless_dir(fresh_dir: Path) -> Path:
    """Give an empty directory that belongs to the user of `run_rootless`."""
    path = fresh_dir / "user"
    path.mkdir()
    if os.geteuid() == 0:
        os.chown(path, rootless.UID, rootless.GID)
    return path


@pytest.fixture
def run_rootless(rootless_dir: Path) -> rootless.Rootless:
    """Give ``run_rootless(function, *args)``: the call in a child process as uid 65534 (or as the user who tests)."""
    if reason := rootless.missing():
        pytest.skip(reason)

    def run(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return rootless.run_rootless(rootless_dir, function, *args, **kwargs)

    return run


@pytest.fixture(scope="session")
def btrfs_mount() -> Iterator[Path]:
    """Give the root of a btrfs on a sparse file, mounted for the whole run."""
    if os.geteuid() != 0:
        pytest.skip("mounting a btrfs needs root")
    with ExitStack() as stack:
        try:
            path = stack.enter_context(drivers.btrfs())
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no btrfs can be mounted here: {error}")
        yield path


@pytest.fixture(scope="session")
def zfs_mount() -> Iterator[Path]:
    """Give the root of a file system on a ZFS pool of its own, mounted for the whole run."""
    with ExitStack() as stack:
        try:
            path = stack.enter_context(drivers.zfs())
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no pool can be made here: {error}")
        yield path


@pytest.fixture(params=drivers.names())
def driver_name(request: pytest.FixtureRequest) -> str:
    """Give the name of each driver in turn; skip those that are not here, with the reason."""
    name: str = request.param
    for found in request.config.stash[_PRESENCE]:
        if found.name == name and found.reason is not None:
            pytest.skip(f"{name}: {found.reason}")
    return name


@pytest.fixture
def driver_root(driver_name: str, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Give an empty directory that suits the driver of `driver_name`: on btrfs or ZFS for these, else in memory."""
    if driver_name not in {"btrfs", "zfs"}:
        root: Path = request.getfixturevalue("fresh_dir")
        yield root
        if driver_name == "devicemapper":  # a store that is closed leaves its devices for mounts to come
            leftovers.release_pools(root)
        return
    mount: Path = request.getfixturevalue(f"{driver_name}_mount")
    path = mount / re.sub(r"\W+", "-", request.node.name)
    path.mkdir()
    yield path


# --- the run ----------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --guest and --share."""
    parser.addoption("--guest", action="store_true", help="run the tests marked `guest`, in a virtual machine")
    parser.addoption(
        "--share", type=Path, metavar="DIRECTORY", help="share the tests with other processes (tests.support.sharing)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Clear what killed runs left, and try the drivers before the first test."""
    if not drivers.names():
        raise pytest.UsageError("layerfs is not installed, so no driver would be tested: run scripts/test")
    os.environ[leftovers.SESSION_VARIABLE] = str(os.getpid())
    # pytest keeps its tmp_path directories below here, with its own locks and retention; the place tells ours apart.
    temporary = Path(gettempdir(), f"layerfs-pytest-{os.getuid()}")
    temporary.mkdir(mode=0o700, exist_ok=True)
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(temporary))
    places = {drivers.directory_with_xattrs(), Path("/var/tmp")}
    config.stash[_SWEPT] = leftovers.sweep(places, temporary.glob("pytest-of-*"))
    config.stash[_PRESENCE] = () if config.option.collectonly else drivers.presence()
    share = Share(config.getoption("share"))
    config.pluginmanager.register(share, "layerfs-share")
    guest.register(config, share)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest tests first and those of the guest last, and leave out what is too much for it."""
    items.sort(key=lambda item: item.get_closest_marker("soak") is None)
    if too_much := guest.sort(items):
        config.hook.pytest_deselected(items=too_much)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Name each driver and the rootless tier, with the reason why it is not here."""
    required = ", ".join(sorted(requirements.required())) or "nothing (LAYERFS_REQUIRE)"
    swept = (f"cleared from an earlier run: {line}" for line in config.stash[_SWEPT].lines())
    return [*drivers.table(config.stash[_PRESENCE], guest=guest.wanted(config)), f"required: {required}", *swept]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tiers that this user or host cannot run."""
    if guest.is_marked(item) and not machine.inside():
        pytest.skip("runs in the guest, with --guest")
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")
    if item.get_closest_marker("rootless") and (reason := rootless.missing()):
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of what is required into a failure."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        requirements.demand(report, requirements.concerns(item))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole file of what is required into a failure."""
    report = yield
    if report.skipped:
        requirements.demand(report, requirements.words(collector.nodeid))
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when a mount, a loop device or a process of its own is left, and clear it away."""
    left = leftovers.find(_own_directories(session.config), session=str(os.getpid()))
    session.config.stash[_LEFT] = left
    if left:
        leftovers.clear(left)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Count the tests of each tier, and name what was left behind."""
    if left := config.stash.get(_LEFT, None):
        terminalreporter.section("left behind", red=True, bold=True)
        for line in left.lines():
            terminalreporter.line(line)
    terminalreporter.section("tiers")
    for tier in TIERS:
        terminalreporter.line(f"{tier + ':':10}{_tally(terminalreporter, tier)}")


def _tally(terminalreporter: pytest.TerminalReporter, tier: str) -> str:
    reports = {
        outcome: [report for report in terminalreporter.getreports(outcome) if _tier(report) == tier]
        for outcome in ("passed", "failed", "error", "skipped", "")  # "" holds set-ups and tear-downs
    }
    seconds = sum(getattr(report, "duration", 0.0) for found in reports.values() for report in found)
    counts = [f"{len(found)} {outcome}" for outcome, found in reports.items() if outcome and found]
    return f"{', '.join(counts) or 'none'} in {seconds:.1f} s"


def _tier(report: pytest.TestReport) -> str:
    words = getattr(report, "keywords", {})
    return next((tier for tier in ("guest", "rootless", "root") if tier in words), "plain")


def _own_directories(config: pytest.Config) -> list[Path]:
    """Return where the tests of this run had their data: our own directories and that of pytest's tmp_path."""
    ours = drivers.directory_with_xattrs().glob(f"{leftovers.PREFIX}{os.getpid()}-*")
    factory = getattr(config, "_tmp_path_factory", None)  # pytest offers it as a fixture only
    basetemp: Path | None = getattr(factory, "_basetemp", None)
    return [*ours, *([basetemp] if basetemp is not None else [])]
