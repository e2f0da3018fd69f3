"""What holds of a driver by itself: bytes for ids, mounts that are pure, failures that leave nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE

import pytest

from layerfs.contract import (
    DirectAccess,
    Driver,
    Kind,
    LayerRoot,
    Snapshot,
    SnapshotId,
    Transferable,
    Usage,
    VolatileMounts,
    Whiteouts,
)
from layerfs.errors import InvalidArgument, LayerfsError, Unsupported
from layerfs.kernel.mounting import mounted
from layerfs.testing.fixtures import DriverFixtures, OpenDriver, Shown, Stack
from layerfs.testing.trees import contents

_MEBIBYTE = 1 << 20


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Run a block under another umask."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def active(number: int, *parents: int) -> Snapshot:
    """Return an active snapshot as a driver is told of it; the nearest parent comes first."""
    return Snapshot(SnapshotId(number), Kind.ACTIVE, tuple(map(SnapshotId, parents)))


def view(number: int, *parents: int) -> Snapshot:
    """Return a view as a driver is told of it."""
    return Snapshot(SnapshotId(number), Kind.VIEW, tuple(map(SnapshotId, parents)))


def committed(number: int, *parents: int) -> Snapshot:
    """Return a committed snapshot as a driver is told of it."""
    return Snapshot(SnapshotId(number), Kind.COMMITTED, tuple(map(SnapshotId, parents)))


class DriverRules(DriverFixtures):
    """Tests of `layerfs.contract.Driver`."""

    def test_starts_without_snapshots(self, driver: Driver) -> None:
        """A new directory holds nothing."""
        assert list(driver.ids()) == []

    def test_unknown_option_is_refused(self, driver_root: Path) -> None:
        """An option that the driver does not know is never ignored."""
        with pytest.raises(InvalidArgument):
            type(self).factory(driver_root, {**self.options, "no-such-option": "1"})

    def test_second_instance_sees_the_first_ones_snapshots(self, driver: Driver, open_driver: OpenDriver) -> None:
        """All state is on disk."""
        driver.create(active(1))
        other = open_driver()
        assert list(other.ids()) == [1]
        assert other.mounts(active(1)) == driver.mounts(active(1))
        other.close()

    def test_close_is_idempotent(self, open_driver: OpenDriver) -> None:
        """Closing twice is no error."""
        driver = open_driver()
        driver.close()
        driver.close()

    def test_empty_snapshot(self, driver: Driver, shown: Shown) -> None:
        """One without a parent starts empty."""
        driver.create(active(1))
        with shown(active(1)) as path:
            assert contents(path) == {}

    @pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
    def test_root_mode_whatever_the_umask(self, driver: Driver, shown: Shown, mask: int) -> None:
        """A new root is 0755, for views as for active ones (containerd: RootPermission)."""
        with umask(mask):
            driver.create(active(1))
            driver.create(view(2))
        for snapshot in (active(1), view(2)):
            with shown(snapshot) as path:
                assert S_IMODE(path.stat().st_mode) == 0o755

    @pytest.mark.parametrize("depth", [1, 2, 40])
    def test_mounts_are_pure(self, driver: Driver, stack: Stack, depth: int, driver_root: Path) -> None:
        """The same answer every time, nothing touched."""
        top = stack(depth)
        child = active(depth + 1, top.id, *top.parents)
        driver.create(child)
        before = sorted(os.walk(driver_root))
        assert driver.mounts(child) == driver.mounts(child)
        assert sorted(os.walk(driver_root)) == before

    @pytest.mark.parametrize("depth", [0, 1, 2, 40])
    def test_mounts_show_all_layers(self, driver: Driver, stack: Stack, shown: Shown, depth: int) -> None:
        """An active snapshot and a view show what all the layers below hold, and only the former takes writes."""
        top = stack(depth)
        parents = (top.id, *top.parents) if depth else ()
        layers = {f"file-{number}": str(number) for number in range(1, depth + 1)}
        driver.create(active(100, *parents))
        driver.create(view(101, *parents))
        with shown(active(100, *parents)) as path:
            (path / "new").write_text("new", encoding="ascii")
            assert contents(path) == {**layers, "new": "new"}
        with shown(view(101, *parents)) as path:
            assert contents(path) == layers
            with pytest.raises(OSError, match="Read-only") as caught:
                (path / "new").touch()
            assert caught.value.errno == errno.EROFS

    def test_siblings_are_apart(self, driver: Driver, stack: Stack, shown: Shown) -> None:
        """What one child writes, neither its parent nor its siblings see."""
        stack(1)
        first, second = active(2, 1), active(3, 1)
        driver.create(first)
        driver.create(second)
        with shown(first) as path, shown(second) as other:
            (path / "file-1").write_text("changed", encoding="ascii")
            (other / "file-1").unlink()
            assert contents(path) == {"file-1": "changed"}
            assert contents(other) == {}
        driver.create(view(4, 1))
        with shown(view(4, 1)) as path:
            assert contents(path) == {"file-1": "1"}

    def test_commit_twice(self, driver: Driver, stack: Stack, shown: Shown) -> None:
        """Recovery may commit what is committed already."""
        top = stack(1)
        driver.commit(top)
        driver.create(view(2, 1))
        with shown(view(2, 1)) as path:
            assert contents(path) == {"file-1": "1"}

    def test_commit_of_an_empty_snapshot(self, driver: Driver, shown: Shown) -> None:
        """A layer may hold nothing."""
        driver.create(active(1))
        driver.commit(active(1))
        driver.create(active(2, 1))
        driver.commit(active(2, 1))
        driver.create(view(3, 2, 1))
        with shown(view(3, 2, 1)) as path:
            assert contents(path) == {}

    def test_usage_excludes_parents(self, driver: Driver, shown: Shown) -> None:
        """A child of a big layer is small, unless the driver declares that it copies whole trees."""
        driver.create(active(1))
        with shown(active(1)) as path:
            (path / "big").write_bytes(os.urandom(4 * _MEBIBYTE))
        base = driver.usage(active(1))
        driver.commit(active(1))
        assert driver.usage(active(1)).size >= 4 * _MEBIBYTE
        assert base.inodes >= 1
        driver.create(active(2, 1))
        empty = driver.usage(active(2, 1))
        with shown(active(2, 1)) as path:
            (path / "more").write_bytes(os.urandom(_MEBIBYTE))
        grown = driver.usage(active(2, 1))
        assert grown.size - empty.size >= _MEBIBYTE
        assert grown.inodes - empty.inodes in (1, 2)  # the file, and the directory that it changed
        if driver.traits.copy_unit != "tree":
            assert empty.size < _MEBIBYTE
            assert grown.size < 2 * _MEBIBYTE

    def test_usage_of_a_view_is_nothing_much(self, driver: Driver, stack: Stack) -> None:
        """A view of a layer takes no copy of it."""
        stack(2)
        driver.create(view(3, 2, 1))
        used = driver.usage(view(3, 2, 1))
        assert isinstance(used, Usage)
        assert used.size <= 64 << 10

    def test_remove(self, driver: Driver, stack: Stack) -> None:
        """Bytes are gone at once, and removing what is gone is no error."""
        stack(2)
        driver.remove(SnapshotId(2))
        assert list(driver.ids()) == [1]
        driver.remove(SnapshotId(2))
        driver.remove(SnapshotId(77))
        driver.remove(SnapshotId(1))
        assert list(driver.ids()) == []

    def test_remove_what_was_mounted(self, driver: Driver, stack: Stack, shown: Shown) -> None:
        """Whatever a mount left beside the bytes goes too."""
        top = stack(2)
        child = active(3, top.id, *top.parents)
        driver.create(child)
        with shown(child) as path:
            (path / "directory").mkdir(mode=0o000)
            (path / "file-1").unlink()
        driver.remove(child.id)
        assert set(driver.ids()) == {1, 2}

    def test_create_on_a_missing_parent_leaves_nothing(self, driver: Driver) -> None:
        """A failure leaves no bytes under the id."""
        with pytest.raises((OSError, LayerfsError)):
            driver.create(active(2, 1))
        assert list(driver.ids()) == []

    def test_create_twice_keeps_the_first(self, driver: Driver, shown: Shown) -> None:
        """An id in use is refused, and its bytes stay."""
        driver.create(active(1))
        with shown(active(1)) as path:
            (path / "precious").write_text("data", encoding="ascii")
        with pytest.raises((OSError, LayerfsError)):
            driver.create(active(1))
        assert list(driver.ids()) == [1]
        with shown(active(1)) as path:
            assert contents(path) == {"precious": "data"}

    def test_chain_beyond_the_limit_is_refused(self, driver: Driver) -> None:
        """A chain that could never be mounted says so when it is made, with a hint."""
        limit = driver.traits.max_layers
        if limit is None:
            return
        driver.create(active(1))
        with pytest.raises(Unsupported) as caught:
            driver.create(active(limit + 2, *range(limit + 1, 0, -1)))
        assert caught.value.hint
        assert list(driver.ids()) == [1]

    def test_direct_access_shows_the_same_bytes(self, driver: Driver, stack: Stack) -> None:
        """The directory behind the mount holds what the mount wrote."""
        if not isinstance(driver, DirectAccess):
            return
        top = stack(2)
        root = driver.layer_root(top)
        assert isinstance(root, LayerRoot)
        expected = {"file-1": "1", "file-2": "2"} if root.whiteouts is Whiteouts.REMOVE else {"file-2": "2"}
        assert contents(root.path) == expected

    def test_volatile_mounts_settle(self, driver: Driver, stack: Stack, shown: Shown) -> None:
        """What a volatile mount wrote is there after `settle`, and ordinary mounts work again."""
        if not isinstance(driver, VolatileMounts):
            return
        for parents in ((), (1,)):
            snapshot = active(2 + len(parents), *parents)
            driver.create(snapshot)
            with mounted(driver.volatile_mounts(snapshot)) as path:
                (path / "quick").write_text("data", encoding="ascii")
            driver.settle(snapshot)
            driver.settle(snapshot)
            with shown(snapshot) as path:
                assert (path / "quick").read_text(encoding="ascii") == "data"
            if not parents:
                stack(1)

    def test_what_is_sent_is_received(self, driver: Driver, stack: Stack, driver_root: Path, tmp_path: Path) -> None:
        """Another instance of the driver makes the same layers from a stream, child on parent or one whole."""
        if not isinstance(driver, Transferable):
            return
        stack(2)
        other = type(self).factory(driver_root.with_name(f"{driver_root.name}-elsewhere"), self.options)
        assert isinstance(other, Transferable)
        assert other.stream == driver.stream
        file = tmp_path / "stream"
        for sent, received, whole in (
            (committed(1), committed(11), False),
            (committed(2, 1), committed(12, 11), False),
            (committed(2, 1), committed(13), True),
        ):
            with file.open("wb") as stream:
                driver.send(sent, stream.fileno(), whole=whole)
            with file.open("rb") as stream:
                other.receive(received, stream.fileno())
        for number, parents in ((12, (11,)), (13, ())):
            other.create(view(20 + number, number, *parents))
            with mounted(other.mounts(view(20 + number, number, *parents))) as path:
                assert contents(path) == {"file-1": "1", "file-2": "2"}
        for number in sorted(other.ids(), reverse=True):
            other.remove(number)
        other.close()
