"""The zfs driver on a real pool: in the guest, where the kernel has ZFS."""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import layerfs
from layerfs.contract import CommitsTogether, SnapshotId
from layerfs.errors import Busy, FailedPrecondition, InvalidArgument, LayerfsError, NoSpace, NotFound, Unsupported
from layerfs.kernel.children import fork
from layerfs.kernel.mounting import mounted
from layerfs.testing import DriverContract, QuotaContract
from layerfs.testing.driver_rules import active, view
from layerfs.testing.trees import contents
from layerfs_backends.zfs import driver as zfs
from layerfs_backends.zfs.datasets import ZfsDriver
from tests.support import pools
from tests.support.images import BASE, EDIT, write_layout

_KILLS = 15
_MEBIBYTE = 1 << 20


@pytest.fixture
def driver(zfs_dir: Path) -> Iterator[ZfsDriver]:
    """Give a driver; in the end all it holds goes."""
    driver = pools.open_zfs(zfs_dir / "zfs")
    yield driver
    for number in sorted(driver.ids(), reverse=True):
        driver.remove(number)
    assert list(driver.ids()) == []


def _base(driver: ZfsDriver, number: int = 1, **files: str) -> None:
    """Commit a layer with files."""
    driver.create(active(number))
    with mounted(driver.mounts(active(number))) as path:
        for name, text in files.items():
            (path / name).write_text(text, encoding="ascii")
    driver.commit(active(number))


def _snapshots(driver: ZfsDriver, number: int) -> list[str]:
    """Return what the ZFS snapshots of one are called."""
    lines = pools.sh("zfs", "list", "-H", "-t", "snapshot", "-o", "name", f"{driver._place}/{number}").splitlines()
    return sorted(line.rpartition("@")[2] for line in lines)


@pytest.mark.guest
class TestZfs(DriverContract):
    factory = staticmethod(zfs.open_driver)
    histories = 3
    limits = frozenset({"size"})

    @pytest.fixture
    def driver_root(self, zfs_dir: Path) -> Path:
        return zfs_dir / "zfs"


@pytest.mark.guest
class TestQuotas(QuotaContract):
    factory = staticmethod(zfs.open_driver)
    limits = frozenset({"size"})
    block = over = 128 << 10  # a record; ZFS decides by what the transactions under way will take at the most
    lowers = False

    @pytest.fixture
    def driver_root(self, zfs_dir: Path) -> Path:
        return zfs_dir / "zfs"


@pytest.mark.skipif(os.path.exists("/dev/zfs"), reason="this kernel has ZFS")
def test_a_kernel_without_zfs_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no ZFS") as caught:
        zfs.open_driver(tmp_path / "zfs", {})
    assert "modprobe zfs" in (caught.value.hint or "")


@pytest.mark.guest
def test_a_place_without_a_pool_is_told(fresh_dir: Path) -> None:
    with pytest.raises(Unsupported, match="not on ZFS") as caught:
        zfs.open_driver(fresh_dir / "zfs", {})
    assert "dataset=" in (caught.value.hint or "")
    with pytest.raises(Unsupported, match="no dataset nowhere/at-all") as caught:
        zfs.open_driver(fresh_dir / "zfs", {"dataset": "nowhere/at-all"})
    assert caught.value.hint == "zpool import nowhere, or zfs create"
    for option in ({"refquota": "much"}, {"quota": "0"}, {"recordsize": "1M"}):
        with pytest.raises(InvalidArgument):
            zfs.open_driver(fresh_dir / "zfs", option)


@pytest.mark.guest
def test_trying_leaves_nothing(zfs_dir: Path) -> None:
    before = pools.sh("zfs", "list", "-H", "-t", "all", "-o", "name")
    driver = pools.open_zfs(zfs_dir / "zfs")
    assert list(driver.ids()) == []
    assert pools.sh("zfs", "list", "-H", "-t", "all", "-o", "name") == before


@pytest.mark.guest
def test_five_hundred_clones_go_in_any_order(driver: ZfsDriver) -> None:
    _base(driver, file="of the layer")
    numbers = list(range(2, 502))
    for number in numbers:
        driver.create(active(number, 1))
    assert set(driver.ids()) == {1, *numbers}
    random.Random(5).shuffle(numbers)
    for number in numbers[:-1]:
        driver.remove(SnapshotId(number))
    last = numbers[-1]
    with mounted(driver.mounts(active(last, 1))) as path:
        assert contents(path) == {"file": "of the layer"}
    driver.remove(SnapshotId(last))
    assert set(driver.ids()) == {1}


@pytest.mark.guest
def test_a_layer_with_clones_stays_until_they_go(driver: ZfsDriver) -> None:
    _base(driver, file="kept")
    driver.create(active(2, 1))
    with pytest.raises(Busy, match=r"/1 has clones: .*/2") as caught:
        driver.remove(SnapshotId(1))
    assert caught.value.hint == "remove these first"
    assert set(driver.ids()) == {1, 2}
    with mounted(driver.mounts(active(2, 1))) as path:
        assert contents(path) == {"file": "kept"}
    driver.remove(SnapshotId(2))
    driver.create(active(3, 1))  # to refuse it has changed nothing
    driver.remove(SnapshotId(3))
    driver.remove(SnapshotId(1))


@pytest.mark.guest
def test_what_takes_the_place_of_one_not_committed(driver: ZfsDriver) -> None:
    """A checkpoint makes the next one first; if it fails then, the parent goes on being active."""
    driver.create(active(1))
    driver.create(active(2, 1))
    driver.remove(SnapshotId(2))
    with mounted(driver.mounts(active(1))) as path:
        (path / "later").write_text("later", encoding="ascii")
    driver.create(active(3, 1))
    driver.commit(active(1))
    assert _snapshots(driver, 1) == ["layer"], "that of the first attempt is gone, that of the second is the layer"
    for number in (3, 4):
        if number == 4:
            driver.create(active(4, 1))
        with mounted(driver.mounts(active(number, 1))) as path:
            assert contents(path) == {"later": "later"}


@pytest.mark.guest
def test_what_was_written_after_the_next_one_was_made(driver: ZfsDriver) -> None:
    """Nobody should, but a layer holds what was there when it was committed."""
    driver.create(active(1))
    driver.create(active(2, 1))
    with mounted(driver.mounts(active(1))) as path:
        (path / "late").write_text("late", encoding="ascii")
    driver.commit(active(1))
    driver.create(active(3, 1))
    for number, expected in ((2, {}), (3, {"late": "late"})):
        with mounted(driver.mounts(active(number, 1))) as path:
            assert contents(path) == expected
    driver.remove(SnapshotId(2))
    assert _snapshots(driver, 1) == ["layer"]


@pytest.mark.guest
def test_snapshots_of_others_are_in_nobodys_way(driver: ZfsDriver) -> None:
    """Many hosts have a program that snapshots every dataset each hour."""
    _base(driver)
    driver.create(active(2, 1))
    for name in ("1", "2"):
        pools.sh("zfs", "snapshot", f"{driver._place}/{name}@hourly")
    driver.remove(SnapshotId(2))
    driver.remove(SnapshotId(1))
    assert list(driver.ids()) == []


@pytest.mark.guest
def test_what_is_mounted_stays(driver: ZfsDriver) -> None:
    driver.create(active(1))
    with mounted(driver.mounts(active(1))), pytest.raises(Busy, match="mounted"):
        driver.remove(SnapshotId(1))
    driver.remove(SnapshotId(1))


@pytest.mark.guest
def test_a_commit_of_many_is_one_transaction(driver: ZfsDriver) -> None:
    snapshots = [active(number) for number in range(1, 6)]
    for snapshot in snapshots:
        driver.create(snapshot)
    assert isinstance(driver, CommitsTogether)
    driver.commit(snapshots[0])
    driver.commit_all(snapshots)
    driver.commit_all(snapshots)
    names = [f"{driver._place}/{snapshot.id}@layer" for snapshot in snapshots]
    made = pools.sh("zfs", "get", "-Hp", "-o", "value", "createtxg", *names).split()
    assert len(set(made[1:])) == 1
    driver.create(active(7, 3))
    with pytest.raises(NotFound):
        driver.commit_all([active(7, 3), active(8)])
    assert not driver._zfs.exists(f"{driver._place}/7@layer"), "all or none"


@pytest.mark.guest
def test_a_commit_of_a_mounted_one_holds_what_was_mapped(driver: ZfsDriver) -> None:
    driver.create(active(1))
    with mounted(driver.mounts(active(1))) as path, (path / "mapped").open("w+b") as file:
        file.truncate(4096)
        with mmap.mmap(file.fileno(), 4096) as memory:
            memory[:5] = b"bytes"
            driver.commit(active(1))
            memory[:5] = b"later"
    driver.create(view(2, 1))
    with mounted(driver.mounts(view(2, 1))) as path:
        assert (path / "mapped").read_bytes()[:5] == b"bytes"


def _fill(path: Path) -> None:
    """Write until an error comes: it does when a transaction before was counted."""
    for number in range(200):
        (path / f"{number}").write_bytes(os.urandom(_MEBIBYTE))
        os.sync()


@pytest.mark.guest
@pytest.mark.parametrize("option", ["refquota", "quota"])
def test_full_quota(zfs_dir: Path, option: str) -> None:
    """The one counts what is shared with the parent, the other does not; a clone that is full goes on otherwise."""
    driver = pools.open_zfs(zfs_dir / "zfs", **{option: str(8 * _MEBIBYTE)})
    driver.create(active(1))
    with mounted(driver.mounts(active(1))) as path:
        (path / "base").write_bytes(os.urandom(6 * _MEBIBYTE))
    driver.commit(active(1))
    driver.create(active(2, 1))
    with mounted(driver.mounts(active(2, 1))) as path:
        with pytest.raises(OSError, match="quota"):
            _fill(path)
        written = sum(file.stat().st_size for file in path.iterdir() if file.name != "base")
        assert (written > 6 * _MEBIBYTE) == (option == "quota")
        (path / "0").unlink()
    driver.commit(active(2, 1))
    driver.remove(SnapshotId(2))
    driver.remove(SnapshotId(1))


@pytest.mark.guest
def test_a_dataset_that_is_held_stays_whole(driver: ZfsDriver) -> None:
    """A hold is how other programs keep a ZFS snapshot."""
    _base(driver, file="kept")
    pools.sh("zfs", "hold", "kept", f"{driver._place}/1@layer")
    with pytest.raises(Busy, match="@layer is mounted or held"):
        driver.remove(SnapshotId(1))
    pools.sh("zfs", "release", "kept", f"{driver._place}/1@layer")
    driver.create(active(2, 1))
    with mounted(driver.mounts(active(2, 1))) as path:
        assert contents(path) == {"file": "kept"}


def _create_many(driver: ZfsDriver) -> None:
    for number in range(3, 2000):
        driver.create(active(number, 1))


@pytest.mark.guest
def test_full_pool() -> None:
    """Writing and making fail clearly, and removing works still."""
    with pools.pool("layerfs-full", 96 * _MEBIBYTE) as place:
        driver = pools.open_zfs(place / "zfs", dataset="layerfs-full")
        _base(driver, file="x")
        driver.create(active(2, 1))
        with mounted(driver.mounts(active(2, 1))) as path, pytest.raises(OSError, match="No space"):
            _fill(path)
        with pytest.raises(NoSpace):
            _create_many(driver)
        for number in sorted(driver.ids(), reverse=True):
            driver.remove(number)
        pools.sh("zpool", "wait", "-t", "free", "layerfs-full")
        for _ in range(3):  # what was freed is given out again two transactions later (OpenZFS, TXG_DEFER_SIZE)
            pools.sh("zpool", "sync", "layerfs-full")
        _base(driver, 5000, file="y" * _MEBIBYTE)
        driver.remove(SnapshotId(5000))


@pytest.mark.guest
def test_the_pool_goes_and_comes_back() -> None:
    with pools.pool("layerfs-away", 256 * _MEBIBYTE) as place:
        driver = pools.open_zfs(place / "zfs", dataset="layerfs-away")
        _base(driver, file="kept")
        driver.close()
        pools.sh("zpool", "export", "layerfs-away")
        with pytest.raises(FailedPrecondition, match="is not here") as caught:
            pools.open_zfs(place / "zfs")
        assert caught.value.hint == "zpool import layerfs-away"
        pools.sh("zpool", "import", "-o", "cachefile=none", "-d", place, "layerfs-away")
        driver = pools.open_zfs(place / "zfs")
        assert set(driver.ids()) == {1}
        driver.create(view(2, 1))
        with mounted(driver.mounts(view(2, 1))) as path:
            assert contents(path) == {"file": "kept"}


@pytest.mark.guest
def test_a_dataset_that_somebody_destroyed_is_not_listed(driver: ZfsDriver) -> None:
    _base(driver)
    driver.create(active(2, 1))
    pools.sh("zfs", "destroy", f"{driver._place}/2")
    assert set(driver.ids()) == {1}
    with pytest.raises(LayerfsError, match="2"), mounted(driver.mounts(active(2, 1))):
        pass
    driver.remove(SnapshotId(2))


@pytest.mark.guest
def test_what_somebody_destroyed_is_reported(zfs_dir: Path, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", [BASE, EDIT], name="image:1")
    with layerfs.open(zfs_dir / "store", driver="zfs") as store:
        (image,) = store.import_image(layout)
        store.clone("image:1", "box")
        assert store.check() == ()
        driver = store.driver
        assert isinstance(driver, ZfsDriver)
        box = store.snapshotter.snapshot("clone/box")
        pools.sh("zfs", "destroy", driver._name(box.id))
        (problem,) = store.check()
        assert (problem.name, problem.message, problem.hurts) == ("clone/box", "its bytes are gone", ("box",))
        store.get_clone("box").remove()
        layer = f"{driver._name(box.parents[0])}@layer"
        pools.sh("zfs", "destroy", layer)
        (problem,) = store.check()
        assert (problem.name, problem.message) == (image.config.chain_ids[-1], f"the ZFS snapshot {layer} is gone")
        assert problem.hurts == (image.name,)
        pools.sh(*problem.hint.partition(": ")[2].split())
        assert store.check() == ()
        with store.clone("image:1") as clone, clone.mounted() as root:
            assert (root / "etc/more").read_text() == "more\n"


def _work(place: Path, first: int, committed: int) -> None:
    driver = pools.open_zfs(place)
    for number in range(first, first + 10_000):
        driver.create(active(number, 1))
        if number % 2:
            driver.commit(active(number, 1))
            os.write(committed, f"{number}\n".encode())
        else:
            driver.remove(SnapshotId(number))


def _child(work: Callable[[], None]) -> int:
    child = fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


@pytest.mark.guest
def test_killed_at_any_moment(driver: ZfsDriver, zfs_dir: Path) -> None:
    """What was committed is whole; what was under way has an id, by which it can be removed."""
    moments = random.Random(1)
    _base(driver, file="whole")
    known = {1}
    for kill in range(_KILLS):
        reader, writer = os.pipe()
        child = _child(partial(_work, zfs_dir / "zfs", 10_000 * (kill + 1), writer))
        os.close(writer)
        with os.fdopen(reader) as lines:
            committed = {int(lines.readline()) for _ in range(moments.randint(0, 2))}
            time.sleep(moments.uniform(0.1, 0.4))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            committed |= {int(line) for line in lines}
        held = set(driver.ids())
        assert known | committed <= held
        assert len(held - known - committed) <= 1
        for orphan in held - known - committed:
            driver.remove(SnapshotId(orphan))
        known |= committed
    assert len(known) > 2
    for number in known - {1}:
        clone = active(number + 1_000_000, number, 1)
        driver.create(clone)
        with mounted(driver.mounts(clone)) as path:
            assert contents(path) == {"file": "whole"}
        driver.remove(clone.id)
