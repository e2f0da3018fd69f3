"""What btrfs does beyond the contract: flags, subvolumes inside snapshots, quotas, and where it does not work."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.contract import SnapshotId
from layerfs.errors import InvalidArgument, Unsupported
from layerfs.kernel import qgroups
from layerfs.kernel.mounting import mounted
from layerfs.testing.driver_rules import active, view
from layerfs.testing.trees import contents, describe, write
from layerfs_backends.btrfs import BtrfsDriver, open_driver
from tests.support import drivers

_MEBIBYTE = 1 << 20
_CLEANED_WITHIN = 60.0
"""Seconds that the kernel's cleaner may take for a deleted subvolume; it runs every 30."""


@pytest.fixture
def driver(btrfs_dir: Path) -> Iterator[BtrfsDriver]:
    opened = open_driver(btrfs_dir / "b", {})
    assert isinstance(opened, BtrfsDriver)
    yield opened
    for number in sorted(opened.ids(), reverse=True):
        opened.remove(number)


def _btrfs(*arguments: str | Path) -> str:
    """Use btrfs's own tool as the second opinion."""
    done = subprocess.run(["btrfs", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def _root(driver: BtrfsDriver, number: int) -> Path:
    return driver.layer_root(active(number)).path


@pytest.mark.root
class TestSubvolumes:
    def test_commit_sets_the_flag_for_those_who_write_too(self, driver: BtrfsDriver) -> None:
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path, open(path / "file", "wb", buffering=0) as file:
            file.write(b"before")
            driver.commit(active(1))
            with pytest.raises(OSError, match="Read-only") as caught:
                (path / "other").touch()
            assert caught.value.errno == errno.EROFS
        assert _btrfs("property", "get", _root(driver, 1), "ro").strip() == "ro=true"

    def test_views_are_read_only_by_themselves(self, driver: BtrfsDriver) -> None:
        driver.create(active(1))
        driver.commit(active(1))
        driver.create(view(2, 1))
        driver.create(view(3))
        for number in (2, 3):
            assert _btrfs("property", "get", _root(driver, number), "ro").strip() == "ro=true"

    def test_the_try_leaves_no_subvolume(self, driver: BtrfsDriver, btrfs_dir: Path) -> None:
        assert list(driver.ids()) == []
        assert os.listdir(btrfs_dir / "b") == [".tried"]
        assert str(btrfs_dir.name) not in _btrfs("subvolume", "list", btrfs_dir)

    def test_what_a_killed_try_left_is_cleared(self, btrfs_dir: Path) -> None:
        (btrfs_dir / "b" / ".try").mkdir(parents=True)
        _btrfs("subvolume", "create", btrfs_dir / "b" / ".try" / "origin")
        _btrfs(
            "subvolume", "snapshot", "-r", btrfs_dir / "b" / ".try" / "origin", btrfs_dir / "b" / ".try" / "snapshot"
        )
        open_driver(btrfs_dir / "b", {})
        assert os.listdir(btrfs_dir / "b") == [".tried"]


@pytest.mark.root
class TestNestedSubvolumes:
    def _nest(self, path: Path) -> dict[str, str]:
        """Make subvolumes as a build tool or a container engine inside the clone does."""
        write(path, file="plain", dir__file="plain")
        _btrfs("subvolume", "create", path / "dir" / "sub")
        write(path, dir__sub__file="nested")
        (path / "dir" / "sub" / "link").hardlink_to(path / "dir" / "sub" / "file")
        _btrfs("subvolume", "create", path / "dir" / "sub" / "deeper")
        write(path, dir__sub__deeper__file="deep")
        _btrfs("subvolume", "snapshot", path / "dir" / "sub", path / "frozen")
        (path / "frozen" / "deeper").rmdir()  # the place of what a snapshot leaves out; it has the present as its time
        _btrfs("subvolume", "create", path / "frozen" / "inner")
        _btrfs("property", "set", path / "frozen", "ro", "true")
        return contents(path)

    def test_they_are_part_of_the_layer(self, driver: BtrfsDriver) -> None:
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            self._nest(path)
            before = describe(path, times=True)
        driver.commit(active(1))
        driver.create(active(2, 1))
        with mounted(driver.mounts(active(2, 1))) as path:
            assert describe(path, times=True) == before
            write(path, dir__sub__deeper__file="changed")
        assert _btrfs("subvolume", "list", "-o", _root(driver, 1)).strip() == ""

    def test_they_are_part_of_a_child_made_before_the_commit(self, driver: BtrfsDriver) -> None:
        """A checkpoint makes the successor first, so that it can fail without harm."""
        driver.create(active(1))
        expected = self._nest(_root(driver, 1))
        driver.create(active(2, 1))
        assert contents(_root(driver, 2)) == expected

    @pytest.mark.parametrize("exchanged", [False, True])
    def test_a_commit_that_was_killed_is_finished(self, driver: BtrfsDriver, *, exchanged: bool) -> None:
        driver.create(active(1))
        root = _root(driver, 1)
        write(root, file="plain")
        _btrfs("subvolume", "create", root / "sub")
        write(root, sub__file="nested")
        number = _btrfs("subvolume", "show", root / "sub").split("Subvolume ID:")[1].split()[0]
        aside = root / f".layerfs-folded-{number}"
        if exchanged:
            (root / "sub").rename(aside)
            write(root, sub__file="nested")
        else:
            write(aside, half="copied")
        driver.commit(active(1))
        assert contents(root) == {"file": "plain", "sub": "/", "sub/file": "nested"}

    def test_remove_takes_them_along(self, driver: BtrfsDriver, btrfs_dir: Path) -> None:
        driver.create(active(1))
        self._nest(_root(driver, 1))
        driver.remove(SnapshotId(1))
        assert list(driver.ids()) == []
        assert btrfs_dir.name not in _btrfs("subvolume", "list", btrfs_dir)

    def test_remove_of_what_is_frozen_takes_them_along(self, driver: BtrfsDriver) -> None:
        driver.create(active(1))
        self._nest(_root(driver, 1))
        _btrfs("property", "set", _root(driver, 1), "ro", "true")
        driver.remove(SnapshotId(1))
        assert list(driver.ids()) == []


@pytest.mark.root
class TestUsage:
    def _grow(self, driver: BtrfsDriver) -> int:
        """Change one block of a file of 8 MiB in a child, and return what the child is said to take."""
        driver.create(active(1))
        (_root(driver, 1) / "big").write_bytes(os.urandom(8 * _MEBIBYTE))
        driver.commit(active(1))
        driver.create(active(2, 1))
        with open(_root(driver, 2) / "big", "r+b") as file:
            file.write(b"x")
        used = driver.usage(active(2, 1))
        assert used.inodes == 1
        return used.size

    def test_without_quotas_the_file_counts(self, driver: BtrfsDriver) -> None:
        assert self._grow(driver) == 8 * _MEBIBYTE

    def test_with_quotas_the_block_counts(self) -> None:
        with drivers.btrfs() as mount:
            _btrfs("quota", "enable", mount)
            _btrfs("quota", "rescan", "-w", mount)
            driver = open_driver(mount / "b", {})
            assert isinstance(driver, BtrfsDriver)
            assert self._grow(driver) <= 256 << 10
            assert driver.usage(active(1)).size <= 256 << 10  # its child shares the rest
            number = int(_btrfs("subvolume", "show", _root(driver, 2)).split("Subvolume ID:")[1].split()[0])
            assert qgroups.exclusive(mount, number) is not None
            driver.remove(SnapshotId(2))
            assert driver.usage(active(1)).size >= 8 * _MEBIBYTE or self._cleaned(mount, number)
            assert self._cleaned(mount, number)
            assert qgroups.exclusive(mount, number) is None
            assert f"0/{number}" not in _btrfs("qgroup", "show", mount)
            driver.remove(SnapshotId(1))

    def _cleaned(self, mount: Path, number: int) -> bool:
        _btrfs("subvolume", "sync", mount)
        deadline = time.monotonic() + _CLEANED_WITHIN
        while f"0/{number}" in _btrfs("qgroup", "show", mount):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True


@pytest.mark.root
def test_elsewhere_it_says_so(fresh_dir: Path) -> None:
    with pytest.raises(Unsupported, match="not on btrfs") as caught:
        open_driver(fresh_dir / "b", {})
    assert "--loop" in (caught.value.hint or "")
    assert os.listdir(fresh_dir) == []


@pytest.mark.root
def test_without_the_library_it_says_so(btrfs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "btrfsutil", None)  # what makes an import fail (importlib's rule)
    with pytest.raises(Unsupported, match="btrfsutil") as caught:
        open_driver(btrfs_dir / "b", {})
    assert "libbtrfsutil-dev" in (caught.value.hint or "")
    assert os.listdir(btrfs_dir) == []


@pytest.mark.root
def test_options_are_checked(btrfs_dir: Path) -> None:
    with pytest.raises(InvalidArgument, match="subvol"):
        open_driver(btrfs_dir / "b", {"subvol": "x"})
