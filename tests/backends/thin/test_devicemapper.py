"""The devicemapper driver on real pools: the contract, and what it does beyond it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

import layerfs
from layerfs.contract import Snapshot, SnapshotId
from layerfs.errors import Busy, Corrupt, FailedPrecondition, LayerfsError, NoSpace, NotFound
from layerfs.kernel import loop
from layerfs.kernel.children import fork
from layerfs.kernel.mounting import mounted
from layerfs.testing import DriverContract
from layerfs.testing.driver_rules import active, view
from layerfs.testing.trees import contents, write
from layerfs_backends.devicemapper import DeviceMapperDriver, open_driver
from layerfs_backends.thin.ledger import Entry, Ledger, State
from tests.support import drivers, invariants
from tests.support.images import BASE, EDIT, SHRINK, write_layout

pytestmark = [pytest.mark.guest, pytest.mark.driver("devicemapper")]

Open = Callable[[], DeviceMapperDriver]

_MEBIBYTE = 1 << 20
_OPTIONS = {"size": "1G", "device-size": "512M"}
_KILLS = 20
_FILES = {f"file-{number}": "x" * 100 * number for number in range(8)}


def devices() -> set[str]:
    """Return the names of our devices, as dmsetup has them."""
    said = subprocess.run(["dmsetup", "ls"], check=True, capture_output=True, text=True).stdout
    return {line.split()[0] for line in said.splitlines() if line.startswith("layerfs-")}


def message(root: Path, text: str) -> None:
    """Send the pool of a driver's directory a message."""
    (pool,) = (name for name in devices() if name.endswith(("-pool", "-starting")))
    subprocess.run(["dmsetup", "message", pool, "0", text], check=True, capture_output=True)
    assert root.exists()


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.fixture(scope="module")
def lasting_root() -> Iterator[Path]:
    """Give a driver's directory for the whole module: a new pool takes a second, one that is there nothing."""
    with drivers.workspace("dm") as path:
        yield path / "devicemapper"


@pytest.fixture
def root(lasting_root: Path) -> Iterator[Path]:
    """Give the directory; in the end the driver can remove all, and the kernel has nothing of it any more."""
    yield lasting_root
    driver = open_driver(lasting_root, _OPTIONS)
    for number in sorted(driver.ids(), reverse=True):
        driver.remove(number)
    driver.close()
    assert devices() == set()
    assert loop.find(lasting_root / "data.img") == ()


@pytest.fixture
def opened(root: Path) -> Iterator[Open]:
    """Give a function that opens the driver."""
    with ExitStack() as stack:

        def make() -> DeviceMapperDriver:
            driver = open_driver(root, _OPTIONS)
            assert isinstance(driver, DeviceMapperDriver)
            stack.callback(driver.close)
            return driver

        yield make


@pytest.fixture
def driver(opened: Open) -> DeviceMapperDriver:
    return opened()


class TestDevicemapper(DriverContract):
    factory = staticmethod(open_driver)
    options = _OPTIONS
    histories = 4  # each has a pool of its own, which takes seconds in the guest

    @pytest.fixture
    def driver_root(self, root: Path) -> Path:
        return root


class TestXfs:
    """The other file system; what is above it is the same."""

    def test_layers_and_clones(self, fresh_dir: Path) -> None:
        driver = open_driver(fresh_dir / "d", {**_OPTIONS, "fs": "xfs"})
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            assert contents(path) == {}
            write(path, one="1")
            (path / "big").write_bytes(bytes(4 * _MEBIBYTE))
        driver.commit(active(1))
        assert driver.usage(active(1)).size >= 4 * _MEBIBYTE
        driver.create(active(2, 1))
        driver.create(active(3, 1))
        with mounted(driver.mounts(active(2, 1))) as path, mounted(driver.mounts(active(3, 1))) as other:
            (path / "one").unlink()
            write(path, two="2")
            write(other, three="3")
            assert set(contents(path)) == {"big", "two"}
            assert set(contents(other)) == {"big", "one", "three"}
        before = driver.usage(active(3, 1))
        with mounted(driver.mounts(active(3, 1))) as path:
            write(path, four="4")
        assert driver.usage(active(3, 1)).inodes == before.inodes + 1
        for number in (1, 2, 3):
            driver.remove(SnapshotId(number))
        driver.close()
        assert devices() == set()


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
        place = Path(driver.mounts(active(1))[0].source)
        subprocess.run(["dmsetup", "remove", place.name], check=True)
        with pytest.raises(Corrupt, match=place.name):
            driver.usage(active(1))
        assert driver.detach()
        with mounted(opened().mounts(active(1))) as path:
            assert contents(path) == {"file": "x"}

    def test_usage_of_what_is_mounted(self, driver: DeviceMapperDriver) -> None:
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            (path / "big").write_bytes(os.urandom(3 * _MEBIBYTE))
            used = driver.usage(active(1))
            assert 3 * _MEBIBYTE <= used.size < 5 * _MEBIBYTE
            assert used.inodes == 2  # with the root directory

    def test_space_goes_back_to_the_disk(self, driver: DeviceMapperDriver, root: Path) -> None:
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            (path / "big").write_bytes(os.urandom(32 * _MEBIBYTE))
        driver.commit(active(1))
        full = allocated(root / "data.img")
        driver.create(active(2, 1))
        driver.remove(SnapshotId(2))
        with mounted(driver.mounts(self._clone(driver, 3))) as path:
            assert (path / "big").stat().st_size == 32 * _MEBIBYTE
            driver.remove(SnapshotId(1))  # shared with the clone
        assert allocated(root / "data.img") >= full - 2 * _MEBIBYTE
        driver.remove(SnapshotId(3))
        assert allocated(root / "data.img") <= full - 30 * _MEBIBYTE

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

    def test_devices_without_a_line_go_after_a_power_cut(
        self, driver: DeviceMapperDriver, opened: Open, root: Path
    ) -> None:
        driver.create(active(1))
        driver.create(active(2))
        lost = Ledger(root).get(SnapshotId(2)).number
        for name in sorted(devices()):  # as a power cut does, the pool last: nothing is settled
            subprocess.run(["dmsetup", "remove", name], check=True)
        Ledger(root).drop(SnapshotId(2))
        again = opened()
        assert again.ids() == {1}
        message(root, f"create_snap {lost} 0")  # fails for a number in use
        message(root, f"delete {lost}")
        again.create(active(3))
        assert Ledger(root).get(SnapshotId(3)).number > lost

    @pytest.mark.parametrize("there", [False, True])
    def test_half_made_devices_can_be_removed(self, driver: DeviceMapperDriver, root: Path, *, there: bool) -> None:
        driver.create(active(1))
        ledger = Ledger(root)
        number = ledger.take_number()
        ledger.add(Entry(SnapshotId(2), State.CREATING, number, SnapshotId(1)))
        place = Path(driver.mounts(active(1))[0].source)
        subprocess.run(["dmsetup", "suspend", place.name], check=True)
        if there:
            message(root, f"create_snap {number} {ledger.get(SnapshotId(1)).number}")
        with pytest.raises(NotFound):
            driver.create(active(3, 2))
        assert set(driver.ids()) == {1, 2}
        driver.remove(SnapshotId(2))
        assert set(driver.ids()) == {1}
        with mounted(driver.mounts(active(1))) as path:  # would wait for ever on a device that rests
            write(path, file="x")


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
            (path / "big").write_bytes(os.urandom(123 * _MEBIBYTE))
        small.commit(active(1))
        with pytest.raises(NoSpace, match="nearly full") as caught:
            small.create(active(2, 1))
        assert "prune" in (caught.value.hint or "")
        assert list(small.ids()) == [1]
        small.create(view(3, 1))  # to read what is there
        with mounted(small.mounts(view(3, 1))) as path:
            assert (path / "big").stat().st_size == 123 * _MEBIBYTE
        small.remove(SnapshotId(3))
        small.remove(SnapshotId(1))
        small.create(active(4))

    def test_what_did_not_fit_is_not_committed(self, small: DeviceMapperDriver) -> None:
        small.create(active(1))
        with mounted(small.mounts(active(1))) as path, pytest.raises(OSError, match=r"space|Input"):
            self._write_synced(path / "big", 200 * _MEBIBYTE)
        with pytest.raises(NoSpace):
            small.commit(active(1))
        small.remove(SnapshotId(1))
        small.create(active(2))
        with mounted(small.mounts(active(2))) as path:
            (path / "big").write_bytes(os.urandom(32 * _MEBIBYTE))
        small.commit(active(2))

    def _write_synced(self, path: Path, size: int) -> None:
        with open(path, "wb") as file:
            file.write(os.urandom(size))
            file.flush()
            os.fsync(file.fileno())


class TestGivenDevices:
    @pytest.fixture
    def given(self, fresh_dir: Path) -> Iterator[dict[str, str]]:
        with ExitStack() as stack:
            options: dict[str, str] = {"device-size": "512M"}
            for name, size in (("data", 512 * _MEBIBYTE), ("metadata", 16 * _MEBIBYTE)):
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


def _work(opened: Open, first: int, committed: int) -> None:
    """Make snapshots, commit every other and remove the rest, telling of each commit by its number, until killed."""
    driver = opened()
    for number in range(first, first + 10_000):
        snapshot = active(number, 1)
        driver.create(snapshot)
        if number % 2:
            driver.commit(snapshot)
            os.write(committed, f"{number}\n".encode())
        else:
            driver.remove(snapshot.id)


def _fork(work: Callable[[], None]) -> int:
    child = fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


class TestProcesses:
    def _layer(self, driver: DeviceMapperDriver) -> None:
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            write(path, **_FILES)
        driver.commit(active(1))

    def test_killed_at_any_moment(self, driver: DeviceMapperDriver, opened: Open) -> None:
        """What was committed is whole; what was under way has an id, by which it can be removed."""
        moments = random.Random(1)
        self._layer(driver)
        known: set[int] = {1}
        for kill in range(_KILLS):
            reader, writer = os.pipe()
            child = _fork(partial(_work, opened, 10_000 * (kill + 1), writer))
            os.close(writer)
            time.sleep(moments.uniform(0, 0.6))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            with os.fdopen(reader) as lines:
                committed = {int(line) for line in lines}
            held = set(opened().ids())
            assert known | committed <= held
            assert len(held - known - committed) <= 1
            for orphan in held - known - committed:
                driver.remove(SnapshotId(orphan))
            known |= committed
            assert set(driver.ids()) == known
        for number in sorted(known - {1})[:20]:
            clone = active(number + 1_000_000, number, 1)
            driver.create(clone)
            with mounted(driver.mounts(clone)) as path:
                assert contents(path) == _FILES
            driver.remove(clone.id)

    def test_many_on_the_same_layer(self, driver: DeviceMapperDriver, opened: Open) -> None:
        self._layer(driver)
        children = [_fork(partial(self._clone, opened, 1000 * worker)) for worker in range(1, 5)]
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
        assert set(driver.ids()) == {1}

    def _clone(self, opened: Open, first: int) -> None:
        driver = opened()
        for number in range(first, first + 8):
            clone = active(number, 1)
            driver.create(clone)
            with mounted(driver.mounts(clone)) as path:
                (path / "own").write_text(str(number), encoding="ascii")
                assert contents(path) == {**_FILES, "own": str(number)}
            driver.remove(clone.id)

    def test_snapshots_of_one_active_device_at_once(self, driver: DeviceMapperDriver, opened: Open) -> None:
        driver.create(active(1))
        with mounted(driver.mounts(active(1))) as path:
            write(path, **_FILES)
            children = [_fork(partial(self._snapshots, opened, 1000 * worker)) for worker in range(1, 4)]
            for number in range(50):
                write(path, churn=str(number))
            assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        for number in sorted(set(driver.ids()) - {1}):
            with mounted(driver.mounts(active(number, 1))) as path:
                assert _FILES.items() <= contents(path).items()

    def _snapshots(self, opened: Open, first: int) -> None:
        driver = opened()
        for number in range(first, first + 4):
            driver.create(active(number, 1))


def test_five_hundred_clones_and_their_removal_in_any_order(driver: DeviceMapperDriver) -> None:
    driver.create(active(1))
    with mounted(driver.mounts(active(1))) as path:
        write(path, file="x")
    driver.commit(active(1))
    numbers = list(range(2, 502))
    for number in numbers:
        driver.create(active(number, 1))
    assert len(devices()) == 501
    random.Random(5).shuffle(numbers)
    for number in [*numbers[:250], 1, *numbers[250:]]:  # the layer itself in the middle
        driver.remove(SnapshotId(number))
        if number == 1:
            with mounted(driver.mounts(active(numbers[250], 1))) as path:
                assert contents(path) == {"file": "x"}
    assert list(driver.ids()) == []
    assert devices() == set()


def test_a_store_on_a_pool_of_its_own(fresh_dir: Path, tmp_path: Path) -> None:
    path = fresh_dir / "store"
    with layerfs.open(path, loop=layerfs.LoopVolume(512 * _MEBIBYTE, "dm")) as store:
        assert store.driver.name == "devicemapper"
        assert (path / "devicemapper/data.img").stat().st_size == 512 * _MEBIBYTE
        store.import_image(write_layout(tmp_path / "image", [BASE, EDIT, SHRINK]))
        clone = store.clone("test:1", "lasting")
        with clone.mounted() as root:
            write(root, kept="kept")
            with pytest.raises(Busy):
                store.detach()
        clone.snapshot("first")
        with clone.mounted() as root:
            (root / "kept").unlink()
        assert {change.path for change in clone.changes()} <= {b"."}  # whose time is another one
        tree = invariants.image_tree(store, "test:1")
        assert store.detach()
    assert devices() == set()
    with layerfs.open(path) as store:
        clone = store.get_clone("lasting")
        clone.rollback("first")
        with clone.mounted() as root:
            assert contents(root)["kept"] == "kept"
        committed = clone.commit("test:2")
        assert invariants.image_tree(store, "test:1") == tree
        assert invariants.image_tree(store, committed.digest) != tree
        with pytest.raises(FailedPrecondition, match="lasting"):
            store.remove_image("test:1")
        invariants.check_store(store)
        clone.remove()
        for name in ("test:1", "test:2"):
            store.remove_image(name)
        store.prune(store.plan_prune())
        assert store.snapshotter.infos() == []
    assert devices() == set()


def test_a_store_that_cannot_be_leaves_nothing(fresh_dir: Path) -> None:
    with pytest.raises(layerfs.InvalidArgument, match="no pool"):
        layerfs.open(fresh_dir / "store", driver="btrfs", loop=layerfs.LoopVolume(512 * _MEBIBYTE, "dm"))
    with pytest.raises(LayerfsError):
        layerfs.open(fresh_dir / "store", driver="devicemapper", options={"device-size": "1M"})
    with suppress(FileNotFoundError):
        assert os.listdir(fresh_dir / "store") == []
    assert devices() == set()
