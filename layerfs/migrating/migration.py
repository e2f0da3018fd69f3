"""Carry what a store holds to another store, one snapshot after the other, and compare each before it gets its name.

Resuming needs no journal: what has its name in the target is done, and was compared; what is half done is under a key
of `layerfs.parts.MIGRATING`, and goes. Nothing of the source changes, and it is held against all who would change what
is being carried: its clones against mounts, the store against prune.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from layerfs import locks, rules
from layerfs.clones import forget, remove_unused
from layerfs.contract import Kind
from layerfs.errors import (
    AlreadyExists,
    Busy,
    Corrupt,
    FailedPrecondition,
    InvalidArgument,
    LayerfsError,
    NotFound,
    os_error,
)
from layerfs.events import Listener, Report, ignore
from layerfs.images import Image
from layerfs.kernel import mountinfo, mounting
from layerfs.layer.changes import Change
from layerfs.layer.limits import UNLIMITED
from layerfs.metadata import clones, images, seals, snapshots
from layerfs.migrating.compare import check_same, difference
from layerfs.migrating.plan import Carried, Plan, Side, make_plan
from layerfs.migrating.stream import transfer
from layerfs.migrating.update import update_tree
from layerfs.parts import MIGRATING, TEMPORARY, Parts
from layerfs.tree import syncfs

_DONE = MIGRATING + "done/"
"""Starts the names of committed snapshots that are compared before they get their own."""


_PLACES = ("source", "target", "source-below", "target-below")


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a migration carried: images, clones and snapshots that are neither; ``there`` were in the target already."""

    images: int = 0
    clones: int = 0
    snapshots: int = 0
    there: int = 0


class _Trees:
    """Where trees of the two stores are shown, in a directory of the target: what a crash leaves mounted is found."""

    def __init__(self, source: Parts, target: Parts) -> None:
        self._source = source
        self._target = target
        self._places = target.path / "migrating"
        self._stack = ExitStack()
        self._parent = ""
        self._below: tuple[Path | None, Path | None] = (None, None)

    def open(self) -> None:
        """Make the directories, and unmount what is left there."""
        for name in _PLACES:
            try:
                (self._places / name).mkdir(0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise os_error(f"make {self._places / name}", error) from error
            while mountinfo.at(self._places / name):
                mounting.unmount(self._places / name)

    def close(self) -> None:
        """Unmount what is mounted, and remove the directories."""
        self.leave()
        for place in (*(self._places / name for name in _PLACES), self._places):
            try:
                place.rmdir()
            except OSError as error:
                raise os_error(f"remove {place}", error) from error

    @contextmanager
    def both(self, name: str, key: str) -> Iterator[tuple[Path, Path]]:
        """Show the snapshot ``name`` of the source, which is held, and ``key`` of the target."""
        with (
            self._source.tree(name, held=True, place=self._places / "source") as first,
            self._target.tree(key, place=self._places / "target") as second,
        ):
            yield first, second

    def below(self, parent: str) -> tuple[Path | None, Path | None]:
        """Return where a parent is shown in both, and keep it so for children to come; None where there is none."""
        if parent != self._parent:
            self.leave()
            if parent:
                first = self._stack.enter_context(self._source.tree(parent, place=self._places / "source-below"))
                second = self._stack.enter_context(self._target.tree(parent, place=self._places / "target-below"))
                self._below = (first, second)
            self._parent = parent
        return self._below

    def leave(self) -> None:
        """Show no parent any more."""
        self._parent, self._below = "", (None, None)
        self._stack.close()


def migrate(
    source: Side, target: Side, names: Sequence[str] = (), *, remove: bool = False, listener: Listener = ignore
) -> Migrated:
    """Carry from one store to the other (`layerfs.store.Store.migrate`)."""
    return Migration(source, target, listener).run(names, remove=remove)


class Migration:
    """One migration from ``source`` to ``target``; the listener hears of bytes that were carried."""

    def __init__(self, source: Side, target: Side, listener: Listener = ignore) -> None:
        self._source = source
        self._target = target
        self._listener = listener
        self._trees = _Trees(source.parts, target.parts)

    def run(self, names: Sequence[str] = (), *, remove: bool = False) -> Migrated:
        """Carry everything, or the images and clones of these names; raise `Busy` for what is mounted."""
        self._check_stores()
        with self._held(), closing(self._trees):
            self._trees.open()
            plan = make_plan(self._source, names)
            with self._closed_clones(plan, views=remove):
                self._check_free(plan)
                self._sweep()
                done = self._carry_all(plan)
                if remove:
                    self._trees.leave()
                    self._remove(plan, everything=not names)
                return done

    def _remove(self, plan: Plan, *, everything: bool) -> None:
        """Remove from the source what was asked for, still held, so that nobody has changed it since.

        The snapshots of a clone that was not asked for stay, even if one that was stands on them.
        """
        source = self._source.parts
        left = [one.name for one in plan.snapshots if everything and one.row.kind is Kind.COMMITTED]
        for one in plan.snapshots:
            if one.row.kind is not Kind.COMMITTED:
                source.snapshotter.remove(one.name, within=partial(_forget, one, left))
        remove_unused(source, left)
        for image in plan.named:
            self._source.images.remove(image.digest)

    # What must hold

    def _check_stores(self) -> None:
        source, target = self._source.parts, self._target.parts
        if source.path.samefile(target.path):
            raise InvalidArgument(f"{source.path} cannot be migrated to itself", hint="name another directory")
        if source.id_map != target.id_map:
            raise FailedPrecondition(
                f"{target.path} has another id map than {source.path}, so the owners of its files would be others",
                hint="make the target with the same --uidmap and --gidmap",
            )

    @contextmanager
    def _held(self) -> Iterator[None]:
        source, target = self._source.parts, self._target.parts
        with source.working(), target.working():
            place, what = locks.named("migrate"), f"the migration to {target.path}"
            with locks.locked(target.lock_file, place, exclusive=True, what=what, timeout=0):
                yield

    @contextmanager
    def _closed_clones(self, plan: Plan, *, views: bool) -> Iterator[None]:
        """Hold everything writable that is to be carried against mounts; raise `Busy` for what is mounted.

        ``views`` must not be mounted either where they are to be removed.
        """
        source = self._source.parts
        writable = [one for one in plan.snapshots if one.row.kind is Kind.ACTIVE]
        places = [locks.upper(one.row.id) for one in writable]
        with locks.locked(source.lock_file, *places, exclusive=True, what="a clone that is to be migrated", timeout=0):
            for one in writable:
                if source.snapshotter.snapshot(one.name).id != one.row.id:
                    raise Busy(f"{one.shown} was rolled back or kept as a snapshot just now", hint="migrate again")
            for one in plan.snapshots:
                if one.row.kind is Kind.ACTIVE or (views and one.row.kind is Kind.VIEW):
                    for point in mounting.users(source.snapshotter.mounts(one.name)):
                        raise Busy(f"{one.shown} is mounted at {point.path}", hint=f"layerfs umount {point.path}")
            yield

    def _check_free(self, plan: Plan) -> None:
        """Raise `AlreadyExists` for names that others have there, `Unsupported` for quotas that it cannot hold."""
        for one in plan.snapshots:
            rules.check_quota(self._target.parts.driver, one.quota)
        missing = self._target.parts.snapshotter.missing(one.name for one in plan.snapshots)
        for one in plan.snapshots:
            if one.name not in missing and not self._is_carried(one):
                raise AlreadyExists(f"the target has another {one.shown.removeprefix('the ')}", hint="remove it there")
        with self._target.parts.database.read() as connection:
            for image in plan.images:
                for name in self._tags(image):
                    if images.tagged(connection, name) not in {None, image.digest}:
                        raise AlreadyExists(f"another image has the name {name} in the target", hint="rename it there")

    def _sweep(self) -> None:
        """Remove what a migration left half done, and the views by which it looked at both stores."""
        for side in (self._source, self._target):
            snapshotter = side.parts.snapshotter
            for info in snapshotter.infos(prefix=TEMPORARY):
                with suppress(NotFound):  # another migration sweeps, too
                    if side.parts.is_left_over(info.name) and not mounting.users(snapshotter.mounts(info.name)):
                        snapshotter.remove(info.name)
        for info in self._target.parts.snapshotter.infos(prefix=MIGRATING):
            self._target.parts.snapshotter.remove(info.name)
        self._target.parts.blobs.cleanup()

    # Carrying

    def _carry_all(self, plan: Plan) -> Migrated:
        """Carry the images, on which everything may stand, then the snapshots."""
        new = [image for image in plan.images if self._carry_image(image, plan)]
        missing = self._target.parts.snapshotter.missing(one.name for one in plan.snapshots)
        carried = [one for one in plan.snapshots if one.name in missing]
        for one in plan.snapshots:
            if one.name in missing:
                self._carry(one)
            elif one.row.kind is Kind.ACTIVE:
                self._check_still_same(one)
        clones = sum(one.clone is not None for one in carried)
        there = len(plan.images) - len(new) + len(plan.snapshots) - len(carried)
        return Migrated(len(new), clones, len(carried) - clones, there)

    def _carry_image(self, image: Image, plan: Plan) -> bool:
        """Carry an image, unpacked if it is so here; return False where the target has it. Its row says that it does.

        Layers are unpacked from their blobs, as they would be if the image were imported there.
        """
        target = self._target.parts
        unpacked = image.top in plan.layers
        there = self._has_image(image) and not (unpacked and target.snapshotter.missing([image.top]))
        if not there:
            self._carry_blobs(image)
            if unpacked:
                self._receive_layers(image, plan)
                self._target.images.unpack(image, limits=UNLIMITED, listener=self._listener)
                for chain in image.config.chain_ids:
                    self._check(plan.layers[chain], chain, root=False)
        self._record(image)
        return not there

    def _carry_blobs(self, image: Image) -> None:
        source, target = self._source.parts, self._target.parts
        try:
            target.blobs.put_all([image.manifest.config, *image.manifest.layers], source.blobs.open, self._listener)
        except (Corrupt, NotFound) as error:
            raise Corrupt(
                f"the image {image.name} cannot be carried: {error.message}",
                hint="`layerfs check --deep` shows what is damaged, `layerfs repair` mends it; then migrate again",
            ) from error
        target.blobs.put_bytes(image.manifest.raw)

    def _receive_layers(self, image: Image, plan: Plan) -> None:
        """Take layers by streams as far as the drivers can; the others are unpacked."""
        for chain in image.config.chain_ids:
            missing = self._target.parts.snapshotter.missing([chain])
            if missing and not transfer(self._source.parts, self._target.parts, plan.layers[chain], chain):
                return

    def _is_carried(self, one: Carried) -> bool:
        """Tell whether what has its name in the target came from here: then it has the very time, too."""
        with self._target.parts.database.read() as connection:
            row = snapshots.find(connection, one.name)
        return row is not None and (row.created, row.kind) == (one.row.created, one.row.kind)

    def _has_image(self, image: Image) -> bool:
        with self._target.parts.database.read() as connection:
            return images.find(connection, image.digest) is not None

    def _tags(self, image: Image) -> tuple[str, ...]:
        with self._source.parts.database.read() as connection:
            return images.tags(connection, image.digest)

    def _record(self, image: Image) -> None:
        """Write an image down as the source has it."""
        with self._source.parts.database.read() as connection:
            row = images.find(connection, image.digest)
            layers = images.layers(connection, image.digest)
        if row is None:
            raise NotFound(f"the image {image.name} was removed meanwhile", hint="migrate again")
        with self._target.parts.database.write() as connection:
            images.put(connection, row, layers, self._tags(image))

    def _carry(self, one: Carried) -> None:
        """Carry one snapshot; leave nothing on failure, which may be a full disk."""
        snapshotter = self._target.parts.snapshotter
        key = MIGRATING + one.name
        if one.row.kind is Kind.VIEW:
            snapshotter.view(key, one.parent, labels=one.labels)
            self._publish(key, one)
            return
        try:
            found: Sequence[Change] | None = None
            committed = one.row.kind is Kind.COMMITTED
            if committed and transfer(self._source.parts, self._target.parts, one, _DONE + one.name):
                key = _DONE + one.name
            else:
                snapshotter.prepare(key, one.parent, labels=one.labels)
                found = self._fill(one, key)
                if committed:
                    snapshotter.commit(_DONE + one.name, key, labels=one.labels)
                    key = _DONE + one.name
            self._check(one, key, found)
            if one.quota:  # now, for the two drivers may not count alike
                snapshotter.quotas.set(key, one.quota)
            self._publish(key, one)
        except BaseException:
            with suppress(LayerfsError):
                snapshotter.remove(key)
            raise

    def _fill(self, one: Carried, key: str) -> Sequence[Change]:
        """Do to the new snapshot what the source did to its parent, and return what that was."""
        target = self._target.parts
        below, _ = self._trees.below(one.parent)
        with self._trees.both(one.name, key) as (tree, made):
            found = difference(self._source.parts, one.parent, below, one.name, tree)
            report = Report(self._listener, "migrate", one.name, sum(change.size for change in found))
            update_tree(tree, made, found, copied=report.add)
            report.finish()
            syncfs(made)
        if (root := target.layer_root(key)) is not None:  # a union in user space passes no sync on
            syncfs(root.path)
        return found

    def _check(self, one: Carried, key: str, found: Sequence[Change] | None = None, *, root: bool = True) -> None:
        """Compare a snapshot with the one under ``key`` in the target; their parents are equal.

        ``found`` is what it holds beyond its parent, where that is known already; ``root`` is that of `check_same`.
        """
        name, parent = one.name, one.parent
        source, target = self._source.parts, self._target.parts
        first, second = self._trees.below(parent)
        with self._trees.both(name, key) as (tree, made):
            if not parent:
                check_same(one.shown, tree, made, None, root=root)
                return
            found = difference(source, parent, first, name, tree) if found is None else found
            beyond = (*found, *difference(target, parent, second, key, made))
            check_same(one.shown, tree, made, beyond, root=root)

    def _check_still_same(self, one: Carried) -> None:
        """Raise `FailedPrecondition` where a clone that was carried before is not what it was then, here or there."""
        try:
            self._check(one, one.name)
        except LayerfsError as error:
            raise FailedPrecondition(
                f"{one.shown} was migrated before, and changed since, here or there: {error.message}",
                hint=f"remove it in one of the stores: {self._source.parts.path} or {self._target.parts.path}",
            ) from error

    def _publish(self, key: str, one: Carried) -> None:
        """Give a snapshot its name, its times and its clone, all in one step."""
        with self._target.parts.database.write() as connection:
            row = rules.ready(connection, key)
            rules.check_free(connection, one.name)
            snapshots.rename(connection, row.id, one.name)
            snapshots.set_times(connection, row.id, one.row.created, one.row.updated)
            if one.row.kind is Kind.COMMITTED:
                seals.put(connection, one.name, seals.UNSEALED)
            if one.clone is not None:
                clones.insert(connection, one.clone)


def _forget(one: Carried, left: list[str], connection: sqlite3.Connection) -> None:
    if one.clone is not None:
        left += forget(connection, one.clone.name)
