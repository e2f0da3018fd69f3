"""Two processes at once: each race has a winner, as docs/explanation/trust.md says, and a clear error for the loser."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import layerfs
from layerfs.contract import DirectAccess
from layerfs.kernel import mountinfo
from tests.guest import machine
from tests.support import invariants
from tests.support.images import BASE, EDIT, SHRINK, write_layout
from tests.support.racing import Act, Racer, race

pytestmark = [pytest.mark.root, pytest.mark.host]

ROUNDS = int(os.environ.get("LAYERFS_RACES", "5" if machine.inside() else "6"))

OK, BUSY, EXISTS, GONE, REFUSED = "ok", "Busy", "AlreadyExists", "NotFound", "FailedPrecondition"


@dataclass(frozen=True, slots=True)
class Scene:
    """A store with the image test:1, a layout to import, and a directory to mount at."""

    store: layerfs.Store
    layout: Path
    target: Path


@pytest.fixture
def scene(driver_name: str, driver_root: Path, fresh_dir: Path, tmp_path: Path) -> Iterator[Scene]:
    layout = write_layout(tmp_path / "image", [BASE, EDIT, SHRINK])
    target = fresh_dir / "target"
    target.mkdir()
    with layerfs.open(driver_root / "store", driver=driver_name) as store:
        store.import_image(layout)
        yield Scene(store, layout, target)
        invariants.unmount_all(store)
        invariants.check_store(store)


Do = Callable[[layerfs.Store, Scene], object]
"""What a process does with the store as it has opened it."""
Prepare = Callable[[Scene], None]
Judge = Callable[[Scene], None]


def nothing(scene: Scene) -> None:
    """Prepare nothing, judge nothing."""


def drop_clones(scene: Scene) -> None:
    """Remove all clones, mounted or not, and what they left."""
    for clone in scene.store.clones():
        with suppress(layerfs.FailedPrecondition):
            clone.unmount()
    for clone in scene.store.clones():
        clone.remove()
    scene.store.prune(scene.store.plan_prune())


def one_clone(scene: Scene) -> None:
    drop_clones(scene)
    scene.store.clone("test:1", "web")


def a_mounted_clone(scene: Scene) -> None:
    one_clone(scene)
    scene.store.get_clone("web").mount(scene.target)


def a_clone_with_a_snapshot(scene: Scene) -> None:
    one_clone(scene)
    scene.store.get_clone("web").snapshot("first")


def the_image_alone(scene: Scene) -> None:
    drop_clones(scene)
    scene.store.import_image(scene.layout)


def no_image(scene: Scene) -> None:
    drop_clones(scene)
    for image in scene.store.images():
        scene.store.remove_image(image.digest)


def two_keys(scene: Scene) -> None:
    snapshotter = scene.store.snapshotter
    for name in ("other", "result", "a", "b"):
        with suppress(layerfs.NotFound):
            snapshotter.remove(name)
    for key in ("a", "b"):
        snapshotter.prepare(key)
        if isinstance(scene.store.driver, DirectAccess):
            (scene.store.driver.layer_root(snapshotter.snapshot(key)).path / "by").write_text(key)


# --- what must hold afterwards ----------------------------------------------------------------------------------------


def the_image_is_whole(scene: Scene) -> None:
    with scene.store.clone("test:1") as clone, clone.mounted() as root:
        assert (root / "var/small").read_text() == "1"
        assert not (root / "var/big").exists()


def one_mount(scene: Scene) -> None:
    assert len(mountinfo.at(scene.target)) == 1


def mounted_is_whole(scene: Scene) -> None:
    """Check that what is mounted is the clone as it is, and not what was thrown away."""
    if mountinfo.at(scene.target):
        (scene.target / "written").write_text("x")
        assert (scene.target / "etc/issue").exists()
        assert scene.store.get_clone("web").mount_points() == (scene.target,)


def not_mounted(scene: Scene) -> None:
    assert mountinfo.at(scene.target) == ()


def both_work(scene: Scene) -> None:
    for clone in scene.store.clones():
        with clone.mounted() as root:
            assert (root / "etc/issue").exists()


def image_or_clone_is_whole(scene: Scene) -> None:
    """Whoever won: a clone has its image, an image that is gone has no clone."""
    images = {image.digest for image in scene.store.images()}
    assert {clone.image for clone in scene.store.clones()} <= images
    both_work(scene)


def the_loser_is_active(scene: Scene) -> None:
    snapshotter = scene.store.snapshotter
    kinds = {info.name: info.kind for info in snapshotter.infos()}
    (left,) = kinds.keys() & {"a", "b"}
    assert kinds[left] is layerfs.Kind.ACTIVE
    assert kinds["result"] is layerfs.Kind.COMMITTED
    snapshotter.commit("other", left)


def two_changed_clones(scene: Scene) -> None:
    drop_clones(scene)
    for name in ("one", "two"):
        with scene.store.clone("test:1", name).keep().mounted() as root:
            (root / "by").write_text(name)


def a_committed_snapshot(scene: Scene) -> None:
    two_keys(scene)
    scene.store.snapshotter.commit("result", "a")


def a_stray_blob(scene: Scene) -> None:
    drop_clones(scene)
    scene.store.blobs.put_bytes(os.urandom(8))


def one_name(scene: Scene) -> None:
    named = [image for image in scene.store.images() if "made:1" in image.names]
    assert len(named) == 1
    with scene.store.clone("made:1") as clone, clone.mounted() as root:
        assert (root / "by").read_text() in {"one", "two"}


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A race: what is there before, what both do, the outcomes that may be, and what holds afterwards."""

    prepare: Prepare
    first: Do
    second: Do
    outcomes: frozenset[tuple[str, str]]
    judge: Judge = nothing


def either(winner: str, *losers: str) -> frozenset[tuple[str, str]]:
    """Return the outcomes where one of both wins, whichever it is."""
    return frozenset(pair for loser in losers for pair in ((winner, loser), (loser, winner)))


def each(*pairs: tuple[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(pairs)


def prune(store: layerfs.Store, _scene: Scene) -> None:
    store.prune(store.plan_prune())


def take_in(store: layerfs.Store, scene: Scene) -> None:
    store.import_image(scene.layout)


def mount(store: layerfs.Store, scene: Scene) -> None:
    store.get_clone("web").mount(scene.target)


def clone(store: layerfs.Store, _scene: Scene) -> None:
    store.clone("test:1", "web")


def remove_image(store: layerfs.Store, _scene: Scene) -> None:
    store.remove_image("test:1")


def _no_deletions(changes: Sequence[layerfs.Change]) -> None:
    assert changes == [], "nobody changed anything, and what is being removed must not look like it"


CASES = {
    "two clones of one name": Case(drop_clones, clone, clone, either(OK, EXISTS), both_work),
    "two forks of one name": Case(
        one_clone,
        lambda store, _: store.get_clone("web").fork("copy"),
        lambda store, _: store.get_clone("web").fork("copy"),
        either(OK, EXISTS, BUSY),
        both_work,
    ),
    "two commits of one name": Case(
        two_keys,
        lambda store, _: store.snapshotter.commit("result", "a"),
        lambda store, _: store.snapshotter.commit("result", "b"),
        either(OK, EXISTS),
        the_loser_is_active,
    ),
    "two commits of one key": Case(
        two_keys,
        lambda store, _: store.snapshotter.commit("result", "a"),
        lambda store, _: store.snapshotter.commit("other", "a"),
        either(OK, GONE, BUSY),
    ),
    "two images of one name": Case(
        two_changed_clones,
        lambda store, _: store.get_clone("one").commit("made:1"),
        lambda store, _: store.get_clone("two").commit("made:1"),
        each((OK, OK)),
        one_name,
    ),
    "two removals of one key": Case(
        two_keys,
        lambda store, _: store.snapshotter.remove("a"),
        lambda store, _: store.snapshotter.remove("a"),
        either(OK, GONE),
    ),
    "remove beside commit": Case(
        two_keys,
        lambda store, _: store.snapshotter.remove("a"),
        lambda store, _: store.snapshotter.commit("result", "a"),
        either(OK, GONE, BUSY),
    ),
    "prepare beside the removal of its parent": Case(
        a_committed_snapshot,
        lambda store, _: store.snapshotter.prepare("other", "result"),
        lambda store, _: store.snapshotter.remove("result"),
        each((OK, REFUSED), (GONE, OK)),
    ),
    "two imports of the same image": Case(no_image, take_in, take_in, each((OK, OK)), the_image_is_whole),
    "prune beside import": Case(no_image, take_in, prune, each((OK, OK)), the_image_is_whole),
    "prune beside clone": Case(drop_clones, clone, prune, each((OK, OK)), both_work),
    "two prunes": Case(a_stray_blob, prune, prune, each((OK, OK))),
    "remove image beside clone": Case(
        the_image_alone, remove_image, clone, each((OK, GONE), (REFUSED, OK)), image_or_clone_is_whole
    ),
    "remove image beside import": Case(the_image_alone, remove_image, take_in, each((OK, OK)), image_or_clone_is_whole),
    "two removals of one image": Case(the_image_alone, remove_image, remove_image, either(OK, GONE)),
    "remove image beside tag": Case(
        the_image_alone,
        remove_image,
        lambda store, _: store.tag("test:1", "other:1"),
        each((OK, OK), (OK, GONE)),
        image_or_clone_is_whole,
    ),
    "remove image beside lists": Case(
        the_image_alone, remove_image, lambda store, _: (store.images(), store.plan_prune()), each((OK, OK))
    ),
    "two mounts of one clone": Case(one_clone, mount, mount, either(OK, BUSY), one_mount),
    "remove beside mount": Case(
        one_clone,
        lambda store, _: store.get_clone("web").remove(),
        mount,
        each((OK, GONE), (OK, BUSY), (BUSY, OK)),
        mounted_is_whole,
    ),
    "rollback beside mount": Case(
        one_clone,
        lambda store, _: store.get_clone("web").rollback(),
        mount,
        each((OK, OK), (OK, BUSY), (BUSY, OK)),
        mounted_is_whole,
    ),
    "snapshot beside mount": Case(
        one_clone,
        lambda store, _: store.get_clone("web").snapshot(),
        mount,
        each((OK, OK), (OK, BUSY), (BUSY, OK)),
        mounted_is_whole,
    ),
    "two unmounts": Case(
        a_mounted_clone,
        lambda store, _: store.get_clone("web").unmount(),
        lambda store, _: store.get_clone("web").unmount(),
        either(OK, REFUSED, BUSY),
        not_mounted,
    ),
    "unmount beside commit": Case(
        a_mounted_clone,
        lambda store, _: store.get_clone("web").unmount(),
        lambda store, _: store.get_clone("web").commit("made:2"),
        each((OK, OK), (OK, BUSY)),
        not_mounted,
    ),
    "fork beside rollback": Case(
        a_clone_with_a_snapshot,
        lambda store, _: store.get_clone("web").fork("copy"),
        lambda store, _: store.get_clone("web").rollback("first"),
        each((OK, OK), (OK, BUSY), (BUSY, OK)),
        both_work,
    ),
    "fork beside remove": Case(
        a_clone_with_a_snapshot,
        lambda store, _: store.get_clone("web").fork("copy"),
        lambda store, _: store.get_clone("web").remove(),
        each((OK, OK), (OK, BUSY), (BUSY, OK), (GONE, OK)),
        both_work,
    ),
    "changes beside remove": Case(
        one_clone,
        lambda store, _: _no_deletions(list(store.changes("web"))),
        lambda store, _: store.get_clone("web").remove(),
        each((OK, OK), (OK, BUSY), (GONE, OK)),
    ),
    "changes beside rollback": Case(
        one_clone,
        lambda store, _: _no_deletions(list(store.changes("web"))),
        lambda store, _: store.get_clone("web").rollback(),
        each((OK, OK), (OK, BUSY), (BUSY, OK)),
    ),
    "two snapshots": Case(
        one_clone,
        lambda store, _: store.get_clone("web").snapshot(),
        lambda store, _: store.get_clone("web").snapshot(),
        each((OK, OK), (OK, BUSY), (BUSY, OK)),
        both_work,
    ),
    "commit beside remove": Case(
        one_clone,
        lambda store, _: store.get_clone("web").commit("made:2"),
        lambda store, _: store.get_clone("web").remove(),
        each((OK, OK), (OK, BUSY), (BUSY, OK), (GONE, OK)),
        image_or_clone_is_whole,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_race(scene: Scene, name: str) -> None:
    case = CASES[name]

    def bound(do: Do) -> Act:
        return lambda store: do(store, scene)

    with Racer(scene.store.path, bound(case.first)) as first, Racer(scene.store.path, bound(case.second)) as second:
        for number in range(ROUNDS):
            case.prepare(scene)
            # Now the one begins first, now the other.
            said = race(first, second) if number % 2 else race(second, first)[::-1]
            outcome = tuple(words.partition(" ")[0] for words in said)
            assert outcome in case.outcomes, said
            case.judge(scene)
            invariants.check_snapshots(scene.store.snapshotter)
    drop_clones(scene)
