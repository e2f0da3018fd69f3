"""What holds of quotas (`layerfs.contract.Quotas`): limits to one block, kept by successors and across restarts."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from layerfs.contract import NO_QUOTA, Driver, Quota, Quotas, Snapshot
from layerfs.errors import NoSpace, Unsupported
from layerfs.kernel.mounting import mounted
from layerfs.metadata import quotas
from layerfs.metadata.database import Database
from layerfs.snapshotter import Snapshotter
from layerfs.testing.driver_rules import active
from layerfs.testing.fixtures import Bench, DriverFixtures, OpenDriver, Shown, Stack

_MEBIBYTE = 1 << 20
_PIECE = 64 << 10
_FULL = frozenset({errno.EDQUOT, errno.ENOSPC})
_SMALL, _LARGE = Quota(size=8 * _MEBIBYTE), Quota(size=12 * _MEBIBYTE)


def limited(number: int, quota: Quota, *parents: int) -> Snapshot:
    """Return an active snapshot with a quota as a driver is told of it."""
    return replace(active(number, *parents), quota=quota)


class QuotaRefusalRules(DriverFixtures):
    """Tests of what is not there: ``limits`` names what can be limited where the tests run, "size" and "inodes"."""

    limits: ClassVar[frozenset[str]] = frozenset()

    def test_what_cannot_be_limited_is_refused(self, driver: Driver) -> None:
        """Nobody believes in a limit that does not hold."""
        for name, quota in (("size", _SMALL), ("inodes", Quota(inodes=100))):
            if name in self.limits or not isinstance(driver, Quotas):
                continue
            with pytest.raises(Unsupported) as caught:
                driver.create(limited(1, quota))
            assert caught.value.hint
            assert list(driver.ids()) == []
            driver.create(active(1))
            with pytest.raises(Unsupported):
                driver.set_quota(limited(1, quota))
            driver.set_quota(active(1))
            driver.remove(active(1).id)


class QuotaContract(QuotaRefusalRules):
    """Tests of `layerfs.contract.Quotas`, for where a driver holds some; set ``limits`` to which.

    ``block`` is how many bytes may be left where nothing fits any more: a block of the file system; ``over`` how many
    may be there beyond the limit, because the file system counts later. ``rewrites`` tells that writing over what lies
    below counts, as it does unless the driver shares blocks underneath the file system; ``lowers`` that a limit may be
    set below what is there, which some file systems refuse.
    """

    block: ClassVar[int] = 4096
    over: ClassVar[int] = 0
    rewrites: ClassVar[bool] = True
    lowers: ClassVar[bool] = True

    @pytest.fixture
    def held(self, driver: Driver) -> Quotas:
        """Give the driver as one that has quotas."""
        assert isinstance(driver, Quotas)
        return driver

    @staticmethod
    def writer() -> AbstractContextManager[None]:
        """Write as somebody whom quotas bind, where they do not bind everybody."""
        return unchanged()

    def test_bytes(self, driver: Driver, held: Quotas, shown: Shown) -> None:
        """A snapshot takes what its quota says, and after a deletion there is room again."""
        snapshot = limited(1, _SMALL)
        driver.create(snapshot)
        with shown(snapshot) as root, self.writer():
            fill(root / "file")
            self.check_full(held, snapshot)
            with pytest.raises(OSError, match=r"quota|space") as caught:
                fill(root / "other", 4 * self.block)
            assert caught.value.errno in _FULL
            (root / "file").unlink()
            settle(root)
            assert fill(root / "file", 4 * _MEBIBYTE) == 4 * _MEBIBYTE

    def test_parents_do_not_count(self, driver: Driver, held: Quotas, shown: Shown) -> None:
        """What is below is free, but for a driver that copies it."""
        driver.create(active(1))
        with shown(active(1)) as root:
            (root / "big").write_bytes(os.urandom(10 * _MEBIBYTE))
        driver.commit(active(1))
        copies = driver.traits.copy_unit == "tree"
        snapshot = limited(2, Quota(size=(18 if copies else 8) * _MEBIBYTE), 1)
        driver.create(snapshot)
        with shown(snapshot) as root, self.writer():
            assert fill(root / "file") > 7 * _MEBIBYTE
            self.check_full(held, snapshot)

    def test_a_first_write_to_lower_data_counts(self, driver: Driver, held: Quotas, shown: Shown) -> None:
        """What a copy-up or a copied block takes counts too, and what does not fit leaves the lower file as it was."""
        driver.create(active(1))
        with shown(active(1)) as root:
            (root / "big").write_bytes(os.urandom(10 * _MEBIBYTE))
        driver.commit(active(1))
        if driver.traits.copy_unit == "tree":
            with pytest.raises((OSError, NoSpace)):
                driver.create(limited(2, _SMALL, 1))
            return
        snapshot = limited(2, _SMALL, 1)
        driver.create(snapshot)
        with shown(snapshot) as root, self.writer():
            before = (root / "big").read_bytes()
            if not self.rewrites:
                overwrite(root / "big")
                return
            with pytest.raises(OSError, match=r"quota|space") as caught:
                overwrite(root / "big")
            assert caught.value.errno in _FULL
            assert len((root / "big").read_bytes()) == len(before)
            assert (root / "big").read_bytes()[-_MEBIBYTE:] == before[-_MEBIBYTE:]
        assert held.quota_usage(snapshot).size <= 8 * _MEBIBYTE + self.over

    def test_inodes(self, driver: Driver, held: Quotas, shown: Shown) -> None:
        """Names of every kind count, hard links do not, and what is deleted makes room."""
        if "inodes" not in self.limits:
            return
        snapshot = limited(1, Quota(inodes=40))
        driver.create(snapshot)
        with shown(snapshot) as root, self.writer():
            made = populate(root)
            assert held.quota_usage(snapshot).inodes == 40
            assert made >= 30
            (root / "link").hardlink_to(root / "0")
            with pytest.raises(OSError, match=r"quota|space"):
                (root / "x").mkdir()
            with pytest.raises(OSError, match=r"quota|space"):
                (root / "x").symlink_to("y")
            (root / "link").unlink()
            (root / "0").unlink()
            (root / "x").touch()
        assert held.quota_usage(snapshot).inodes == 40

    def test_raised_lowered_and_lifted_while_mounted(self, driver: Driver, held: Quotas, shown: Shown) -> None:
        """A new limit holds at once; what is beyond it stays, and cannot grow."""
        snapshot = limited(1, _SMALL)
        driver.create(snapshot)
        with shown(snapshot) as root, self.writer():
            first = fill(root / "file")
            held.set_quota(limited(1, _LARGE))
            held.set_quota(limited(1, _LARGE))
            assert fill(root / "more") >= 3 * _MEBIBYTE
            self.check_full(held, limited(1, _LARGE))
            if self.lowers:
                held.set_quota(limited(1, Quota(size=4 * _MEBIBYTE)))
            else:
                with pytest.raises(NoSpace, match="already"):
                    held.set_quota(limited(1, Quota(size=4 * _MEBIBYTE)))
            with pytest.raises(OSError, match=r"quota|space"):
                fill(root / "again", 4 * self.block)
            assert (root / "file").stat().st_size == first
            held.set_quota(limited(1, NO_QUOTA))
            assert fill(root / "again", 8 * _MEBIBYTE) == 8 * _MEBIBYTE

    def test_another_instance_and_mount(self, driver: Driver, shown: Shown, open_driver: OpenDriver) -> None:
        """A restart changes nothing, and neither does the next mount."""
        snapshot = limited(1, _SMALL)
        driver.create(snapshot)
        with shown(snapshot) as root, self.writer():
            fill(root / "file", 6 * _MEBIBYTE)
        other = open_driver()
        assert isinstance(other, Quotas)
        with mounted(other.mounts(snapshot)) as root, self.writer():
            assert fill(root / "more") < 3 * _MEBIBYTE
            self.check_full(other, snapshot)
        other.close()

    def test_siblings_and_children_have_their_own(
        self, driver: Driver, held: Quotas, shown: Shown, stack: Stack
    ) -> None:
        """One that is full keeps nobody else from writing, and neither does what was committed under a quota."""
        stack(1)
        for number in (2, 3):
            driver.create(limited(number, _SMALL, 1))
        with shown(limited(2, _SMALL, 1)) as root, self.writer():
            fill(root / "file")
        with shown(limited(3, _SMALL, 1)) as root, self.writer():
            assert fill(root / "file", 4 * _MEBIBYTE) == 4 * _MEBIBYTE
        driver.commit(limited(2, _SMALL, 1))
        driver.create(active(4, 2, 1))
        with shown(active(4, 2, 1)) as root, self.writer():
            assert fill(root / "more", 9 * _MEBIBYTE) == 9 * _MEBIBYTE
        assert held.quota_usage(limited(3, _SMALL, 1)).size >= 4 * _MEBIBYTE

    def test_the_snapshotter_keeps_it(self, bench: Bench) -> None:
        """A checkpoint and a reset hand it on, a commit ends it."""
        snapshotter = bench.snapshotter
        snapshotter.prepare("key", quota=_SMALL)
        snapshotter.checkpoint("first", "key")
        assert snapshotter.quotas.get("key") == _SMALL
        snapshotter.reset("key", "first")
        assert snapshotter.quotas.get("key") == _SMALL
        with bench.mounted("key") as root, self.writer():
            fill(root / "file", 64 * _MEBIBYTE)
        assert snapshotter.quotas.usage("key").size <= 8 * _MEBIBYTE + self.over
        snapshotter.commit("second", "key")
        assert snapshotter.quotas.get("second") == NO_QUOTA
        for name in ("second", "first"):
            snapshotter.remove(name)

    def test_a_full_snapshot_goes_on_after_a_checkpoint(self, driver: Driver, bench: Bench) -> None:
        """What is committed is no longer its own, so there is room again; a driver that copies it says why not."""
        snapshotter = bench.snapshotter
        snapshotter.prepare("key", quota=_SMALL)
        with bench.mounted("key") as root, self.writer():
            fill(root / "file")
        if driver.traits.copy_unit == "tree":
            snapshotter.quotas.set("key", Quota(size=4 * _MEBIBYTE))
            with self.writer(), pytest.raises(NoSpace, match="the quota of 'key' is 4194304 bytes") as caught:
                snapshotter.checkpoint("first", "key")
            assert "layerfs quota" in (caught.value.hint or "")
            assert snapshotter.stat("key").parent == ""
            return
        snapshotter.checkpoint("first", "key")
        with bench.mounted("key") as root, self.writer():
            assert fill(root / "more", 4 * _MEBIBYTE) == 4 * _MEBIBYTE
        for name in ("key", "first"):
            snapshotter.remove(name)

    def test_what_a_crash_left_is_finished(self, driver: Driver, bench: Bench, tmp_path: Path) -> None:
        """A row that the driver was not told of holds when the store is opened again."""
        bench.snapshotter.prepare("key")
        database = Database(tmp_path / "meta.db")
        with database.write() as connection:
            quotas.put(connection, bench.snapshotter.snapshot("key").id, _SMALL, applied=False)
        other = Snapshotter(driver, database, tmp_path / "lock")
        with database.read() as connection:
            assert quotas.pending(connection) == []
        with mounted(other.mounts("key")) as root, self.writer():
            fill(root / "file", 64 * _MEBIBYTE)
        assert other.quotas.usage("key").size <= 8 * _MEBIBYTE + self.over
        other.remove("key")
        database.close()

    def check_full(self, held: Quotas, snapshot: Snapshot) -> None:
        """See that a snapshot has what its quota says, to a block."""
        used, limit = held.quota_usage(snapshot).size, snapshot.quota.size or 0
        assert limit - self.block <= used <= limit + self.over


@contextmanager
def unchanged() -> Iterator[None]:
    """Run a block as it is."""
    yield


def fill(path: Path, most: int = 64 * _MEBIBYTE) -> int:
    """Write to a new file what cannot be compressed until it has ``most`` bytes or there is no room; return how many.

    Raise ``OSError`` where there is no room for anything at all.
    """
    done, piece = 0, os.urandom(_PIECE)
    with path.open("wb", buffering=0) as file:
        try:
            while done < most:
                done += file.write(piece[: most - done]) or 0
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _FULL or not done:
                raise
            done += _fill_up(file.fileno())
    return done


def _fill_up(descriptor: int) -> int:
    """Write block by block until not even that fits."""
    done, block = 0, os.urandom(4096)
    try:
        while True:
            done += os.write(descriptor, block)
    except OSError as error:
        if error.errno not in _FULL:
            raise
    return done


def overwrite(path: Path) -> None:
    """Write over all of a file."""
    with path.open("r+b", buffering=0) as file:
        for _ in range(path.stat().st_size // _PIECE):
            file.write(os.urandom(_PIECE))
        os.fsync(file.fileno())


def populate(root: Path) -> int:
    """Make empty files until there is no room for one more; return how many."""
    made = 0
    try:
        while True:
            (root / str(made)).touch()
            made += 1
    except OSError as error:
        if error.errno not in _FULL:
            raise
    return made


def settle(root: Path) -> None:
    """Wait until what was deleted is free again."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.sync()
