"""A store carried to another one: every pair of drivers, everything that a tree can have, interrupted and resumed."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

import layerfs
from layerfs import (
    AlreadyExists,
    Busy,
    Corrupt,
    FailedPrecondition,
    IdMap,
    IdRange,
    InvalidArgument,
    Kind,
    Mount,
    NoSpace,
    Quota,
    Store,
    Unsupported,
)
from layerfs.contract import LayerRoot, Whiteouts
from layerfs.kernel import userns
from layerfs.kernel.children import fork
from layerfs.kernel.mounting import mounted
from layerfs.layer.apply import apply
from tests.layer import trees
from tests.layer.any_trees import pairs, without_marks
from tests.support import invariants
from tests.support.images import BASE, EDIT, SHRINK, write_layout
from tests.support.rootless import Rootless
from tests.support.sending import SendingDriver

HOST_DRIVERS = ("copy", "overlay2", "btrfs", "fuse")

MakeStore = Callable[[str, str], Store]


@pytest.fixture
def make_store(fresh_dir: Path, request: pytest.FixtureRequest) -> Iterator[MakeStore]:
    """Give ``make_store(name, driver)``: a new store on what suits the driver, closed at the end."""
    made: list[Store] = []

    def make(name: str, driver: str) -> Store:
        root = fresh_dir
        if driver == "btrfs":
            root = request.getfixturevalue("btrfs_mount") / f"migrate-{os.urandom(4).hex()}"
            root.mkdir()
        made.append(layerfs.open(root / name, driver=driver))
        return made[-1]

    yield make
    for store in made:
        store.close()


def change_everything(root: Path) -> None:
    """Do to a clone what a layer cannot always say: every kind of file, links, holes, times, names that are gone."""
    (root / "etc/issue").write_text("changed\n")
    (root / "var/small").unlink()
    (root / "tmp").rmdir()
    (root / "tmp").write_text("a file where a directory was")
    (root / "etc/more").unlink()
    (root / "etc/more").mkdir()
    (root / "etc/more/inner").write_bytes(b"")
    spec = {
        b"new": trees.Node("dir", 0o2750, 1000, 3_000_000, 1_700_000_000_000_000_001, xattrs=((b"user.d", b"1"),)),
        b"new/file": trees.Node(
            "file", 0o4755, 7, 8, 1_600_000_000_987_654_321, b"x" * 5000, xattrs=((b"user.k", b""),)
        ),
        b"new/hard": trees.Node("hard", target=b"new/file"),
        b"new/\xff\n": trees.Node("link", target=b"../nowhere"),
        b"new/fifo": trees.Node("fifo", 0o600),
        b"new/null": trees.Node("char", 0o666),
        b"new/.wh.odd": trees.Node("file", content=b"no layer could hold this name"),
    }
    base = os.fsencode(root)
    for name, node in spec.items():
        if node.kind == "hard":
            os.link(base + b"/" + node.target, base + b"/" + name)
        else:
            trees._make_one(base + b"/" + name, node)
    with (root / "new/sparse").open("wb") as file:
        file.truncate(5 << 20)
        file.seek(2 << 20)
        file.write(b"in the middle")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "new/socket"))
    os.link(root / "etc/issue", root / "etc/issue-too")
    os.utime(root / "new", ns=(1, 1_700_000_000_000_000_001))
    os.utime(root, ns=(5, 1_234_567_890_123_456_789))


def fill(store: Store, path: Path) -> None:
    """Give a store two images that share a layer, clones with snapshots and a fork, and a plain snapshot."""
    store.import_image(write_layout(path / "one", [BASE, EDIT, SHRINK], name="test:1"))
    store.import_image(write_layout(path / "two", [BASE], name="test:2"), unpack=False)
    web = store.clone("test:1", "web")
    with web.mounted() as root:
        change_everything(root)
    web.snapshot("first")
    with web.mounted() as root:
        (root / "new/file").unlink()
        (root / "new/sparse").write_text("short")
        (root / "etc/issue").chmod(0o600)
    web.fork("fork")
    with web.mounted() as root:
        (root / "after").write_text("the fork does not have this")
        os.link(root / "new/hard", root / "new/harder")
    store.clone("test:1", "idle")
    plain = store.snapshotter
    plain.prepare("work/1", "", labels={"one": "1"})
    with mounted(plain.mounts("work/1")) as root:
        (root / "plain").write_text("a snapshot of containerd's")
    plain.commit("plain/1", "work/1", labels={"containerd.io/snapshot/x": "y"})
    plain.prepare("work/2", "plain/1", labels={"two": "2"})
    plain.view("look", "plain/1")


def trees_of(store: Store) -> dict[str, dict[bytes, trees.Seen]]:
    """Describe everything that a store shows, by name."""
    found: dict[str, dict[bytes, trees.Seen]] = {}
    for info in store.snapshotter.infos():
        with store._parts.tree(info.name) as root:
            found[info.name] = trees.describe(root)
    return found


def state_of(store: Store) -> object:
    """Return everything that a store says of itself, except times of layers and ids."""
    infos = {
        info.name: (info.kind, info.parent, info.labels, None if info.name.startswith("sha256:") else info.created)
        for info in store.snapshotter.infos()
    }
    images = {image.digest: (image.names, image.imported) for image in store.images()}
    clones = {clone.name: (clone.image, clone.created, clone.snapshots()) for clone in store.clones()}
    return infos, images, clones


def assert_same(source: Store, target: Store) -> None:
    """Check that two stores hold the same."""
    assert state_of(source) == state_of(target)
    assert target.check(deep=True) == ()
    before, after = trees_of(source), trees_of(target)
    for name, tree in before.items():
        if name.startswith("sha256:"):  # these layers do not say when their root was changed
            tree[b"."] = replace(tree[b"."], mtime=after[name][b"."].mtime)
        assert not trees.difference(tree, after[name]), name
    invariants.check_store(target)


@pytest.mark.root
@pytest.mark.parametrize(("one", "other"), list(product(HOST_DRIVERS, HOST_DRIVERS)))
def test_all_of_a_store_comes_along(make_store: MakeStore, fresh_dir: Path, one: str, other: str) -> None:
    source, target = make_store("source", one), make_store("target", other)
    fill(source, fresh_dir)
    before = trees_of(source)
    done = source.migrate(target)
    assert (done.images, done.clones, done.there) == (2, 3, 0)
    assert_same(source, target)
    assert trees_of(source) == before
    again = source.migrate(target)
    assert (again.images, again.clones, again.snapshots) == (0, 0, 0)
    assert target.path.joinpath("migrating").exists() is False


@pytest.mark.root
@pytest.mark.parametrize(
    ("driver_name", "way"),
    [("devicemapper", "from it"), ("devicemapper", "to it"), ("devicemapper", "to its kind")],
)
def test_drivers_of_the_guests(driver_name: str, driver_root: Path, tmp_path: Path, trees_dir: Path, way: str) -> None:
    with layerfs.open(driver_root / "one", driver=driver_name) as one:
        if way == "to it":
            with layerfs.open(trees_dir / "other", driver="copy") as other:
                carry_everything(other, one, tmp_path)
        elif way == "from it":
            with layerfs.open(trees_dir / "other", driver="copy") as other:
                carry_everything(one, other, tmp_path)
        else:
            with layerfs.open(driver_root / "two", driver=driver_name) as other:
                carry_everything(one, other, tmp_path)


def carry_everything(source: Store, target: Store, path: Path) -> None:
    """Carry a store with everything in it to an empty one, and compare."""
    fill(source, path)
    source.migrate(target)
    assert_same(source, target)
    assert source.migrate(target).clones == 0


@pytest.fixture
def pair(make_store: MakeStore, fresh_dir: Path) -> tuple[Store, Store]:
    """Give a full store of whole trees, and an empty one that stacks layers."""
    source, target = make_store("source", "copy"), make_store("target", "overlay2")
    fill(source, fresh_dir)
    return source, target


@pytest.mark.root
def test_what_was_shared_is_shared(pair: tuple[Store, Store]) -> None:
    source, target = pair
    with source.get_clone("idle").mounted() as root:
        (root / "tmp/written").write_text("little")
    source.migrate(target)
    base = target.snapshotter.usage(target.image("test:1").config.chain_ids[0])
    assert base.size > 100_000
    assert target.snapshotter.usage("clone/idle").inodes < base.inodes
    assert target.snapshotter.usage("clone/idle").size < 50_000


@pytest.mark.root
def test_a_single_clone_brings_what_it_stands_on(pair: tuple[Store, Store]) -> None:
    source, target = pair
    done = source.migrate(target, ["fork"])
    assert (done.images, done.clones) == (1, 1)
    assert [clone.name for clone in target.clones()] == ["fork"]
    assert target.image("test:1").digest == source.image("test:1").digest
    with target.get_clone("fork").mounted() as root:
        assert not (root / "new/file").exists()
    invariants.check_store(target)
    assert source.migrate(target, ["web"]).clones == 1
    assert source.get_clone("web").snapshots() == target.get_clone("web").snapshots()


@pytest.mark.root
def test_a_single_image_comes_without_clones(pair: tuple[Store, Store]) -> None:
    source, target = pair
    source.migrate(target, ["test:2"])
    assert [image.names for image in target.images()] == [("test:2",)]
    assert not target.clones()
    assert target.snapshotter.missing(source.image("test:2").config.chain_ids) == set()
    invariants.check_store(target)


@pytest.mark.root
def test_what_is_there_from_elsewhere_serves_as_a_parent(pair: tuple[Store, Store], fresh_dir: Path) -> None:
    source, target = pair
    target.import_image(fresh_dir / "one")
    done = source.migrate(target, ["web"])
    assert (done.images, done.clones, done.there) == (0, 1, 1)
    with target.get_clone("web").mounted() as there, source.get_clone("web").mounted() as here:
        assert not trees.difference(trees.describe(here), trees.describe(there))


@pytest.mark.root
def test_a_mounted_clone_is_named(pair: tuple[Store, Store]) -> None:
    source, target = pair
    with source.get_clone("web").mounted() as root:
        with pytest.raises(Busy, match=f"the clone 'web' is mounted at {root}|in use"):
            source.migrate(target)
        assert source.migrate(target, ["test:2"]).images == 1
    assert not target.clones()


@pytest.mark.root
def test_clones_are_held_meanwhile(pair: tuple[Store, Store], fresh_dir: Path) -> None:
    source, target = pair
    (fresh_dir / "mnt").mkdir()
    refused: list[str] = []

    def mount_it(_event: layerfs.Progress) -> None:
        try:
            source.get_clone("idle").mount(fresh_dir / "mnt")
        except Busy as error:
            refused.append(error.message)

    source.migrate(target, listener=mount_it)
    assert refused
    assert_same(source, target)


@pytest.mark.root
def test_names_of_others_are_kept(pair: tuple[Store, Store], fresh_dir: Path) -> None:
    source, target = pair
    target.import_image(write_layout(fresh_dir / "three", [EDIT], name="test:3"))
    target.clone("test:3", "web")
    with pytest.raises(AlreadyExists, match="another clone 'web'"):
        source.migrate(target)
    target.get_clone("web").remove()
    target.tag("test:3", "test:2")
    with pytest.raises(AlreadyExists, match="test:2"):
        source.migrate(target)
    assert [image.name for image in target.images()] == ["test:2"]


@pytest.mark.root
@pytest.mark.parametrize("side", [0, 1])
def test_what_changed_since_is_not_overwritten(pair: tuple[Store, Store], side: int) -> None:
    source, target = pair
    source.migrate(target)
    with pair[side].get_clone("idle").mounted() as root:
        (root / "etc/issue").write_text("later")
    with pytest.raises(FailedPrecondition, match=r"'idle' was migrated before, and changed since.*etc/issue"):
        source.migrate(target)
    target.get_clone("idle").remove()
    assert source.migrate(target).clones == 1
    assert_same(source, target)


@pytest.mark.root
def test_a_tree_that_is_not_the_same_is_refused(pair: tuple[Store, Store]) -> None:
    """A file of the first snapshot is altered in the target, its time kept, before the comparison."""
    source, target = pair

    def alter(event: layerfs.Progress) -> None:
        if event == layerfs.Progress("migrate", "clone/web@first", event.total or 0, event.total):
            (file,) = target.path.glob("overlay2/*/diff/new/file")
            status = file.stat()
            file.write_bytes(b"y" + file.read_bytes()[1:])
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

    with pytest.raises(
        Corrupt, match="the snapshot 'clone/web@first' is not the same in both stores: 'new/file' is modified"
    ):
        source.migrate(target, listener=alter)
    assert not target.snapshotter.infos(prefix="migrating/")
    source.migrate(target)
    assert_same(source, target)


@pytest.mark.root
@pytest.mark.parametrize("damage", [lambda blob: blob.write_bytes(b"x" + blob.read_bytes()[1:]), Path.unlink])
def test_a_damaged_blob_is_named_with_its_image(pair: tuple[Store, Store], damage: Callable[[Path], object]) -> None:
    source, target = pair
    layer = source.image("test:1").manifest.layers[-1].digest
    source.blobs.path(layer).chmod(0o600)
    damage(source.blobs.path(layer))
    with pytest.raises(Corrupt, match=f"the image test:1 cannot be carried: .*{layer}") as caught:
        source.migrate(target)
    assert "layerfs repair" in (caught.value.hint or "")
    assert not target.clones()
    assert source.migrate(target, ["test:2"]).images == 1


@pytest.mark.root
def test_the_source_goes_when_asked_for(pair: tuple[Store, Store]) -> None:
    source, target = pair
    before = state_of(source)
    source.snapshotter.remove("look")
    source.migrate(target, ["web"], remove=True)
    assert {clone.name for clone in source.clones()} == {"fork", "idle"}
    invariants.check_store(source)
    source.migrate(target, remove=True)
    assert not source.clones()
    assert not source.images()
    assert not source.snapshotter.infos()
    assert set(before[2]) == {clone.name for clone in target.clones()}  # type: ignore[index]
    invariants.check_store(target)


@pytest.mark.root
def test_snapshots_of_other_clones_stay(pair: tuple[Store, Store]) -> None:
    source, target = pair
    web = source.get_clone("web")
    web.rollback("first")
    source.migrate(target, ["fork"], remove=True)
    assert {clone.name for clone in source.clones()} == {"web", "idle"}
    assert web.snapshots() == ("first", "fork-fork")
    invariants.check_store(source)


def test_the_same_store_and_another_map_are_refused(make_store: MakeStore, fresh_dir: Path) -> None:
    source = make_store("source", "copy")
    with pytest.raises(InvalidArgument, match="to itself"):
        source.migrate(source)
    id_map = IdMap((IdRange(0, 100_000, 65_536),), (IdRange(0, 100_000, 65_536),))
    with (
        layerfs.open(fresh_dir / "mapped", driver="copy", id_map=id_map) as mapped,
        pytest.raises(FailedPrecondition, match="another id map"),
    ):
        source.migrate(mapped)


@pytest.mark.root
def test_a_full_target_leaves_nothing_half_done(pair: tuple[Store, Store], fresh_dir: Path) -> None:
    source, _ = pair
    with source.get_clone("idle").mounted() as root:
        (root / "big").write_bytes(os.urandom(6 << 20))
    (fresh_dir / "small").mkdir()
    before = state_of(source), trees_of(source)
    with mounted([Mount("tmpfs", "small", ("size=4m",))], fresh_dir / "small") as small:
        with layerfs.open(small / "store", driver="overlay2") as target, pytest.raises(NoSpace):
            source.migrate(target)
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        assert (state_of(source), trees_of(source)) == before
        with layerfs.open(small / "store") as target:
            invariants.check_snapshots(target.snapshotter)
            assert source.migrate(target).there > 0
            assert_same(source, target)


@pytest.fixture(params=[("overlay2", "copy"), ("copy", "overlay2"), ("fuse", "btrfs"), ("btrfs", "fuse")])
def two(request: pytest.FixtureRequest, make_store: MakeStore) -> tuple[Store, Store]:
    """Give two empty stores."""
    one, other = request.param
    return make_store("source", one), make_store("target", other)


@pytest.mark.root
@settings(
    max_examples=int(os.environ.get("LAYERFS_EXAMPLES", "12")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(specs=pairs())
def test_any_tree_comes_along(two: tuple[Store, Store], fresh_dir: Path, specs: tuple[trees.Spec, trees.Spec]) -> None:
    source, target = two
    with tempfile.TemporaryDirectory(dir=fresh_dir) as name:
        top = Path(name)
        before, after = (trees.make(top / name, without_marks(spec)) for name, spec in zip("ab", specs, strict=True))
        source.import_image(write_layout(top / "image", [trees.layer_of(None, before)], name="test:1"))
        with source.clone("test:1", "any") as clone:
            clone.snapshot()
            with clone.mounted() as root:
                apply(io.BytesIO(trees.layer_of(before, after)), LayerRoot(root, Whiteouts.REMOVE))
            source.migrate(target, ["any"])
            with clone.mounted() as here, target.get_clone("any").mounted() as there:
                assert not trees.difference(trees.describe(here), trees.describe(there))
        target.get_clone("any").remove()
        for store in two:
            store.remove_image("test:1")
            store.prune(store.plan_prune())


def migrate_here(home: Path) -> None:
    """Carry a store with everything in it from one driver that this user has to another, and back."""
    userns.enter()
    with layerfs.open(home / "source", driver="overlay2") as source, layerfs.open(home / "copy", driver="copy") as copy:
        source.import_image(write_layout(home / "one", [BASE, EDIT, SHRINK], name="test:1"))
        clone = source.clone("test:1", "web")
        with clone.mounted() as root:
            (root / "var/small").unlink()
            (root / "etc").joinpath("issue").write_text("changed\n")
        clone.snapshot("first")
        source.migrate(copy)
        assert_same(source, copy)
        with layerfs.open(home / "fuse", driver="fuse") as fuse:
            copy.migrate(fuse)
            assert_same(copy, fuse)


@pytest.mark.rootless
def test_an_ordinary_user_migrates(run_rootless: Rootless, rootless_dir: Path) -> None:
    run_rootless(migrate_here, rootless_dir)


@pytest.mark.root
def test_quotas_come_along_or_are_refused(make_store: MakeStore, fresh_dir: Path) -> None:
    source, target, without = make_store("source", "fuse"), make_store("target", "fuse"), make_store("copy", "copy")
    source.import_image(write_layout(fresh_dir / "one", [BASE], name="test:1"))
    quota = Quota(1 << 20, 100)
    clone = source.clone("test:1", "web", quota=quota)
    with clone.mounted() as root:
        (root / "data").write_bytes(b"x" * 1000)
    with pytest.raises(Unsupported, match="quotas"):
        source.migrate(without)
    assert not without.clones()
    assert not without.snapshotter.infos(prefix="migrating/")
    source.migrate(target)
    assert target.get_clone("web").quota == quota
    with target.get_clone("web").mounted() as root, pytest.raises(OSError, match=r"quota|space"):
        (root / "more").write_bytes(bytes(2 << 20))


@pytest.mark.root
def test_the_target_takes_the_place_of_the_source(pair: tuple[Store, Store], fresh_dir: Path) -> None:
    source, target = pair
    source.migrate(target)
    known = state_of(target), trees_of(target)
    for store in pair:
        store.close()
    source.path.rename(fresh_dir / "old")
    target.path.rename(source.path)
    with layerfs.open(source.path) as moved:
        assert (state_of(moved), trees_of(moved)) == known
        moved.clone("test:1", "new")
        invariants.check_store(moved)


@pytest.fixture
def senders(fresh_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, Store]]:
    """Give two stores of a driver that sends and receives."""
    metadata = fresh_dir / "sending-1.0.dist-info"
    metadata.mkdir()
    (metadata / "entry_points.txt").write_text("[layerfs.drivers]\nsending = tests.support.sending:open_driver\n")
    monkeypatch.syspath_prepend(str(fresh_dir))
    SendingDriver.received.clear()
    source, target = fresh_dir / "source", fresh_dir / "target"
    with layerfs.open(source, driver="sending") as one, layerfs.open(target, driver="sending") as other:
        yield one, other


@pytest.mark.root
def test_streams_are_handed_on(senders: tuple[Store, Store], tmp_path: Path) -> None:
    source, target = senders
    fill(source, tmp_path)
    source.migrate(target)
    assert_same(source, target)
    committed = source.snapshotter.infos(f"kind=={Kind.COMMITTED}")
    assert len(SendingDriver.received) == len(committed)


@pytest.mark.root
def test_where_streams_do_not_fit_files_are_carried(senders: tuple[Store, Store], tmp_path: Path) -> None:
    source, target = senders
    fill(source, tmp_path)
    target.import_image(tmp_path / "one")
    source.migrate(target)
    assert trees_of(target)["clone/web"] == trees_of(source)["clone/web"]
    assert target.check(deep=True) == ()
    assert len(SendingDriver.received) == 1  # the snapshot that stands on no layer
    assert source.migrate(target).clones == 0


def carry_until(source: Path, target: Path, events: int) -> bool:
    """Migrate in a process that is killed when it has reported so often; tell whether that came before its end."""
    child = fork()
    if child == 0:
        told = count(1)

        def end(_event: layerfs.Progress) -> None:
            if next(told) == events:
                os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            with layerfs.open(source) as one, layerfs.open(target) as other:
                one.migrate(other, listener=end)
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, -signal.SIGKILL}
    return status != 0


@pytest.mark.root
@pytest.mark.parametrize(("one", "other"), [("overlay2", "copy"), ("copy", "fuse"), ("fuse", "btrfs")])
def test_kills_lose_nothing(make_store: MakeStore, fresh_dir: Path, one: str, other: str) -> None:
    source, target = make_store("source", one), make_store("target", other)
    fill(source, fresh_dir)
    before = state_of(source), trees_of(source)
    killed = 0
    while carry_until(source.path, target.path, 1 + killed * (killed + 1) // 2):  # ever later, as it goes on
        killed += 1
    assert killed > 3
    source.migrate(target)
    assert_same(source, target)
    assert (state_of(source), trees_of(source)) == before
