"""The clones of a store: writable roots on top of an image, with snapshots, forks and a way back.

A clone is the active snapshot ``clone/NAME``; a snapshot of it is the committed one ``clone/NAME@LABEL`` on which the
clone goes on. Committing a clone to an image makes a layer of what differs from its image and leaves the clone as it
is.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.contract import NO_QUOTA, LayerRoot, Mount, Quota, Usage, VolatileMounts, Whiteouts
from layerfs.errors import AlreadyExists, Busy, FailedPrecondition, InvalidArgument, NotFound, Unsupported
from layerfs.events import Listener, ignore
from layerfs.image import media_types
from layerfs.image.descriptor import Descriptor
from layerfs.images import Image, Images
from layerfs.kernel import mounters, mounting
from layerfs.kernel.descriptors import Passing
from layerfs.layer.compression import Compression
from layerfs.metadata import clones, images, snapshots
from layerfs.metadata.clones import CloneRow
from layerfs.metadata.snapshots import moment
from layerfs.names import check_name, is_name, made_up
from layerfs.parts import Parts

if TYPE_CHECKING:  # and imported by the methods that use them: a third of the time that a small command takes
    from layerfs.layer.changes import Change
    from layerfs.leases import Lease

PREFIX = "clone/"
"""Starts the keys of clones and the names of their snapshots."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What a clone holds beyond its image: the changes, and the directory where changed files can be read."""

    changes: Iterator[Change]
    root: LayerRoot


class Clones:
    """Make and find clones."""

    def __init__(self, parts: Parts, images: Images, *, clock: Callable[[], int] = time.time_ns) -> None:
        self.parts = parts
        self.images = images
        self.clock = clock

    def make(self, image: Image, name: str | None = None, quota: Quota = NO_QUOTA) -> Clone:
        """Clone an image, unpacking it first where that has not been done; a name is made up if none is given."""
        with self.parts.working():
            try:
                self.images.unpack(image)
            except NotFound:
                self.images.get(image.digest)  # says so where somebody removed it meanwhile, with its blobs
                raise
            return self.prepare(name or made_up(image.name), image.digest, image.top, quota)

    def prepare(self, name: str, image: str, parent: str, quota: Quota = NO_QUOTA) -> Clone:
        """Make a clone on any committed snapshot."""
        check_name(name, "a clone's name")
        row = CloneRow(name, image, self.clock())
        try:
            self.parts.snapshotter.prepare(
                PREFIX + name, parent, quota=quota, within=lambda connection: _record(connection, row)
            )
        except AlreadyExists as error:
            raise _exists(name) from error
        return self._load(row)

    def check_free(self, name: str) -> None:
        """Raise `AlreadyExists` for the name of a clone."""
        with self.parts.database.read() as connection:
            if any(row.name == name for row in clones.matching(connection, name)):
                raise _exists(name)

    def every(self) -> tuple[Clone, ...]:
        """Return all clones by name."""
        with self.parts.database.read() as connection:
            return tuple(self._load(row) for row in clones.every(connection))

    def get(self, name: str) -> Clone:
        """Return the clone of a name, or of a unique start of one; raise `NotFound`."""
        with self.parts.database.read() as connection:
            found = clones.matching(connection, name) if name else []
        if len(found) > 1:
            raise InvalidArgument(f"several clones start with {name!r}", hint="give more of the name")
        if not found:
            raise NotFound(f"there is no clone {name!r}", hint="`layerfs ls` lists what is there")
        return self._load(found[0])

    def _load(self, row: CloneRow) -> Clone:
        return Clone(row.name, row.image, moment(row.created), self)


@dataclass(slots=True)
class Clone(Passing):
    """A writable root on top of an image.

    As a context manager it removes itself at the end, unless `keep` was called.
    """

    name: str
    image: str
    """The digest of the image that it came from."""
    created: datetime
    _clones: Clones = field(repr=False)
    _kept: bool = False

    @property
    def key(self) -> str:
        """Return the key of its active snapshot."""
        return PREFIX + self.name

    @property
    def _parts(self) -> Parts:
        return self._clones.parts

    # Mounts

    def mounts(self) -> tuple[Mount, ...]:
        """Return the mounts that show its root, for a caller that mounts by itself."""
        return self._parts.snapshotter.mounts(self.key)

    def mount(self, target: Path, *, volatile: bool = False) -> None:
        """Mount its root at an existing directory; raise `Busy` if it is mounted already.

        ``volatile`` never syncs: faster, and all that was written is lost in a crash of the machine.
        """
        with self._parts.writing(self.key, self._what):
            mounting.mount(self._mounts(volatile=volatile), target)

    def unmount(self) -> None:
        """Unmount it wherever it is mounted; raise `FailedPrecondition` if it is nowhere."""
        with ExitStack() as stack:
            with suppress(Busy):  # of a process that has it mounted for the time of a block
                stack.enter_context(self._parts.holding(self.key, self._what))
            mounts = self.mounts()
            points = mounting.users(mounts)
            if not points:
                raise FailedPrecondition(f"{self._what} is not mounted", hint="`layerfs ls` shows what is")
            for point in points:
                mounting.unmount(point.path)
            self._after_unmount(mounts, volatile=any(point.volatile for point in points))

    @contextmanager
    def mounted(self, target: Path | None = None, *, volatile: bool = False, suid: bool = False) -> Iterator[Path]:
        """Give its mounted root while the block runs, at ``target`` or in a private temporary directory.

        In a user namespace set-user-ID programs in it have no effect unless ``suid`` asks for it; for root they have.
        """
        with self._parts.writing(self.key, self._what):
            mounts = self._mounts(volatile=volatile)
            if suid:
                mounts = [mount if mount.target else mount.with_options("suid") for mount in mounts]
            try:
                with mounting.mounted(mounts, target) as root:
                    yield root
            finally:
                self._after_unmount(mounts, volatile=volatile)

    def mount_points(self) -> tuple[Path, ...]:
        """Return where it is mounted now, as far as this mount namespace shows."""
        return tuple(point.path for point in mounting.users(self.mounts()))

    def run(self, command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> int:
        """Run a command inside its root, with the host's network and no other isolation; return its exit status.

        128 and a signal's number stand for a command that the signal ended. Raise `Unsupported` in a store with an id
        map: the command would be the host's root, whose files have no owner there.
        """
        if self._parts.id_map is not None:
            raise Unsupported(
                f"{self._what} belongs to a user namespace, and the host's root would run in it",
                hint=f"`layerfs run {self.name}` runs a container in a namespace of the store's id map",
            )
        from layerfs.kernel.chroot import run_chroot  # noqa: PLC0415  see the imports above

        with self._parts.writing(self.key, self._what):
            mounts = self.mounts()
            if any(mounters.is_served(mount) for mount in mounts):
                # Before the process that serves it may end, the kernel must have handed it what it still holds back.
                with mounting.mounted(mounts) as root:
                    return run_chroot(root, command, environment or {})
            try:
                return run_chroot(mounts, command, environment or {})
            finally:
                mounting.release_shared(mounts)

    # Snapshots

    def snapshot(self, label: str | None = None) -> str:
        """Keep its present state under a label, by default the next number, and go on; return the label."""
        with self._parts.working(), self._parts.writing(self.key, self._what):
            return self._keep_as(label or self._next_label())

    def _keep_as(self, label: str) -> str:
        """Keep its present state; the caller is inside `writing` for it."""
        check_name(label, "a snapshot's label")
        try:
            self._parts.snapshotter.checkpoint(f"{self.key}@{label}", self.key)
        except AlreadyExists as error:
            raise AlreadyExists(f"{self._what} has a snapshot {label!r} already", hint="use another label") from error
        return label

    def snapshots(self) -> tuple[str, ...]:
        """Return the labels of its snapshots, the oldest first."""
        prefix = f"{self.key}@"
        infos = sorted(self._parts.snapshotter.infos(prefix=prefix), key=lambda info: info.created)
        return tuple(info.name.removeprefix(prefix) for info in infos)

    def rollback(self, label: str | None = None) -> None:
        """Give up what was changed since a snapshot, by default since the last one, or since the image if none."""
        with self._parts.working(), self._parts.writing(self.key, self._what):
            if label is not None and label not in self.snapshots():
                shown = ", ".join(self.snapshots()) or "none"
                raise NotFound(f"{self._what} has no snapshot {label!r}", hint=f"there are: {shown}")
            parent = self._parts.snapshotter.stat(self.key).parent
            self._parts.snapshotter.reset(self.key, parent if label is None else f"{self.key}@{label}")

    def fork(self, name: str | None = None) -> Clone:
        """Make another clone that starts with the present state and the quota of this one; both go on apart.

        That state is kept as the snapshot "fork-NAME" of this one. Raise `AlreadyExists` for the name of a clone.
        """
        name = name or made_up(self.name)
        check_name(name, "a clone's name")
        # Held over both steps, lest somebody removes this one with the snapshot on which the other is to stand.
        with self._parts.working(), self._parts.writing(self.key, self._what):
            self._clones.check_free(name)
            label = self._keep_as(self._fork_label(name))
            return self._clones.prepare(name, self.image, f"{self.key}@{label}", self.quota)

    # Its quota

    @property
    def quota(self) -> Quota:
        """Return what may be written to it: since its image, or since the last snapshot of it."""
        return self._parts.snapshotter.quotas.get(self.key)

    def quota_usage(self) -> Usage:
        """Return what counts against its quota now; raise `Unsupported` where the driver has none."""
        return self._parts.snapshotter.quotas.usage(self.key)

    def set_quota(self, quota: Quota) -> None:
        """Limit what may be written to it, mounted or not; snapshots, rollbacks and forks keep the quota.

        Raise `Unsupported` with a hint where that cannot be limited here, `Busy` where it cannot be now.
        """
        self._parts.snapshotter.quotas.set(self.key, quota)

    # Changes

    def changes(self, *, verify_content: bool = False) -> Iterator[Change]:
        """List what differs from its image, sorted by path.

        ``verify_content`` finds an edit that kept size and modification time where the driver does not tell of it.
        """
        steady = self._parts.steady(self.key)
        with steady, self.difference(verify_content=verify_content) as difference:
            yield from difference.changes

    @contextmanager
    def difference(self, *, held: bool = False, verify_content: bool = False) -> Iterator[Difference]:
        """Give what differs from its image as long as the block runs, from the driver's own record where it has one.

        ``held`` tells that the caller holds the clone against mounts already.
        """
        from layerfs.layer.changes import changes, upper_changes  # noqa: PLC0415  see the imports above

        base = self._clones.images.get(self.image).top
        root = self._parts.layer_root(self.key)
        if (
            root is not None
            and root.whiteouts is not Whiteouts.REMOVE
            and self._parts.snapshotter.stat(self.key).parent == base
        ):
            with self._parts.tree(base) as lower:
                yield Difference(upper_changes(root, lower), root)
            return
        with self._parts.tree(base) as lower, self._parts.tree(self.key, held=held) as tree:
            candidates = self._parts.candidates(base, self.key)
            # Where these are few, they are read too, as an overlay's upper directory is.
            verify_content = verify_content or candidates is not None
            found = changes(lower, tree, verify_content=verify_content, candidates=candidates)
            yield Difference(found, LayerRoot(tree, Whiteouts.REMOVE))

    def commit(
        self,
        name: str | None = None,
        *,
        message: str = "",
        author: str = "",
        compression: Compression = Compression.ZSTD,
        level: int | None = None,
        lease: Lease | None = None,
        listener: Listener = ignore,
    ) -> Image:
        """Make an image of it: its own image's layers and one more that holds exactly what differs.

        The clone stays as it is. The same changes give the same layer, byte for byte. ``lease`` keeps an image without
        a name from the next prune.
        """
        from layerfs.layer.owners import Owners  # noqa: PLC0415  see the imports above
        from layerfs.layer.write import write_layer  # noqa: PLC0415  see the imports above

        images = self._clones.images
        base = images.get(self.image)
        blobs = self._parts.blobs
        with self._parts.working(), self._parts.writing(self.key, self._what):
            self._parts.flatten(self.key)
            with self.difference(held=True) as difference, blobs.writer() as blob:
                written = write_layer(
                    difference.changes,
                    difference.root,
                    blob,
                    compression=compression,
                    level=level,
                    owners=Owners(self._parts.id_map) if self._parts.id_map else None,
                    listener=listener,
                )
                blob.commit(written.digest)
            layer = Descriptor(media_types.LAYER_MEDIA_TYPES[compression], written.digest, written.size)
            config = base.config.with_layer(
                written.diff_id,
                created=moment(self._clones.clock()),
                created_by="layerfs commit",
                author=author,
                comment=message,
            )
            manifest = base.manifest.with_layer(blobs.put_bytes(config.raw, media_types.OCI_CONFIG), layer)
            blobs.put_bytes(manifest.raw)
            if lease is not None:
                lease.add(images=[manifest.digest])
            return images.add(manifest, config, [name] if name else [])

    def flatten(self) -> int:
        """Make files whole of which only changed blocks are stored, and return how many there were.

        A commit does so by itself. Raise `Busy` while it is mounted.
        """
        with self._parts.working(), self._parts.writing(self.key, self._what):
            return self._parts.flatten(self.key)

    def remove(self) -> None:
        """Remove it with the snapshots that no fork stands on; raise `Busy` while it is mounted."""
        left: list[str] = []
        with self._parts.writing(self.key, self._what):
            self._parts.snapshotter.remove(
                self.key, within=lambda connection: left.extend(forget(connection, self.name))
            )
        remove_unused(self._parts, left)

    @property
    def _what(self) -> str:
        return f"the clone {self.name!r}"

    def _mounts(self, *, volatile: bool) -> Sequence[Mount]:
        if not volatile:
            return self.mounts()
        if not isinstance(self._parts.driver, VolatileMounts):
            raise Unsupported(f"the driver {self._parts.driver.name} has no volatile mounts", hint="overlay2 has")
        return self._parts.driver.volatile_mounts(self._parts.snapshotter.snapshot(self.key))

    def _after_unmount(self, mounts: Sequence[Mount], *, volatile: bool) -> None:
        mounting.release_shared(mounts)
        if volatile and isinstance(self._parts.driver, VolatileMounts):
            self._parts.driver.settle(self._parts.snapshotter.snapshot(self.key))

    def _fork_label(self, name: str) -> str:
        """Return "fork-NAME", with a number where an earlier fork of that name, which is gone, has left its own."""
        taken = set(self.snapshots())
        labels = (f"fork-{name}{ending}" for ending in ("", *(f"-{number}" for number in range(2, len(taken) + 3))))
        return next(label for label in labels if label not in taken)

    def _next_label(self) -> str:
        numbers = [int(label) for label in self.snapshots() if label.isdecimal()]
        return str(max(numbers, default=0) + 1)


def name_of(key: str) -> str | None:
    """Return the name of the clone that an active snapshot of this key is; None for any other key or name."""
    name = key.removeprefix(PREFIX)
    return name if key.startswith(PREFIX) and is_name(name) else None


def forget(connection: sqlite3.Connection, name: str) -> list[str]:
    """Delete a clone's row, and return what its snapshots are called now.

    Those on which forks stand outlive it: another clone of its name must not take them for its own.
    """
    clones.delete(connection, name)
    mark = f"{PREFIX}{name}#{os.urandom(4).hex()}"
    renamed = {old: mark + old.removeprefix(PREFIX + name) for old in snapshots.names(connection, f"{PREFIX}{name}@")}
    for old, new in renamed.items():
        snapshots.rename_committed(connection, old, new)
    return list(renamed.values())


def _record(connection: sqlite3.Connection, row: CloneRow) -> None:
    if images.find(connection, row.image) is None:
        raise NotFound(f"the image {row.image} was removed meanwhile", hint="import it again")
    clones.insert(connection, row)


def _exists(name: str) -> AlreadyExists:
    return AlreadyExists(f"a clone {name!r} exists already", hint="remove it (layerfs rm), or use another name")


def remove_unused(parts: Parts, names: Iterable[str]) -> None:
    """Remove those committed snapshots on which nothing stands and that no lease names, until none could go."""
    with parts.database.read() as connection:
        held = parts.leases.held(connection).snapshots
    left = [name for name in names if name not in held]
    while True:
        stuck = [name for name in left if not _removed(parts, name)]
        if len(stuck) == len(left):
            return
        left = stuck


def _removed(parts: Parts, name: str) -> bool:
    try:
        parts.snapshotter.remove(name)
    except FailedPrecondition:
        return False
    except NotFound:
        pass
    return True
