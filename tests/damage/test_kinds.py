"""Damage done on purpose: each kind is found by `check`, mended or named by `repair`, and every tree is what it was.

The table in docs/explanation/trust.md lists what is here.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import layerfs
from layerfs import ProblemKind, Store
from layerfs.checking.repair import Outcome
from tests.damage.hurting import directory, flip, sql, trees, writable
from tests.support import thin

pytestmark = pytest.mark.root

OVERLAYS = ("overlay2", "fuse")
TREES = ("overlay2", "fuse", "btrfs", "copy")
"""Which keep their snapshots as directories."""
ALL = (*TREES, "devicemapper")
"""For what concerns snapshots; blobs and most rows are the same for all drivers. Of zfs: test_datasets.py."""


@dataclass(frozen=True)
class Scene:
    """What damage is done to: a store with an image and a clone of it, "work", that has the snapshot "before"."""

    store: Store
    image: layerfs.Image
    tmp: Path

    @property
    def base(self) -> str:
        """Return the lowest layer."""
        return self.image.config.chain_ids[0]

    @property
    def top(self) -> str:
        """Return the uppermost layer."""
        return self.image.top

    def blob(self, number: int) -> Path:
        """Return the file of a layer's blob."""
        return self.store.blobs.path(self.image.manifest.layers[number].digest)


Do = Callable[[Scene], object]


@dataclass(frozen=True)
class Hurt:
    """One kind of damage: what does it, on which drivers, as which problem it is found, and what repair makes of it."""

    name: str
    do: Do
    kind: ProblemKind
    outcome: Outcome = Outcome.MENDED
    drivers: tuple[str, ...] = TREES
    file: str = ""


HURTS: list[Hurt] = []


def hurt(
    name: str, kind: ProblemKind, *, outcome: Outcome = Outcome.MENDED, drivers: tuple[str, ...] = TREES, file: str = ""
) -> Callable[[Do], Do]:
    """Declare a function as a kind of damage."""

    def declare(do: Do) -> Do:
        HURTS.append(Hurt(name, do, kind, outcome, drivers, file))
        return do

    return declare


# -- blobs -------------------------------------------------------------------------------------------------------------


@hurt("A bit of a layer's blob is flipped", ProblemKind.BLOB, outcome=Outcome.LOST, drivers=ALL)
def flipped(scene: Scene) -> None:
    flip(scene.blob(0))


@hurt("A layer's blob is cut off", ProblemKind.BLOB, outcome=Outcome.LOST)
def cut(scene: Scene) -> None:
    os.truncate(scene.blob(1), 20)


@hurt("A layer's blob is removed", ProblemKind.BLOB, outcome=Outcome.LOST)
def removed(scene: Scene) -> None:
    scene.blob(0).unlink()


@hurt("A layer's blob is replaced by another one", ProblemKind.BLOB, outcome=Outcome.LOST)
def replaced(scene: Scene) -> None:
    shutil.copyfile(scene.blob(1), scene.blob(0))


# -- files of layers ---------------------------------------------------------------------------------------------------


@hurt("A bit of a file in a layer is flipped, its times as before", ProblemKind.CONTENT, file="/var/zeros", drivers=ALL)
def one_bit(scene: Scene) -> None:
    with writable(scene.store, scene.base) as root:
        flip(root / "var/zeros")


@hurt("A file of a layer is rewritten", ProblemKind.CONTENT, file="/etc/passwd")
def changed(scene: Scene) -> None:
    with writable(scene.store, scene.base) as root:
        (root / "etc/passwd").write_text("root::0:0\n")


@hurt("A file of a layer is removed", ProblemKind.CONTENT, file="/bin/tool", drivers=ALL)
def file_removed(scene: Scene) -> None:
    with writable(scene.store, scene.base) as root:
        (root / "bin/tool").unlink()


@hurt("A directory with a file is added to a layer", ProblemKind.CONTENT, file="/etc/cron.d")
def file_added(scene: Scene) -> None:
    with writable(scene.store, scene.top) as root:
        (root / "etc/cron.d").mkdir()
        (root / "etc/cron.d/job").write_text("* * * * * root evil\n")


@hurt("The mode of a file in a layer is changed", ProblemKind.CONTENT, file="/bin/tool")
def mode(scene: Scene) -> None:
    with writable(scene.store, scene.base) as root:
        (root / "bin/tool").chmod(0o755)


@hurt("The owner of a file in a layer is changed", ProblemKind.CONTENT, file="/etc/passwd")
def owner(scene: Scene) -> None:
    with writable(scene.store, scene.base) as root:
        os.chown(root / "etc/passwd", 1000, 1000)


@hurt("An extended attribute of a file in a layer is changed", ProblemKind.CONTENT, file="/bin/tool", drivers=ALL)
def attribute(scene: Scene) -> None:
    with writable(scene.store, scene.base) as root:
        os.setxattr(root / "bin/tool", "user.note", b"lost")


@hurt("The modification time of a file in a layer is changed by a nanosecond", ProblemKind.CONTENT, file="/var/empty")
def time(scene: Scene) -> None:
    with writable(scene.store, scene.base) as root:
        was = (root / "var/empty").stat()
        os.utime(root / "var/empty", ns=(was.st_atime_ns, was.st_mtime_ns + 1))


@hurt(
    "A hard link in a layer is broken, with the same content under both names",
    ProblemKind.CONTENT,
    file="/etc/passwd-",
    drivers=ALL,
)
def link_broken(scene: Scene) -> None:
    with writable(scene.store, scene.base) as root:
        shutil.copy2(root / "etc/passwd-", root / "etc/copy")
        os.rename(root / "etc/copy", root / "etc/passwd-")


@hurt("A symbolic link in a layer leads elsewhere", ProblemKind.CONTENT, file="/lib")
def link_moved(scene: Scene) -> None:
    with writable(scene.store, scene.base) as root:
        (root / "lib").unlink()
        (root / "lib").symlink_to("tmp")


@hurt(
    "A whiteout of a layer is removed, so that a deleted directory shows again",
    ProblemKind.CONTENT,
    drivers=OVERLAYS,
    file="/gone",
)
def whiteout(scene: Scene) -> None:
    (directory(scene.store, scene.top) / "gone").unlink()


@hurt(
    "The mark of an opaque directory is removed, so that what it hid shows again",
    ProblemKind.CONTENT,
    drivers=OVERLAYS,
    file="/hidden",
)
def opaque(scene: Scene) -> None:
    os.removexattr(directory(scene.store, scene.top) / "hidden", "trusted.overlay.opaque")


@hurt(
    "A file of a clone's snapshot is rewritten, which no blob has",
    ProblemKind.CONTENT,
    outcome=Outcome.LOST,
    drivers=ALL,
    file="/own/file",
)
def own_file(scene: Scene) -> None:
    with writable(scene.store, "clone/work@before") as root:
        (root / "own/file").write_text("other\n")


# -- directories of snapshots ------------------------------------------------------------------------------------------


@hurt("The directory of a layer is emptied", ProblemKind.CONTENT, drivers=ALL)
def emptied(scene: Scene) -> None:
    with writable(scene.store, scene.base) as root:
        for path in root.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@hurt("All of a layer is removed", ProblemKind.SNAPSHOT, drivers=ALL)
def directory_gone(scene: Scene) -> None:
    scene.store.driver.remove(scene.store.snapshotter.snapshot(scene.top).id)


@hurt("The directory of a layer is renamed", ProblemKind.FOREIGN)
def directory_renamed(scene: Scene) -> None:
    place = scene.store.path / scene.store.driver.name / str(scene.store.snapshotter.snapshot(scene.top).id)
    place.rename(place.with_name("old-layer"))


@hurt("The thin device of a layer is deleted from its pool", ProblemKind.SNAPSHOT, drivers=("devicemapper",))
def thin_device_gone(scene: Scene) -> None:
    thin.message(f"delete {scene.store.snapshotter.snapshot(scene.base).id}")


@hurt("All of a clone is removed, which nothing else has", ProblemKind.SNAPSHOT, outcome=Outcome.LOST, drivers=ALL)
def clone_gone(scene: Scene) -> None:
    other = scene.store.clone(scene.image.digest, "other")
    scene.store.driver.remove(scene.store.snapshotter.snapshot(other.key).id)


@hurt("There are bytes of a snapshot that no row names", ProblemKind.ORPHAN, drivers=ALL)
def orphan(scene: Scene) -> None:
    scene.store.driver.create(layerfs.Snapshot(layerfs.SnapshotId(999), layerfs.Kind.ACTIVE))


@hurt("A foreign file lies in the store", ProblemKind.FOREIGN)
def stranger(scene: Scene) -> None:
    (scene.store.path / "notes.txt").write_text("mine\n")


@hurt("A foreign directory lies in the driver's", ProblemKind.FOREIGN)
def stranger_within(scene: Scene) -> None:
    for name in ("backup", "007", "\N{ARABIC-INDIC DIGIT THREE}", str((1 << 63) - 1), "9" * 30):
        (scene.store.path / scene.store.driver.name / name).mkdir()


@hurt("A file that is no blob lies among the blobs", ProblemKind.FOREIGN)
def stranger_blob(scene: Scene) -> None:
    (scene.store.blobs.root / "sha256/README").write_text("mine\n")


@hurt("A blob was left unfinished by a process that died", ProblemKind.LEFTOVER)
def unfinished(scene: Scene) -> None:
    (scene.store.blobs.root / "ingest/0123").write_bytes(b"half")


@hurt("The directory of the store is open to everybody", ProblemKind.MODE)
def open_to_all(scene: Scene) -> None:
    scene.store.path.chmod(0o755)


# -- mounts ------------------------------------------------------------------------------------------------------------


@hurt(
    "A clone is mounted, and its rows went with a removal that was killed",
    ProblemKind.MOUNT,
    drivers=("overlay2", "copy", "btrfs", "devicemapper"),
)
def dangling(scene: Scene) -> None:
    target = scene.tmp / "dangling"
    target.mkdir()
    other = scene.store.clone(scene.image.digest, "other")
    other.mount(target)
    with scene.store._parts.database.write() as connection:
        connection.execute("DELETE FROM snapshots WHERE name = 'clone/other'")
        connection.execute("DELETE FROM clones WHERE name = 'other'")


@hurt("The process that serves the mount of a clone was killed", ProblemKind.MOUNT, drivers=("fuse",))
def dead_server(scene: Scene) -> None:
    target = scene.tmp / "dead"
    target.mkdir()
    work = scene.store.get_clone("work")
    work.mount(target)
    log = (directory(scene.store, work.key).parent / "log").read_text()
    server = os.pidfd_open(int(log.splitlines()[-1].split()[2]))
    signal.pidfd_send_signal(server, signal.SIGKILL)
    select.select([server], [], [])
    os.close(server)


# -- indexes -----------------------------------------------------------------------------------------------------------


def _index(scene: Scene, name: str) -> Path:
    return directory(scene.store, name).parent / "index"


@hurt("The index of a layer lies: a bit of it is flipped", ProblemKind.INDEX, drivers=("fuse",))
def index_lies(scene: Scene) -> None:
    flip(_index(scene, scene.top))


@hurt("The index of a layer is cut off", ProblemKind.INDEX, drivers=("fuse",))
def index_cut(scene: Scene) -> None:
    os.truncate(_index(scene, scene.top), 5000)


@hurt("The index of a layer is that of another one", ProblemKind.INDEX, drivers=("fuse",))
def index_of_another(scene: Scene) -> None:
    shutil.copyfile(_index(scene, "clone/work@before"), _index(scene, scene.top))


# -- rows --------------------------------------------------------------------------------------------------------------


@hurt("The rows that say which layers an image has are deleted", ProblemKind.ROWS, drivers=ALL)
def layer_rows(scene: Scene) -> None:
    with sql(scene.store) as connection:
        connection.execute("DELETE FROM layers")


@hurt("The row of a clone is deleted", ProblemKind.ROWS)
def clone_row(scene: Scene) -> None:
    with sql(scene.store) as connection:
        connection.execute("DELETE FROM clones")


@hurt("The row of a name of an image is deleted", ProblemKind.ROWS)
def tag_row(scene: Scene) -> None:
    with sql(scene.store) as connection:
        connection.execute("DELETE FROM tags")


@hurt("The row of an image is deleted, with all that refers to it", ProblemKind.ROWS, drivers=ALL)
def image_row(scene: Scene) -> None:
    with sql(scene.store) as connection:
        connection.execute("DELETE FROM tags")
        connection.execute("DELETE FROM layers")
        connection.execute("DELETE FROM clones")
        connection.execute("DELETE FROM images")


@hurt("The rows of all snapshots and of their labels are deleted", ProblemKind.ROWS, drivers=ALL)
def snapshot_rows(scene: Scene) -> None:
    with sql(scene.store) as connection:
        connection.execute("DELETE FROM labels")
        connection.execute("DELETE FROM snapshots")


@hurt("The labels of layers are deleted", ProblemKind.ROWS)
def label_rows(scene: Scene) -> None:
    with sql(scene.store) as connection:
        connection.execute("DELETE FROM labels")


# -- the test ----------------------------------------------------------------------------------------------------------


def _cases() -> list[object]:
    return [pytest.param(driver, each, id=f"{driver}-{each.do.__name__}") for each in HURTS for driver in each.drivers]


@pytest.mark.parametrize(("driver_name", "each"), _cases(), indirect=["driver_name"])
def test_damage_is_found_and_mended(
    store: Store, image: layerfs.Image, clone: layerfs.Clone, each: Hurt, fresh_dir: Path
) -> None:
    assert clone.name == "work"
    scene = Scene(store, image, fresh_dir)
    assert store.check(deep=True) == ()
    before = trees(store)

    each.do(scene)
    found = [problem for problem in store.check(deep=True) if problem.kind is each.kind]
    assert found, each.name
    assert each.file in {problem.file for problem in found} or not each.file
    assert all(problem.message for problem in found)

    planned = store.repair()
    assert Outcome.MENDED not in {remedy.outcome for remedy in planned}
    remedies = store.repair(force=True)
    assert {remedy.outcome for remedy in remedies if remedy.problem.kind is each.kind} == {each.outcome}, remedies
    if each.outcome is Outcome.MENDED:
        assert {remedy.outcome for remedy in remedies} == {Outcome.MENDED}, remedies
        assert store.check(deep=True) == ()
        assert trees(store) == before
        assert {clone.name for clone in store.clones()} == {"work"}


def test_the_table_of_the_docs_lists_every_kind() -> None:
    page = (Path(__file__).parents[2] / "docs/explanation/trust.md").read_text().lower()
    assert [each.name for each in HURTS if f"| {each.name} |".lower() not in page] == []
