"""Leases: what they name survives every way of cleaning up, for as long as they last and not longer."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import layerfs
from layerfs import locks
from layerfs.events import Progress
from layerfs.layer.digest import Digest
from layerfs.leases import LONGEST, Held, Leases, Now, remaining
from layerfs.metadata import leases as rows
from layerfs.metadata.database import Database
from layerfs.metadata.leases import LeaseRow
from layerfs.reclaim import ItemKind
from tests.support import children, invariants
from tests.support.images import BASE, EDIT, SHRINK, write_layout

HOUR = timedelta(hours=1)
SECOND = 1_000_000_000


@pytest.fixture
def store(fresh_dir: Path) -> Iterator[layerfs.Store]:
    with layerfs.open(fresh_dir / "store", driver="copy") as store:
        yield store
        invariants.check_store(store)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return write_layout(tmp_path / "image", [BASE, EDIT, SHRINK])


def end(lease: layerfs.Lease) -> None:
    """Let a lease be over: a millionth of a second has passed when this returns."""
    lease.renew(timedelta(microseconds=1))


def prune(store: layerfs.Store) -> set[str]:
    return {item.name for item in store.prune(store.plan_prune()).items}


def names(image: layerfs.Image) -> set[str]:
    """Return all that prune can take of an image."""
    blobs = {str(blob.digest) for blob in image.manifest.blobs}
    return {str(image.digest), *blobs, *map(str, image.config.chain_ids)}


# --- when a lease is over ---------------------------------------------------------------------------------------------

ROW = LeaseRow("x", created=1000 * SECOND, expires=1060 * SECOND, boot="a", deadline=160 * SECOND)


@pytest.mark.parametrize(
    ("at", "left"),
    [
        (Now(1000 * SECOND, "a", 100 * SECOND), 60),
        (Now(1059 * SECOND, "a", 159 * SECOND), 1),
        (Now(1060 * SECOND, "a", 160 * SECOND), 0),
        (Now(9999 * SECOND, "a", 101 * SECOND), 59),  # the clock was set forward
        (Now(0, "a", 101 * SECOND), 59),  # and back
        (Now(0, "a", 161 * SECOND), -1),
        (Now(1030 * SECOND, "b", 5 * SECOND), 30),  # another boot
        (Now(1061 * SECOND, "b", 5 * SECOND), -1),
        (Now(0, "b", 999 * SECOND), 1060),  # another boot, and no clock yet
    ],
)
def test_what_is_left(at: Now, left: int) -> None:
    assert remaining(ROW, at) == left * SECOND


def test_a_lease_outlives_a_boot_and_a_step_of_the_clock(tmp_path: Path) -> None:
    database = Database(tmp_path / "meta.db")
    at = Now(1000 * SECOND, "a", 0)
    leases = Leases(database, tmp_path / "lock", now=lambda: at)
    leases.create(timedelta(seconds=60), "x").add(blobs=["b"])

    def held() -> Held:
        with database.read() as connection:
            return leases.held(connection)

    at = Now(5000 * SECOND, "a", 59 * SECOND)
    assert held() == Held(blobs=frozenset({"b"}))
    assert leases.get("x").expires.timestamp() == 5001  # by the clock as it is now
    at = Now(1059 * SECOND, "b", 1 * SECOND)
    assert held().blobs == {"b"}
    leases.renew("x", timedelta(seconds=60))
    at = Now(0, "b", 60 * SECOND)
    assert held().blobs == {"b"}
    assert leases.expired() == ()
    at = Now(0, "b", 61 * SECOND)
    assert held() == Held()
    assert leases.expired() == ("x",)
    leases.drop_expired()
    assert leases.every() == ()
    database.close()


def test_a_lease_that_lives_again_while_a_prune_waits_is_not_dropped(tmp_path: Path) -> None:
    database = Database(tmp_path / "meta.db")
    at = Now(0, "a", 0)
    leases = Leases(database, tmp_path / "lock", now=lambda: at)
    leases.create(timedelta(seconds=1), "x")
    at = Now(2 * SECOND, "a", 2 * SECOND)
    dropped: list[str] = []
    prune = threading.Thread(target=lambda: dropped.extend(leases.drop_expired()))
    with database.write() as connection:
        prune.start()
        prune.join(0.3)  # it sees that the lease is over, and waits for this transaction
        rows.renew(connection, LeaseRow("x", created=0, expires=9 * SECOND, boot="a", deadline=9 * SECOND))
    prune.join()
    assert dropped == []
    assert [lease.id for lease in leases.every()] == ["x"]
    database.close()


# --- ids and times ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "-x", "a/b", "a b", "x" * 129, "a\n"])
def test_bad_ids(store: layerfs.Store, name: str) -> None:
    with pytest.raises(layerfs.InvalidArgument, match="cannot be a lease's id"):
        store.lease(HOUR, name)


@pytest.mark.parametrize(
    "ttl", [timedelta(0), timedelta(seconds=-1), LONGEST + timedelta(microseconds=1), timedelta.max]
)
def test_bad_times(store: layerfs.Store, ttl: timedelta) -> None:
    with pytest.raises(layerfs.InvalidArgument, match="cannot last"):
        store.lease(ttl)


def test_an_id_is_used_once_and_one_that_is_over_gives_way(store: layerfs.Store) -> None:
    lease = store.lease(HOUR, "build")
    lease.add(blobs=["sha256:" + "0" * 64])
    with pytest.raises(layerfs.AlreadyExists, match="'build'"):
        store.lease(HOUR, "build")
    end(lease)
    assert store.lease(HOUR, "build").names == Held()


def test_a_lease_is_found_by_the_start_of_its_id(store: layerfs.Store) -> None:
    store.lease(HOUR, "build-1")
    store.lease(HOUR, "build-12")
    assert store.get_lease("build-1").id == "build-1"
    with pytest.raises(layerfs.InvalidArgument, match="several"):
        store.get_lease("build")
    for name in ("x", ""):
        with pytest.raises(layerfs.NotFound):
            store.get_lease(name)


def test_a_lease_ends_with_its_block_unless_it_is_kept(store: layerfs.Store) -> None:
    with store.lease(HOUR, "a"), store.lease(HOUR, "b") as kept:
        kept.keep()
    assert [lease.id for lease in store.leases()] == ["b"]
    with store.get_lease("b") as lease:
        lease.remove()  # as somebody else may do
    for act in (lease.remove, lambda: lease.renew(HOUR), lambda: lease.add(blobs=["b"])):
        with pytest.raises(layerfs.NotFound):
            act()


def test_one_that_is_over_names_nothing_more_until_it_is_renewed(store: layerfs.Store) -> None:
    lease = store.lease(HOUR)
    end(lease)
    with pytest.raises(layerfs.FailedPrecondition, match="is over"):
        lease.add(images=["x"])
    lease.renew(HOUR)
    assert not lease.over
    lease.add(images=["x"])
    assert lease.names.images == {"x"}


# --- what it keeps ----------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_on_every_driver(driver_name: str, driver_root: Path, layout: Path) -> None:
    with layerfs.open(driver_root / "store", driver=driver_name) as store:
        (image,) = store.import_image(layout, names=["test:1"])
        lease = store.lease(HOUR)
        lease.add(images=[image.digest])
        store.remove_image("test:1")
        assert store.image(image.digest).names == ()
        assert prune(store) == set()
        assert store.snapshotter.cleanup() == ()
        with store.clone(image.digest) as clone, clone.mounted() as root:
            assert (root / "var/small").read_text() == "1"
        end(lease)
        assert prune(store) == {lease.id, *names(image)}
        assert list(store.driver.ids()) == []
        invariants.check_store(store)


def test_blobs_and_layers_stay_without_their_image(store: layerfs.Store, layout: Path) -> None:
    (image,) = store.import_image(layout, names=["test:1"])
    lease = store.lease(HOUR)
    blob = image.manifest.layers[0].digest
    lease.add(blobs=[blob], snapshots=[image.config.chain_ids[1]])
    store.remove_image("test:1")
    assert store.images() == ()
    assert list(store.blobs.digests()) == [blob]
    assert {info.name for info in store.snapshotter.infos()} == set(image.config.chain_ids[:2])
    assert prune(store) == set()
    lease.remove()
    assert prune(store) == {blob, *image.config.chain_ids[:2]}


def test_what_is_named_before_it_comes_is_kept(store: layerfs.Store) -> None:
    with store.lease(HOUR) as lease:
        lease.add(blobs=["sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"])
        blob = store.blobs.put_bytes(b"foo").digest
        store.blobs.put_bytes(b"other")
        assert prune(store) == {"sha256:d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa"}
        assert list(store.blobs.digests()) == [blob]
    assert prune(store) == {blob}


def test_a_snapshot_of_a_removed_clone(store: layerfs.Store, layout: Path) -> None:
    store.import_image(layout, names=["test:1"])
    clone = store.clone("test:1", "web")
    clone.snapshot("kept")
    clone.snapshot("gone")
    with store.lease(HOUR) as lease:
        lease.add(snapshots=["clone/web@kept"])
        clone.remove()
        prune(store)
        (left,) = (info.name for info in store.snapshotter.infos(prefix="clone/"))
        assert left.endswith("@kept")
        assert left != "clone/web@kept"  # it is of no clone that is called so now
        assert lease.names.snapshots == {left}
    assert prune(store) == {left}


def test_a_commit_without_a_name(store: layerfs.Store, layout: Path) -> None:
    store.import_image(layout, names=["test:1"])
    with store.lease(HOUR) as lease:
        with store.clone("test:1") as clone:
            image = clone.commit(lease=lease)
        assert prune(store) == set()
    assert image.digest in prune(store)


def test_a_lease_that_is_over_is_pruned_and_shown(store: layerfs.Store) -> None:
    end(store.lease(HOUR, "old"))
    store.lease(HOUR, "new")
    assert [(item.kind, item.name) for item in store.plan_prune().items] == [(ItemKind.LEASE, "old")]
    assert prune(store) == {"old"}
    assert [lease.id for lease in store.leases()] == ["new"]


def test_naming_waits_for_a_prune(store: layerfs.Store) -> None:
    """A name that is given while somebody prunes counts after the prune, never half."""
    lease = store.lease(HOUR)
    go_reader, go = os.pipe()

    def name() -> None:
        with layerfs.open(store.path) as other:
            mine = other.get_lease(lease.id)
            os.read(go_reader, 1)
            mine.add(blobs=["b"])

    child = children.start(name)  # before the lock is taken, which a child would hold as well
    with locks.locked(store.path / "lock", locks.STORE, exclusive=True, what="the store"):
        os.write(go, b"x")
        time.sleep(0.05)  # it decides nothing: a child that is later still finds the lock, or comes after it
        assert store.get_lease(lease.id).names == Held()
    assert os.waitpid(child, 0)[1] == 0
    assert store.get_lease(lease.id).names.blobs == {"b"}
    os.close(go)
    os.close(go_reader)


# --- what is cut off --------------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("killed", [False, True])
def test_an_import_that_is_cut_off_goes_on_under_its_lease(
    driver_name: str, driver_root: Path, layout: Path, *, killed: bool
) -> None:
    with layerfs.open(driver_root / "store", driver=driver_name) as store:
        store.lease(HOUR, "job")

        def cut_off(event: Progress) -> None:
            if event.action == "unpack":
                if killed:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise KeyboardInterrupt

        def work() -> None:
            with layerfs.open(store.path) as other:
                other.import_image(layout, lease=other.get_lease("job"), listener=cut_off)

        status = os.waitpid(children.start(work), 0)[1]
        assert os.WIFSIGNALED(status) == killed
        invariants.unmount_all(store)  # what a killed process leaves mounted is busy where a driver has devices
        blobs = set(store.blobs.digests())
        assert len(blobs) == 5  # the manifest, the configuration and three layers
        prune(store)
        assert set(store.blobs.digests()) == blobs
        copied: list[Progress] = []
        (image,) = store.import_image(layout, lease=store.get_lease("job"), listener=copied.append)
        # What is there already is reported in one step, as done.
        assert all(event.done == event.total for event in copied if event.action == "import")
        assert store.get_lease("job").names.images == {image.digest}
        assert store.blobs.has(Digest(image.digest))
        invariants.check_store(store)
