"""Thin devices: when they are there, what they hold, and what brings them back."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from layerfs.contract import Snapshot, SnapshotId
from layerfs.errors import Busy, Corrupt, NotFound
from layerfs.kernel import loop
from layerfs.kernel.mounting import mounted
from layerfs.testing.driver_rules import active, view
from layerfs.testing.trees import contents, write
from layerfs_backends.devicemapper import DeviceMapperDriver, open_driver
from layerfs_backends.thin.ledger import Entry, Ledger, State
from tests.support.thin import MEBIBYTE, OPTIONS, Open, devices, mapped_blocks, message, power_cut, used_blocks

pytestmark = [pytest.mark.guest, pytest.mark.driver("devicemapper")]


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


class TestDevices:
    def test_only_what_can_be_mounted_is_a_device(self, driver: DeviceMapperDriver) -> None:
        driver.create(active(1))
        driver.create(view(2))
        assert {name.rpartition("-")[2] for name in devices()} == {"pool", "1", "2"}
        driver.commit(active(1))
        assert {name.rpartition("-")[2] for name in devices()} == {"pool", "2"}
        driver.remove(SnapshotId(1))
        driver.remove(SnapshotId(2))
        assert devices() == set()

    def test_a_snapshot_of_what_is_mounted_is_whole(self, driver: DeviceMapperDriver) -> None:
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            write(path, dir__file="just written", other="as well")
            driver.create(active(2, 1))
            write(path, later="not in it")
            with mounted(driver.mounts(active(2, 1))) as child:
                assert contents(child) == {"dir": "/", "dir/file": "just written", "other": "as well"}

    def test_what_is_mounted_is_not_committed(self, driver: DeviceMapperDriver) -> None:
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            write(path, file="x")
            with pytest.raises(Busy) as caught:
                driver.commit(active(1))
            assert caught.value.hint
            write(path, more="x")
        driver.commit(active(1))
        driver.create(view(2, 1))
        with mounted(driver.mounts(view(2, 1))) as path:
            assert set(contents(path)) == {"file", "more"}

    def test_what_is_mounted_is_not_removed(self, driver: DeviceMapperDriver) -> None:
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            write(path, file="x")
            with pytest.raises(Busy):
                driver.remove(SnapshotId(1))
            assert driver.ids() == {1}
            assert contents(path) == {"file": "x"}
        driver.remove(SnapshotId(1))

    def test_a_device_removed_behind_our_back_is_told_and_comes_back(
        self, driver: DeviceMapperDriver, opened: Open
    ) -> None:
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            write(path, file="x")
        assert list(driver.check([active(1)])) == []
        place = Path(driver.mounts(active(1))[0].source)
        subprocess.run(["dmsetup", "remove", place.name], check=True)
        with pytest.raises(Corrupt, match=place.name):
            driver.usage(active(1))
        (damage,) = driver.check([active(1)])
        assert damage.id == 1
        assert "taken from the kernel" in damage.message
        assert "store close" in damage.hint
        assert place.name not in devices()  # nothing is changed
        assert driver.detach()
        with mounted(opened().mounts(active(1))) as path:
            assert contents(path) == {"file": "x"}

    def test_a_thin_device_deleted_behind_our_back_is_told(self, driver: DeviceMapperDriver, opened: Open) -> None:
        snapshots = [active(1), active(2), active(3, 1)]
        for snapshot in snapshots:
            driver.create(snapshot)
        driver.commit(active(1))
        place = Path(driver.mounts(active(2))[0].source)
        subprocess.run(["dmsetup", "remove", place.name], check=True)
        for number in (1, 2):
            message(f"delete {number}")
        damages = {damage.id: damage for damage in driver.check(snapshots)}
        assert damages.keys() == {1, 2}
        assert all("any more" in damage.message and "import" in damage.hint for damage in damages.values())
        with pytest.raises(OSError, match="No data"):
            driver.create(active(4, 1))
        assert driver.detach()
        again = opened()  # it opens all the same
        assert {damage.id for damage in again.check(snapshots)} == {1, 2}
        with mounted(again.mounts(active(3, 1))) as path:
            assert contents(path) == {}
        for number in (1, 2):
            again.remove(SnapshotId(number))
        assert list(again.check([active(3, 1)])) == []

    def test_a_block_shows_nothing_of_what_had_it_before(self, root: Path) -> None:
        """Else the journal of a sibling could be there when a file system recovers from a crash."""
        driver = open_driver(root, {**OPTIONS, "discard": "no"})
        driver.create(active(1))
        with open(driver.mounts(active(1))[0].source, "wb") as device:
            device.seek(64 * MEBIBYTE)
            device.write(b"old " * (8 * MEBIBYTE))
        driver.remove(SnapshotId(1))
        driver.create(active(2))
        with open(driver.mounts(active(2))[0].source, "r+b") as device:
            for place in range(64 * MEBIBYTE, 96 * MEBIBYTE, 65536):
                device.seek(place)
                device.write(b"new ")
            device.flush()
            os.fsync(device.fileno())
            os.posix_fadvise(device.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for place in range(64 * MEBIBYTE, 96 * MEBIBYTE, 65536):
                device.seek(place)
                assert device.read(65536).rstrip(b"\0") == b"new "
        driver.close()

    def test_usage_is_what_it_maps_beyond_its_parent(self, driver: DeviceMapperDriver) -> None:
        chain = [active(1), active(2, 1), active(3, 2, 1)]
        sizes: dict[int, int] = {}
        for snapshot, size in zip(chain, (3, 5, 0), strict=True):
            driver.create(snapshot)
            with mounted(driver.mounts(snapshot)) as path:
                (path / f"file-{snapshot.id}").write_bytes(os.urandom(size * MEBIBYTE))
            driver.commit(snapshot)
            sizes[snapshot.id] = driver.usage(snapshot).size
        driver.create(active(4, 3, 2, 1))
        with mounted(driver.mounts(active(4, 3, 2, 1))) as path:
            (path / "file-1").unlink()
            (path / "file-4").write_bytes(os.urandom(7 * MEBIBYTE))
        mapped = mapped_blocks()
        for snapshot in chain:
            assert sizes[snapshot.id] == 65536 * (mapped[snapshot.id] - mapped[snapshot.parent or 0])
        assert driver.usage(active(4, 3, 2, 1)).size == 65536 * (mapped[4] - mapped[3])

    def test_usage_of_what_is_mounted(self, driver: DeviceMapperDriver) -> None:
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            (path / "big").write_bytes(os.urandom(3 * MEBIBYTE))
            used = driver.usage(active(1))
            assert 3 * MEBIBYTE <= used.size < 5 * MEBIBYTE
            assert used.inodes == 2  # with the root directory

    def test_space_goes_back_to_the_disk(self, driver: DeviceMapperDriver, root: Path) -> None:
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            (path / "big").write_bytes(os.urandom(32 * MEBIBYTE))
        driver.commit(active(1))
        full, used = allocated(root / "data.img"), used_blocks()
        driver.create(active(2, 1))
        driver.remove(SnapshotId(2))
        with mounted(driver.mounts(self._clone(driver, 3))) as path:
            assert (path / "big").stat().st_size == 32 * MEBIBYTE
            driver.remove(SnapshotId(1))  # shared with the clone
        assert allocated(root / "data.img") >= full - 2 * MEBIBYTE
        driver.create(active(4))  # the pool stays up
        driver.remove(SnapshotId(3))
        assert allocated(root / "data.img") <= full - 30 * MEBIBYTE
        assert used_blocks() <= used - 30 * MEBIBYTE // 65536

    def _clone(self, driver: DeviceMapperDriver, number: int) -> Snapshot:
        driver.create(active(number, 1))
        return active(number, 1)


class TestRestart:
    def test_detached_and_opened_again(self, driver: DeviceMapperDriver, opened: Open, root: Path) -> None:
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            write(path, file="x")
            with pytest.raises(Busy):
                driver.detach()
        driver.commit(active(1))
        driver.create(active(2, 1))
        before = driver.mounts(active(2, 1))
        assert driver.detach()
        assert devices() == set()
        assert loop.find(root / "data.img") == ()
        assert not driver.detach()
        again = opened()
        assert again.mounts(active(2, 1)) == before
        assert {name.rpartition("-")[2] for name in devices()} == {"pool", "2"}
        with mounted(before) as path:
            assert contents(path) == {"file": "x"}
        again.create(active(3, 1))

    def test_a_start_that_was_killed_is_finished(self, driver: DeviceMapperDriver, opened: Open, root: Path) -> None:
        driver.create(active(1))
        driver.create(active(2))
        (pool,) = (name for name in devices() if name.endswith("-pool"))
        place = Path(driver.mounts(active(1))[0].source)
        subprocess.run(["dmsetup", "remove", place.name], check=True)
        subprocess.run(["dmsetup", "rename", pool, pool.replace("-pool", "-starting")], check=True)
        opened()
        assert {name.rpartition("-")[2] for name in devices()} == {"pool", "1", "2"}
        with mounted(driver.mounts(active(1))) as path:
            assert contents(path) == {}
        assert root.exists()

    def test_a_half_made_device_is_made_anew(self, driver: DeviceMapperDriver, opened: Open) -> None:
        driver.create(active(1))
        (pool,) = (name for name in devices() if name.endswith("-pool"))
        place = Path(driver.mounts(active(1))[0].source)
        starting = pool.replace("-pool", "-starting")
        for name in (place.name, pool):
            subprocess.run(["dmsetup", "remove", name], check=True)
        for name in (place.name, starting):
            subprocess.run(["dmsetup", "create", name, "--notable"], check=True)
        opened()
        with mounted(driver.mounts(active(1))) as path:
            assert contents(path) == {}

    def test_a_ledger_that_is_gone_costs_no_data(self, driver: DeviceMapperDriver, opened: Open, root: Path) -> None:
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            write(path, file="x")
        driver.detach()
        driver.close()
        (root / "ledger").rename(root / "away")
        with pytest.raises(Corrupt, match="ledger") as caught:
            opened()
        assert "backup" in (caught.value.hint or "")
        assert devices() == set()
        (root / "away").rename(root / "ledger")
        with mounted(opened().mounts(active(1))) as path:
            assert contents(path) == {"file": "x"}

    def test_a_power_cut_loses_no_device(self, driver: DeviceMapperDriver, opened: Open, root: Path) -> None:
        """Lines that did not reach the disk are written anew for the devices that the pool has, and for no others."""
        driver.create(active(1))
        driver.create(active(2))
        driver.create(active(3))
        ledger = Ledger(root)
        with mounted(driver.mounts(active(2))) as path:
            write(path, file="synced")
        power_cut()
        ledger.drop(SnapshotId(2))
        ledger.change(Entry(SnapshotId(3), State.CREATING))
        ledger.add(Entry(SnapshotId(4), State.CREATING))  # its device was not made
        again = opened()
        assert set(again.ids()) == {1, 2, 3}
        with mounted(again.mounts(active(2))) as path:
            assert contents(path) == {"file": "synced"}
        again.create(active(4, 2))

    def test_a_removal_that_a_power_cut_undid_is_done_again(
        self, driver: DeviceMapperDriver, opened: Open, root: Path
    ) -> None:
        driver.create(active(1))
        driver.create(active(2))
        driver.remove(SnapshotId(2))
        power_cut()
        Ledger(root).add(Entry(SnapshotId(2), State.OPEN))  # the line is back
        again = opened()
        assert set(again.ids()) == {1, 2}
        again.remove(SnapshotId(2))
        assert set(again.ids()) == {1}

    @pytest.mark.parametrize("there", [False, True])
    def test_half_made_devices_can_be_removed(self, driver: DeviceMapperDriver, root: Path, *, there: bool) -> None:
        driver.create(active(1))
        ledger = Ledger(root)
        ledger.add(Entry(SnapshotId(2), State.CREATING, SnapshotId(1)))
        place = Path(driver.mounts(active(1))[0].source)
        subprocess.run(["dmsetup", "suspend", place.name], check=True)
        if there:
            message("create_snap 2 1")
        with pytest.raises(NotFound):
            driver.create(active(3, 2))
        assert set(driver.ids()) == {1, 2}
        driver.remove(SnapshotId(2))
        assert set(driver.ids()) == {1}
        with mounted(driver.mounts(active(1))) as path:  # would wait for ever on a device that rests
            write(path, file="x")
