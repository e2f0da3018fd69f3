"""Every operation of a store is killed, and made to fail, at every call that changes something; nothing is ever lost.

What is run here is a sample, the largest on overlay2; ``LAYERFS_FAULTS=all`` runs all of it on all drivers, and
``python -m tests.faults`` prints the table of docs/explanation/trust.md.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from layerfs import Corrupt
from tests.faults import interception, operations
from tests.faults.interception import Fault
from tests.faults.matrix import Matrix, every
from tests.faults.operations import OPERATIONS, QUOTAS, Operation
from tests.guest import machine
from tests.support.images import write_layout

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(interception.missing() is not None, reason=interception.missing() or ""),
]

ALL = os.environ.get("LAYERFS_FAULTS") == "all"
_STEPS = {"overlay2": 4, "copy": 29, "btrfs": 41, "fuse": 61}
"""One in so many calls is tried: overlay2 makes the same calls as the others around its own."""
_IN_GUEST = 97

FAILURES = {
    "ENOSPC": (errno.ENOSPC, True, 11),
    "EDQUOT": (errno.EDQUOT, True, 61),
    "EIO": (errno.EIO, False, 41),
}
"""An error, whether it lasts, and the step: which part of the calls is tried."""


def step(driver: str) -> int:
    """Return of how many calls one is tried."""
    if ALL:
        return 1
    return _IN_GUEST if machine.inside() else _STEPS.get(driver, 41)


@pytest.fixture
def matrix(driver_name: str, driver_root: Path, tmp_path: Path) -> Matrix:
    """Give a store of each driver, with something in it that must survive."""
    return Matrix(operations.make(driver_root / "store", driver_name, tmp_path))


@pytest.mark.host("zfs")  # a quarter of an hour under emulation; tests/store/test_crash.py kills it, too
def test_a_kill_at_any_call_leaves_all_or_nothing(matrix: Matrix, driver_name: str) -> None:
    for number, operation in enumerate(each for each in OPERATIONS if each.fits(driver_name)):
        part = step(driver_name) * (1 if ALL else operation.thinner)
        assert matrix.run(operation, every(first=number * 5 % part, step=part)).failures == []


@pytest.mark.parametrize("failure", [None, errno.EIO])
def test_store_and_driver_agree_about_a_quota(tmp_path: Path, fresh_dir: Path, failure: int | None) -> None:
    matrix = Matrix(operations.make(fresh_dir / "store", "fuse", tmp_path))
    for number, operation in enumerate(QUOTAS):
        part = 1 if ALL else 11
        assert matrix.run(operation, every(failure, first=number % part, step=part)).failures == []


@pytest.mark.parametrize("failure", FAILURES)
def test_an_error_at_any_call_is_told_and_undone(tmp_path: Path, fresh_dir: Path, failure: str) -> None:
    error, lasting, part = FAILURES[failure]
    matrix = Matrix(operations.make(fresh_dir / "store", "overlay2", tmp_path))
    for number, operation in enumerate(OPERATIONS):
        pace = 1 if ALL else part * operation.thinner
        first = number % pace
        assert matrix.run(operation, every(error, lasting=lasting, first=first, step=pace)).failures == []


def test_an_error_while_cleaning_up_does_not_hide_the_one_before_it(tmp_path: Path, fresh_dir: Path) -> None:
    """The upper layer is no tar: that is what one hears, whatever fails while what was stored is removed again."""
    scene = operations.make(fresh_dir / "store", "copy", tmp_path)
    write_layout(scene.layout("broken"), [b"this is no tar\n" * 1000], name="broken:1")

    def act() -> None:
        with scene.open() as store:
            store.import_image(scene.layout("broken"), jobs=1)

    undisturbed = interception.run(act)
    assert isinstance(undisturbed.error, Corrupt), undisturbed.trace
    begin = undisturbed.calls.index("unlink")
    for at in range(begin, len(undisturbed.calls)):
        with scene.open() as store:
            store.prune(store.plan_prune())
        outcome = interception.run(act, Fault(at, errno.EIO))
        assert outcome.error is not None
        assert outcome.error.message == undisturbed.error.message, outcome.trace


def test_a_commit_that_cannot_be_taken_back_does_not_hide_why_it_failed(tmp_path: Path, fresh_dir: Path) -> None:
    """The disk is full from the moment on that a union's index is made, inside the commit of its layer."""
    matrix = Matrix(operations.make(fresh_dir / "store", "fuse", tmp_path))
    row = matrix.run(OPERATIONS[0], islice(every(errno.ENOSPC, lasting=True, first=80), 8))
    assert row.failures == []
    assert row.faults == 8
    assert row.calls["ftruncate"]


# -- the tool itself ---------------------------------------------------------------------------------------------------


def _write_three(path: Path) -> None:
    for number in range(3):
        (path / str(number)).write_text("x")


def test_a_kill_comes_before_its_call(tmp_path: Path) -> None:
    for at in range(6):
        place = tmp_path / str(at)
        place.mkdir()
        outcome = interception.run(partial(_write_three, place), Fault(at))
        assert not outcome.finished
        assert outcome.hit == ("openat", "write")[at % 2]
        sizes = {path.name: path.stat().st_size for path in place.iterdir()}
        assert sizes == {str(number): int(2 * number + 1 < at) for number in range((at + 1) // 2)}


def _try_three(path: Path) -> None:
    for number in range(3):
        try:
            (path / str(number)).mkdir()
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017  in a child


@pytest.mark.parametrize(("lasting", "made"), [(False, ["1", "2"]), (True, [])])
def test_an_error_comes_instead_of_its_call_and_may_last(tmp_path: Path, *, lasting: bool, made: list[str]) -> None:
    assert interception.run(lambda: _try_three(tmp_path), Fault(0, errno.ENOSPC, lasting=lasting)).finished
    assert sorted(os.listdir(tmp_path)) == made


def test_what_a_process_starts_is_counted_and_ends_with_it(tmp_path: Path) -> None:
    def starts() -> None:
        subprocess.run(["mkdir", tmp_path / "made"], check=True)
        subprocess.Popen(["sleep", str(seconds)])

    seconds = 10_000 + os.getpid()
    outcome = interception.run(starts)
    assert outcome.finished
    assert outcome.calls == ["mkdir"]
    assert subprocess.run(["pgrep", "-f", f"sleep {seconds}"], check=False).returncode == 1


def _lose(scene: operations.Scene) -> Callable[[operations.Scene, object], None]:
    def act(_: operations.Scene, __: object) -> None:
        (scene.path / "blobs/sha256").rename(scene.path / "blobs/gone")
        (scene.path / "blobs/gone").rename(scene.path / "blobs/sha256")

    return act


def test_the_matrix_sees_what_is_lost(tmp_path: Path, fresh_dir: Path) -> None:
    scene = operations.make(fresh_dir / "store", "copy", tmp_path)
    lossy = Operation("lossy", lambda *_: None, _lose(scene))
    (failure,) = Matrix(scene).run(lossy, every()).failures
    assert "is not in the store" in failure
