"""What the zfs driver sends from one pool to another: whole, or what a child holds beyond its parent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from layerfs.contract import Snapshot, SnapshotId, Transferable
from layerfs.errors import Corrupt, FailedPrecondition, LayerfsError, NotFound
from layerfs.kernel.mounting import mounted
from layerfs.layer.changes import changes
from layerfs.testing.driver_rules import active, committed
from layerfs_backends.zfs.datasets import ZfsDriver
from tests.backends import test_btrfs_changes as edits
from tests.support import pools

pytestmark = pytest.mark.guest

_MEBIBYTE = 1 << 20


@pytest.fixture
def here(zfs_dir: Path) -> Iterator[ZfsDriver]:
    """Give a driver that holds two layers and one that stands aside of the second."""
    driver = pools.open_zfs(zfs_dir / "zfs")
    driver.create(active(1))
    with mounted(driver.mounts(active(1))) as root:
        edits._populate(root)
        (root / "big").write_bytes(os.urandom(2 * _MEBIBYTE))
    driver.commit(active(1))
    for number in (2, 3):
        driver.create(active(number, 1))
        with mounted(driver.mounts(active(number, 1))) as root:
            edits._edit(root, "many")
            (root / "number").write_text(str(number))
        driver.commit(active(number, 1))
    yield driver
    for number in sorted(driver.ids(), reverse=True):
        driver.remove(number)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Path]:
    with pools.pool("layerfs-elsewhere", 256 * _MEBIBYTE) as place:
        yield place


@pytest.fixture
def there(elsewhere: Path) -> Iterator[ZfsDriver]:
    """Give a driver on another pool."""
    driver = pools.open_zfs(elsewhere / "zfs", dataset="layerfs-elsewhere")
    yield driver
    for number in sorted(driver.ids(), reverse=True):
        driver.remove(number)


def _file(place: Path, driver: ZfsDriver, snapshot: Snapshot, *, whole: bool = False) -> Path:
    """Send a snapshot to a file."""
    path = place / f"stream-{snapshot.id}"
    with path.open("wb") as stream:
        driver.send(snapshot, stream.fileno(), whole=whole)
    return path


def _receive(driver: ZfsDriver, snapshot: Snapshot, path: Path) -> None:
    with path.open("rb") as stream:
        driver.receive(snapshot, stream.fileno())


def _transfer(source: Transferable, snapshot: Snapshot, target: Transferable, new: Snapshot) -> None:
    """Send through a pipe, as between two machines."""
    reader, writer = os.pipe()
    sender = Thread(target=_send_and_close, args=(source, snapshot, writer))
    sender.start()
    try:
        target.receive(new, reader)
    finally:
        os.close(reader)
        sender.join()


def _send_and_close(source: Transferable, snapshot: Snapshot, writer: int) -> None:
    try:
        source.send(snapshot, writer)
    finally:
        os.close(writer)


def _check_same(one: ZfsDriver, first: Snapshot, other: ZfsDriver, second: Snapshot) -> None:
    """Compare what two committed snapshots show, contents included."""
    with mounted(one.mounts(active(first.id))) as left, mounted(other.mounts(active(second.id))) as right:
        assert list(changes(left, right, verify_content=True)) == []


def test_layers_go_to_another_pool(here: ZfsDriver, there: ZfsDriver) -> None:
    """A child goes as what it holds beyond its parent, stands on it there, and both take children."""
    assert isinstance(here, Transferable)
    assert here.stream == there.stream == "zfs"
    _transfer(here, committed(1), there, committed(11))
    _transfer(here, committed(2, 1), there, committed(12, 11))
    assert set(there.ids()) == {11, 12}
    _check_same(here, committed(1), there, committed(11))
    _check_same(here, committed(2), there, committed(12))
    assert there.usage(committed(12, 11)).size < _MEBIBYTE < there.usage(committed(11)).size
    assert there.usage(committed(12, 11)).inodes == here.usage(committed(2, 1)).inodes
    there.create(active(13, 12, 11))
    with mounted(there.mounts(active(13, 12, 11))) as root:
        assert (root / "number").read_text() == "2"
        (root / "number").write_text("13")
    there.commit(active(13, 12, 11))
    _transfer(there, committed(13, 12, 11), here, committed(4, 2, 1))
    _check_same(there, committed(13), here, committed(4))


def test_only_what_is_beyond_the_parent_is_sent(here: ZfsDriver, fresh_dir: Path) -> None:
    small = _file(fresh_dir, here, committed(2, 1)).stat().st_size
    whole = _file(fresh_dir, here, committed(2, 1), whole=True).stat().st_size
    assert small < _MEBIBYTE < 2 * _MEBIBYTE < whole


def test_a_child_goes_without_its_parent(here: ZfsDriver, there: ZfsDriver, fresh_dir: Path) -> None:
    _receive(there, committed(12), _file(fresh_dir, here, committed(2, 1), whole=True))
    _check_same(here, committed(2), there, committed(12))


def test_one_that_took_its_parents_place_goes_as_a_child(zfs_dir: Path, there: ZfsDriver) -> None:
    """A checkpoint makes the child first; it stands on the layer all the same."""
    here = pools.open_zfs(zfs_dir / "zfs")
    here.create(active(1))
    here.create(active(2, 1))
    here.commit(active(1))
    with mounted(here.mounts(active(2, 1))) as root:
        (root / "file").write_text("of the second")
    here.commit(active(2, 1))
    _transfer(here, committed(1), there, committed(11))
    _transfer(here, committed(2, 1), there, committed(12, 11))
    _check_same(here, committed(2), there, committed(12))
    for number in (2, 1):
        here.remove(SnapshotId(number))


def test_what_cannot_be_received_leaves_nothing(here: ZfsDriver, there: ZfsDriver, fresh_dir: Path) -> None:
    base, child = _file(fresh_dir, here, committed(1)), _file(fresh_dir, here, committed(2, 1))
    with pytest.raises(LayerfsError):  # there is no such parent
        _receive(there, committed(12, 11), child)
    with pytest.raises(Corrupt):  # it names none
        _receive(there, committed(12), child)
    for name, damage in (("cut", _cut), ("bits", _flip), ("no stream", _scribble), ("empty", _empty)):
        damaged = fresh_dir / name
        damaged.write_bytes(damage(base.read_bytes()))
        with pytest.raises(Corrupt) as caught:
            _receive(there, committed(11), damaged)
        assert caught.value.hint == "send it again", name
        assert list(there.ids()) == [], name
    there.create(active(11))
    there.commit(active(11))
    with pytest.raises(FailedPrecondition, match="another snapshot"):  # one that is not what it was sent from
        _receive(there, committed(12, 11), child)
    assert set(there.ids()) == {11}


def _cut(stream: bytes) -> bytes:
    return stream[: len(stream) // 2]


def _flip(stream: bytes) -> bytes:
    middle = len(stream) // 2
    return stream[:middle] + bytes([stream[middle] ^ 1]) + stream[middle + 1 :]


def _scribble(stream: bytes) -> bytes:
    return b"no stream of ZFS".ljust(len(stream), b"!")


def _empty(_: bytes) -> bytes:
    return b""


def test_a_reader_that_goes_away(here: ZfsDriver) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(LayerfsError, match="send"):
        here.send(committed(1), writer)
    os.close(writer)
    with pytest.raises(NotFound), Path("/dev/null").open("wb") as nowhere:
        here.send(committed(77), nowhere.fileno())
