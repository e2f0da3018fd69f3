"""What a store can do, one entry each, for the faults that may meet it at every call.

An operation takes a store from one state to another: `prepare` brings about the first, from either of them, and `act`
the second. To add one is to add an `Operation` to `OPERATIONS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import layerfs
from layerfs import Kind, NoSpace, NotFound, OperationFailed, Quota, Store
from layerfs.checking.repair import Outcome
from layerfs_fuse.union.ledger import read_quota
from tests.damage.hurting import writable
from tests.support import invariants
from tests.support.images import BASE, EDIT, SHRINK, Layer, write_layout

NOW = 1_700_000_000_000_000_000
"""The time of every store here, in nanoseconds since 1970, so that the same work gives the same digests."""

_NEW: Layer = {"opt": None, "opt/program": b"program\n" * 3000, "opt/data": None, "opt/data/one": b"1"}


@dataclass(frozen=True, slots=True)
class Scene:
    """A store, its driver, and layouts of images beside it: one, two more layers on the base, and all of others."""

    path: Path
    driver: str
    layouts: Path

    def open(self) -> Store:
        """Open the store with the clock that stands still."""
        return layerfs.open(self.path, driver=self.driver, clock=lambda: NOW)

    def layout(self, name: str) -> Path:
        """Return the layout of a name: "base", "one" or "many"."""
        return self.layouts / name

    def beside(self) -> Scene:
        """Return another store of the same driver, to which this one is migrated."""
        return replace(self, path=self.path.with_name(f"{self.path.name}-beside"))


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that takes a store from what ``prepare`` leaves to another state, wholly or not at all."""

    name: str
    prepare: Callable[[Scene, Store], object]
    act: Callable[[Scene, Store], object]
    first_step: Callable[[Scene, Store], object] | None = None
    """The first of two steps, each of which is whole by itself; a kill may come between them."""
    beside: bool = False
    """Whether it changes the store beside, too."""
    drivers: frozenset[str] | None = None
    """The drivers that it can be prepared on; None stands for all."""
    thinner: int = 1
    """How many times fewer of its calls are tried in a sample: long ones are made of what others do."""

    def fits(self, driver: str) -> bool:
        """Tell whether it can be done with a driver."""
        return self.drivers is None or driver in self.drivers


def make(path: Path, driver: str, layouts: Path) -> Scene:
    """Make a store with an image and a clone that were acknowledged, and that every operation leaves as they are."""
    scene = Scene(path, driver, layouts)
    for name, stack in {"base": [BASE, EDIT], "one": [_NEW], "many": [BASE, EDIT, SHRINK, _NEW]}.items():
        if not scene.layout(name).exists():
            write_layout(scene.layout(name), stack, name=f"{name}:1")
    with scene.open() as store:
        store.import_image(scene.layout("base"), jobs=1)
        clone = store.clone("base:1", "kept")
        write(clone, "kept", "before the snapshot")
        clone.snapshot("mark")
        write(clone, "kept", "after the snapshot")
    return scene


def write(clone: layerfs.Clone, name: str, text: str) -> None:
    """Change a clone as a container would, at a time that does not change."""
    with clone.mounted() as root:
        (root / name).write_text(text)
        for changed in (root / name, root):
            os.utime(changed, ns=(NOW, NOW))


def describe(store: Store) -> dict[str, str]:
    """Return all that a user sees of a store: images, clones with their snapshots, other snapshots, all trees."""
    seen = {
        f"image {name}": f"{image.digest} {_image(store, image)}" for image in store.images() for name in image.names
    }
    for clone in store.clones():
        with clone.mounted() as root:
            seen[f"clone {clone.name}"] = f"{clone.image} {invariants.tree_digest(root)}"
        if clone.quota:
            seen[f"quota {clone.name}"] = f"{clone.quota}, held: {_held(store, clone)}"
        for label in clone.snapshots():
            seen[f"clone {clone.name}@{label}"] = _committed(store, f"{clone.key}@{label}")
    for info in store.snapshotter.infos():
        if info.name.startswith("run/"):
            seen[info.name] = f"{info.kind} {info.parent} {sorted(info.labels.items())}"
            if info.kind is Kind.COMMITTED:
                seen[info.name] += " " + _committed(store, info.name)
    return seen


def _image(store: Store, image: layerfs.Image) -> str:
    return _committed(store, image.top) if not store.snapshotter.missing([image.top]) else "packed"


def _held(store: Store, clone: layerfs.Clone) -> layerfs.Quota:
    """Return the quota that the fuse driver holds a clone to, whatever the store says."""
    return read_quota(store.path / "fuse" / str(store.snapshotter.snapshot(clone.key).id) / "quota")


def _committed(store: Store, name: str) -> str:
    with store._parts.temporary_view(name) as root:
        return invariants.tree_digest(root)


# -- the table ---------------------------------------------------------------------------------------------------------


def _without_image(name: str) -> Callable[[Scene, Store], object]:
    def prepare(_: Scene, store: Store) -> None:
        with suppress(NotFound):
            store.remove_image(name)

    return prepare


def _import(name: str) -> Callable[[Scene, Store], object]:
    return lambda scene, store: store.import_image(scene.layout(name), jobs=1)


def _untagged(scene: Scene, store: Store) -> None:
    with suppress(NotFound):
        store.remove_image("tagged:1")
    store.import_image(scene.layout("many"), jobs=1)


def _unneeded(scene: Scene, store: Store) -> None:
    """Leave what only prune takes: an image without a name, and what a killed process left."""
    _untagged(scene, store)
    store.import_image(scene.layout("one"), names=["many:1"], jobs=1)
    with store.blobs.writer() as blob:
        blob.write(b"nobody's")
        blob.commit()


def _prune(_: Scene, store: Store) -> None:
    store.prune(store.plan_prune())


def _without_clone(_: Scene, store: Store) -> None:
    with suppress(NotFound):
        store.get_clone("work").remove()


def _with_clone(scene: Scene, store: Store) -> layerfs.Clone:
    """Make the clone "work" anew, with a snapshot and something after it."""
    with suppress(NotFound):
        store.get_clone("forked").remove()
    _without_clone(scene, store)
    store.prune(store.plan_prune())  # the snapshots that the fork stood on
    clone = store.clone("base:1", "work")
    write(clone, "first", "in the snapshot")
    clone.snapshot("one")
    write(clone, "second", "after the snapshot")
    return clone


def _uncommitted(scene: Scene, store: Store) -> None:
    _without_image("committed:1")(scene, store)
    _with_clone(scene, store)


def _without_keys(*keys: str) -> Callable[[Scene, Store], object]:
    def prepare(_: Scene, store: Store) -> None:
        for key in keys:
            with suppress(NotFound):
                store.snapshotter.remove(key)

    return prepare


def _top(store: Store) -> str:
    return store.image("base:1").top


def _with_active(scene: Scene, store: Store) -> None:
    _without_keys("run/committed", "run/active")(scene, store)
    store.snapshotter.prepare("run/active", _top(store), labels={"containerd.io/a": "b"})


def _with_committed(scene: Scene, store: Store) -> None:
    _with_active(scene, store)
    store.snapshotter.commit("run/committed", "run/active")


def _with_orphan(scene: Scene, store: Store) -> None:
    """Leave bytes that no row names, as a crash does between the two."""
    _with_active(scene, store)
    with store._parts.database.write() as connection:
        connection.execute("DELETE FROM snapshots WHERE name = 'run/active'")


def _damaged(scene: Scene, store: Store) -> None:
    """Change a file of a layer behind the store's back, as it would not be noticed by its size or its times."""
    store.import_image(scene.layout("one"), jobs=1)
    with writable(store, store.image("one:1").top) as root:
        file = root / "opt/data/one"
        file.write_bytes(b"2")
        os.utime(file, ns=(NOW, NOW))


def _repair(_: Scene, store: Store) -> None:
    for remedy in store.repair(force=True):
        if remedy.outcome is not Outcome.MENDED:
            told = f"{remedy.problem.message}: {remedy.words}"
            full = "space" in told or "quota" in told  # as strerror(3) has them
            raise (NoSpace if full else OperationFailed)(told, hint=remedy.problem.hint)


def _image_to_migrate(scene: Scene, store: Store) -> None:
    store.import_image(scene.layout("many"), jobs=1)
    with scene.beside().open() as target:
        target.import_image(scene.layout("base"), jobs=1)
        _without_image("many:1")(scene, target)


def _clone_to_migrate(scene: Scene, store: Store) -> None:
    _with_clone(scene, store)
    with scene.beside().open() as target:
        target.import_image(scene.layout("base"), jobs=1)
        _without_clone(scene, target)


def _migrate(name: str) -> Callable[[Scene, Store], object]:
    def act(scene: Scene, store: Store) -> None:
        with scene.beside().open() as target:
            store.migrate(target, [name])

    return act


_ON_HOSTS = frozenset({"overlay2", "copy", "btrfs", "fuse"})
"""Where a hand reaches the files of a layer, and a second store takes no second pool."""

OPERATIONS = (
    Operation("import of one layer", _without_image("one:1"), _import("one")),
    Operation("import of layers together", _without_image("many:1"), _import("many")),
    Operation("tag", _untagged, lambda _, store: store.tag("many:1", "tagged:1")),
    Operation("removal of an image", _untagged, lambda _, store: store.remove_image("many:1")),
    Operation("prune", _unneeded, _prune),
    Operation("clone", _without_clone, lambda _, store: store.clone("base:1", "work")),
    Operation("commit to an image", _uncommitted, lambda _, store: store.get_clone("work").commit("committed:1")),
    Operation("snapshot", _with_clone, lambda _, store: store.get_clone("work").snapshot("two")),
    Operation("rollback", _with_clone, lambda _, store: store.get_clone("work").rollback("one")),
    Operation(
        "fork",
        _with_clone,
        lambda _, store: store.get_clone("work").fork("forked"),
        first_step=lambda _, store: store.get_clone("work").snapshot("fork-forked"),
    ),
    Operation("removal of a clone", _with_clone, lambda _, store: store.get_clone("work").remove()),
    Operation(
        "prepare", _without_keys("run/active"), lambda _, store: store.snapshotter.prepare("run/active", _top(store))
    ),
    Operation("view", _without_keys("run/view"), lambda _, store: store.snapshotter.view("run/view", _top(store))),
    Operation("commit", _with_active, lambda _, store: store.snapshotter.commit("run/committed", "run/active")),
    Operation("removal", _with_committed, lambda _, store: store.snapshotter.remove("run/committed")),
    Operation("cleanup", _with_orphan, lambda _, store: store.snapshotter.cleanup()),
    Operation("repair", _damaged, _repair, drivers=_ON_HOSTS, thinner=4),
    Operation(
        "migration of an image", _image_to_migrate, _migrate("many:1"), beside=True, drivers=_ON_HOSTS, thinner=4
    ),
    Operation("migration of a clone", _clone_to_migrate, _migrate("work"), beside=True, drivers=_ON_HOSTS, thinner=4),
)


def _limited(scene: Scene, store: Store) -> None:
    _with_clone(scene, store).set_quota(_SMALL)


_SMALL, _LARGE = Quota(size=1 << 20), Quota(size=1 << 30, inodes=1000)

QUOTAS = (
    Operation(
        "clone with a quota", _without_clone, lambda _, store: store.clone("base:1", "work", quota=Quota(inodes=9))
    ),
    Operation("a quota", _with_clone, lambda _, store: store.get_clone("work").set_quota(_SMALL)),
    Operation("another quota", _limited, lambda _, store: store.get_clone("work").set_quota(_LARGE)),
    Operation("no quota", _limited, lambda _, store: store.get_clone("work").set_quota(Quota())),
    Operation("snapshot with a quota", _limited, lambda _, store: store.get_clone("work").snapshot("two")),
    Operation("rollback with a quota", _limited, lambda _, store: store.get_clone("work").rollback("one")),
)
"""What drivers with quotas can do besides; the fuse driver has them everywhere."""
