"""The native list of changes of ZFS: the same answer as the walk of both trees, whatever was done between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layerfs.contract import Kind, NativeChanges, Snapshot, SnapshotId
from layerfs.errors import Unsupported
from layerfs.kernel.mounting import mounted
from layerfs.layer.changes import Change, changes
from layerfs.testing.driver_rules import active, committed, view
from layerfs_backends.zfs.datasets import ZfsDriver
from layerfs_backends.zfs.driver import open_driver
from tests.backends import test_btrfs_changes as edits

pytestmark = pytest.mark.guest

_EDITS = [name for name in edits.EDITS if name != "subvolume"]


@pytest.fixture
def driver(zfs_dir: Path) -> Iterator[ZfsDriver]:
    driver = open_driver(zfs_dir / "zfs", {})
    assert isinstance(driver, ZfsDriver)
    yield driver
    for number in sorted(driver.ids(), reverse=True):
        driver.remove(number)


@contextmanager
def _shown(driver: ZfsDriver, snapshot: Snapshot) -> Iterator[Path]:
    with mounted(driver.mounts(snapshot)) as path:
        yield path


def _check(driver: ZfsDriver, snapshot: Snapshot, base: int = 1) -> list[Change]:
    """Compare the list of the candidates with that of the walk, with and without contents; return it."""
    with _both(driver, snapshot, base) as (lower, upper):
        for verify in (False, True):
            listed = _listed(driver, snapshot, base, lower, upper, verify=verify)
            assert listed == list(changes(lower, upper, verify_content=verify))
    return listed


@contextmanager
def _both(driver: ZfsDriver, snapshot: Snapshot, base: int) -> Iterator[tuple[Path, Path]]:
    shown = snapshot if snapshot.kind is Kind.ACTIVE else active(snapshot.id, *snapshot.parents)
    with _shown(driver, active(base)) as lower, _shown(driver, shown) as upper:
        yield lower, upper


def _listed(
    driver: ZfsDriver, snapshot: Snapshot, base: int, lower: Path, upper: Path, *, verify: bool
) -> list[Change]:
    """Return the list of the candidates."""
    found = driver.changed_paths(snapshot, SnapshotId(base))
    return list(changes(lower, upper, verify_content=verify, candidates=found))


def _prepared(driver: ZfsDriver) -> None:
    driver.create(active(1))
    with _shown(driver, active(1)) as root:
        edits._populate(root)
    driver.commit(active(1))
    driver.create(active(2, 1))


@pytest.mark.parametrize("name", _EDITS)
def test_the_answer_is_that_of_the_walk(name: str, driver: ZfsDriver) -> None:
    _prepared(driver)
    with _shown(driver, active(2, 1)) as root:
        edits._edit(root, name)
    listed = _check(driver, active(2, 1))
    assert bool(listed) == (name not in {"nothing", "same file by another link"})
    driver.commit(active(2, 1))
    with _both(driver, committed(2, 1), 1) as (lower, upper):
        assert _listed(driver, committed(2, 1), 1, lower, upper, verify=True) == listed


def test_more_than_one_snapshot_up(driver: ZfsDriver) -> None:
    _prepared(driver)
    for number, edit in ((2, "rename"), (3, "link broken"), (4, "many")):
        if number > 2:
            driver.create(active(number, *range(number - 1, 0, -1)))
        with _shown(driver, active(number, *range(number - 1, 0, -1))) as root:
            edits._edit(root, edit)
        driver.commit(active(number, *range(number - 1, 0, -1)))
    assert any(change.path == b"renamed/f" for change in _check(driver, committed(4, 3, 2, 1)))


def test_on_one_that_was_committed_later(driver: ZfsDriver) -> None:
    driver.create(active(1))
    with _shown(driver, active(1)) as root:
        edits._populate(root)
    driver.create(active(2, 1))
    driver.commit(active(1))
    with _shown(driver, active(2, 1)) as root:
        edits._edit(root, "swap")
    assert _check(driver, active(2, 1))


def test_names_that_are_no_text(driver: ZfsDriver) -> None:
    _prepared(driver)
    names = [b"line\nfeed", b"not utf-8 \xff\xfe", b"tab\tand \\ and space", b"caf\xc3\xa9", b"n" * 255]
    with _shown(driver, active(2, 1)) as root:
        for name in names:
            (root / "other" / name.decode(errors="surrogateescape")).write_text("odd")
    assert {change.path for change in _check(driver, active(2, 1))} >= {b"other/" + name for name in names}


def test_while_it_is_mounted(driver: ZfsDriver) -> None:
    _prepared(driver)
    with _shown(driver, active(2, 1)) as root:
        (root / "f").write_text("changed")
        assert b"f" in driver.changed_paths(active(2, 1), SnapshotId(1)).paths


def test_what_it_does_not_tell_is_walked(driver: ZfsDriver) -> None:
    _prepared(driver)
    assert isinstance(driver, NativeChanges)
    driver.create(view(3, 1))
    with pytest.raises(Unsupported, match="a view"):
        driver.changed_paths(view(3, 1), SnapshotId(1))
