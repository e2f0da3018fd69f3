"""Pools of the devicemapper driver: full ones, given devices, and options."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from layerfs.contract import Driver, SnapshotId
from layerfs.errors import FailedPrecondition, NoSpace, Unsupported
from layerfs.kernel import loop, syscalls
from layerfs.kernel.mounting import mounted
from layerfs.testing.driver_rules import active, view
from layerfs.testing.trees import contents, write
from layerfs_backends.devicemapper import DeviceMapperDriver, open_driver
from tests.support import children
from tests.support.thin import MEBIBYTE, OPTIONS, devices

pytestmark = [pytest.mark.guest, pytest.mark.driver("devicemapper")]


class TestRoom:
    @pytest.fixture
    def small(self, fresh_dir: Path) -> Iterator[DeviceMapperDriver]:
        driver = open_driver(fresh_dir / "d", {"size": "128M", "device-size": "512M"})
        assert isinstance(driver, DeviceMapperDriver)
        yield driver
        for number in sorted(driver.ids(), reverse=True):
            driver.remove(number)
        driver.close()
        assert devices() == set()

    def test_refused_before_the_pool_is_full(self, small: DeviceMapperDriver) -> None:
        small.create(active(1))
        with mounted(small.mounts(active(1))) as path:
            (path / "big").write_bytes(os.urandom(123 * MEBIBYTE))
        small.commit(active(1))
        with pytest.raises(NoSpace, match="nearly full") as caught:
            small.create(active(2, 1))
        assert "prune" in (caught.value.hint or "")
        assert list(small.ids()) == [1]
        small.create(view(3, 1))  # to read what is there
        with mounted(small.mounts(view(3, 1))) as path:
            assert (path / "big").stat().st_size == 123 * MEBIBYTE
        small.remove(SnapshotId(3))
        small.remove(SnapshotId(1))
        small.create(active(4))

    def test_what_did_not_fit_is_not_committed(self, small: DeviceMapperDriver) -> None:
        small.create(active(1))
        with mounted(small.mounts(active(1))) as path, pytest.raises(OSError, match=r"space|Input"):
            self._write_synced(path / "big", 200 * MEBIBYTE)
        with pytest.raises(NoSpace):
            small.commit(active(1))
        small.remove(SnapshotId(1))
        small.create(active(2))
        with mounted(small.mounts(active(2))) as path:
            (path / "big").write_bytes(os.urandom(32 * MEBIBYTE))
        small.commit(active(2))

    def _write_synced(self, path: Path, size: int) -> None:
        with open(path, "wb") as file:
            file.write(os.urandom(size))
            file.flush()
            os.fsync(file.fileno())

    def test_what_does_not_fit_its_device(self, fresh_dir: Path) -> None:
        """The size of the device is the quota of each snapshot: what is over it is refused inside, and nowhere else."""
        driver = open_driver(fresh_dir / "d", {"size": "256M", "device-size": "64M"})
        for number in (1, 2):
            driver.create(active(number))
        with mounted(driver.mounts(active(1))) as path:
            with pytest.raises(OSError, match="No space left"):
                self._write_synced(path / "big", 80 * MEBIBYTE)
            (path / "big").unlink()
            self._write_synced(path / "fits", 16 * MEBIBYTE)
        with mounted(driver.mounts(active(2))) as path:
            self._write_synced(path / "fits", 16 * MEBIBYTE)
        driver.commit(active(1))
        driver.remove(SnapshotId(2))
        driver.remove(SnapshotId(1))
        driver.close()

    def test_refused_before_the_metadata_are_full(self, fresh_dir: Path) -> None:
        with ExitStack() as stack:
            options = {"device-size": "64M"}
            for name, size in (("data", 128 * MEBIBYTE), ("metadata", MEBIBYTE // 2)):
                loop.create_image(fresh_dir / name, size)
                options[name] = str(stack.enter_context(loop.attach(fresh_dir / name)).path)
            driver = open_driver(fresh_dir / "d", options)
            with pytest.raises(NoSpace, match="metadata") as caught:
                self._create_many(driver)
            assert "prune" in (caught.value.hint or "")
            made = sorted(driver.ids())
            assert len(made) > 10
            driver.create(view(1000, made[0]))
            for number in (*made[:-1], SnapshotId(1000)):
                driver.remove(number)
            driver.create(active(1001))
            for number in (made[-1], SnapshotId(1001)):
                driver.remove(number)
            driver.close()

    def _create_many(self, driver: Driver) -> None:
        """Make clones that differ in a block here and there: each takes metadata of its own, and little else."""
        for number in range(1, 500):
            driver.create(active(number))
            with open(driver.mounts(active(number))[0].source, "r+b") as device:
                for place in range(0, 64 * MEBIBYTE, 8 * MEBIBYTE):
                    os.pwrite(device.fileno(), b"x" * 4096, place)
                os.fsync(device.fileno())


class TestGivenDevices:
    @pytest.fixture
    def given(self, fresh_dir: Path) -> Iterator[dict[str, str]]:
        with ExitStack() as stack:
            options: dict[str, str] = {"device-size": "512M"}
            for name, size in (("data", 512 * MEBIBYTE), ("metadata", 16 * MEBIBYTE)):
                loop.create_image(fresh_dir / f"{name}.disk", size)
                options[name] = str(stack.enter_context(loop.attach(fresh_dir / f"{name}.disk")).path)
            yield options

    def test_a_pool_on_them(self, given: dict[str, str], fresh_dir: Path) -> None:
        driver = open_driver(fresh_dir / "d", given)
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            write(path, file="x")
        assert isinstance(driver, DeviceMapperDriver)
        driver.detach()
        driver.close()
        with pytest.raises(FailedPrecondition, match="blank") as caught:
            open_driver(fresh_dir / "another", given)
        assert "dd" in (caught.value.hint or "")
        assert not (fresh_dir / "another").exists()
        again = open_driver(fresh_dir / "d", given)
        with mounted(again.mounts(active(1))) as path:
            assert contents(path) == {"file": "x"}
        again.remove(SnapshotId(1))
        again.close()

    def test_somebodys_data_are_not_touched(self, given: dict[str, str], fresh_dir: Path) -> None:
        loop.make_file_system(Path(given["data"]), "ext4")
        before = (fresh_dir / "data.disk").read_bytes()
        with pytest.raises(FailedPrecondition, match="blank"):
            open_driver(fresh_dir / "d", given)
        assert (fresh_dir / "data.disk").read_bytes() == before
        assert devices() == set()

    def test_another_pool_is_not_taken_for_ours(self, given: dict[str, str], fresh_dir: Path) -> None:
        driver = open_driver(fresh_dir / "d", given)
        driver.create(active(1))
        assert isinstance(driver, DeviceMapperDriver)
        driver.detach()
        message_of_another = fresh_dir / "d" / "pool"
        text = message_of_another.read_text(encoding="ascii")
        mark = text.partition('"mark": ')[2].partition(",")[0]
        message_of_another.write_text(text.replace(mark, "77"), encoding="ascii")
        with pytest.raises(FailedPrecondition, match="another pool"):
            open_driver(fresh_dir / "d", given)
        assert devices() == set()
        message_of_another.write_text(text, encoding="ascii")
        again = open_driver(fresh_dir / "d", given)
        again.remove(SnapshotId(1))
        again.close()


def test_options_against_the_pool(driver: DeviceMapperDriver, root: Path) -> None:
    assert list(driver.ids()) == []
    for options in ({"fs": "xfs"}, {"size": "2G"}, {"device-size": "1G"}):
        with pytest.raises(FailedPrecondition, match="was made with"):
            open_driver(root, options)
    open_driver(root, {}).close()


def _without_tools(root: Path) -> None:
    """Open a new pool where /usr/sbin, in which Debian has the makers of file systems, is empty."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    syscalls.mount(b"none", b"/usr/sbin", b"tmpfs", 0)
    with pytest.raises(Unsupported, match=r"mkfs\.xfs") as caught:
        open_driver(root, OPTIONS | {"fs": "xfs"})
    assert "xfsprogs" in (caught.value.hint or "")


def test_a_tool_that_is_missing_is_named(fresh_dir: Path) -> None:
    assert os.waitpid(children.start(partial(_without_tools, fresh_dir / "d")), 0)[1] == 0
    assert os.listdir(fresh_dir) == []
    assert devices() == set()
