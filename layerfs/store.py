"""The store: where people import images, clone writable roots from them, and commit what they changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs import volume
from layerfs.clones import Clone, Clones, name_of
from layerfs.contract import NO_QUOTA, Detachable, Driver, Quota
from layerfs.errors import NotFound
from layerfs.events import Listener, ignore
from layerfs.image.blobs import BlobStore
from layerfs.image.files import ArchiveFormat
from layerfs.image.platform import Platform
from layerfs.image.reference import Reference
from layerfs.images import Image, Images, Intake
from layerfs.kernel.descriptors import Closing
from layerfs.kernel.userns import IdMap
from layerfs.parts import Parts
from layerfs.snapshotter import Snapshotter

if TYPE_CHECKING:
    from datetime import timedelta

    from layerfs.accounting import StoreUsage
    from layerfs.checking.problem import Problem
    from layerfs.checking.repair import Remedy
    from layerfs.layer.changes import Change
    from layerfs.layer.limits import Limits
    from layerfs.leases import Lease
    from layerfs.metrics.openmetrics import Family
    from layerfs.migrating.migration import Migrated
    from layerfs.owning import Owner
    from layerfs.reclaim import PrunePlan, Reclaim
    from layerfs.registry.options import Options as RegistryOptions


class Store(Closing):
    """An open store; a context manager that closes it. Use `open_store`."""

    def __init__(self, parts: Parts, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._parts = parts
        self._clock = clock
        self._images = Images(parts, clock=clock)
        self._clones = Clones(parts, self._images, clock=clock)

    @property
    def path(self) -> Path:
        """Return its directory."""
        return self._parts.path

    @property
    def driver(self) -> Driver:
        """Return its driver."""
        return self._parts.driver

    @property
    def id_map(self) -> IdMap | None:
        """Return the map by which its layers got their owners; None for the owners that the layers say."""
        return self._parts.id_map

    @property
    def snapshotter(self) -> Snapshotter:
        """Return what runtimes use: prepare, view, mounts, commit, remove and so on."""
        return self._parts.snapshotter

    @property
    def blobs(self) -> BlobStore:
        """Return where manifests, configurations and layers are kept as they came."""
        return self._parts.blobs

    def close(self) -> None:
        """Close it; doing it twice is no error. What is mounted stays mounted."""
        self._parts.snapshotter.close()
        self._parts.database.close()

    def detach(self) -> bool:
        """Close it; unmount its volume (`LoopVolume`) or take its pool from the kernel: until opened it is but files.

        Return whether there was one; raise `Busy` while snapshots are mounted or others work with the store.
        """
        with self._parts.alone(wait=False):
            detached = volume.detach(self.path, self.driver.name)
            if isinstance(self.driver, Detachable):
                detached = self.driver.detach() or detached
            self.close()
            return detached

    # Images

    def import_image(
        self,
        source: str | os.PathLike[str],
        *,
        names: Sequence[str] = (),
        platform: Platform | None = None,
        unpack: bool = True,
        limits: Limits | None = None,
        jobs: int | None = None,
        lease: Lease | None = None,
        listener: Listener = ignore,
    ) -> tuple[Image, ...]:
        """Import the images of an OCI layout (directory or tar) or a docker-archive.

        ``names`` replace those that the archive gives to its single image; ``platform`` selects from an index, the
        host's by default. Every digest and size is verified. ``limits`` bound what a layer may cost when it is
        unpacked, now; a later `clone` of an image that was not unpacked uses the default ones. ``jobs`` layers are
        unpacked at a time where the driver allows it, by default as many as the processors can do with; then several
        threads call the listener. Raise `Corrupt`, `Unsupported`, `NoSpace`, `LimitExceeded`; nothing of an image that
        fails is kept, unless a ``lease`` keeps what came of it: the same call goes on from there.
        """
        try:
            return self._images.import_from(
                Path(source), Intake(names, platform, unpack, limits, jobs, lease, listener)
            )
        except BaseException:
            self._reclaim.collect_after_error()
            raise

    def pull_image(
        self,
        name: str,
        *,
        names: Sequence[str] = (),
        platform: Platform | None = None,
        unpack: bool = True,
        limits: Limits | None = None,
        jobs: int | None = None,
        options: RegistryOptions | None = None,
        lease: Lease | None = None,
        listener: Listener = ignore,
    ) -> Image:
        """Bring an image from its registry, under its name or under ``names``; the rest is as for `import_image`.

        ``options`` say how to speak to the registry. Raise `NotFound`, `PermissionDenied`, `Busy` (too many requests)
        and `OperationFailed` for what the registry says or does not; nothing of an image that fails is kept.
        """
        from layerfs.registry.options import Options  # noqa: PLC0415  20 ms that those who never pull need not pay

        try:
            how = Intake(names, platform, unpack, limits, jobs, lease, listener)
            return self._images.pull(Reference.parse(name), options or Options(), how)
        except BaseException:
            self._reclaim.collect_after_error()
            raise

    def push_image(
        self,
        image: str,
        name: str | None = None,
        *,
        options: RegistryOptions | None = None,
        listener: Listener = ignore,
    ) -> None:
        """Send an image to the registry that its name says, or another name; errors as for `pull_image`."""
        from layerfs.registry.options import Options  # noqa: PLC0415  as above

        with self._parts.working():
            self._images.push(image, Reference.parse(name or image), options or Options(), listener=listener)

    def export_image(
        self,
        images: Sequence[str],
        destination: str | os.PathLike[str],
        *,
        format: ArchiveFormat = ArchiveFormat.OCI_ARCHIVE,  # noqa: A002  the field's word
        listener: Listener = ignore,
    ) -> None:
        """Write images to a file or a new directory, every blob byte for byte as it came.

        A docker-archive holds the layers uncompressed. The same images give the same bytes.
        """
        with self._parts.working():
            self._images.export_to(images, Path(destination), format, listener=listener)

    def images(self) -> tuple[Image, ...]:
        """Return all images, the oldest first."""
        return self._images.every()

    def image(self, reference: str) -> Image:
        """Return the image of a name ("debian:12"), a digest, or a unique prefix of a digest; raise `NotFound`."""
        return self._images.get(reference)

    def tag(self, reference: str, name: str) -> Image:
        """Give an image one more name, taking it from the image that has it."""
        return self._images.tag(reference, name)

    def remove_image(self, reference: str) -> None:
        """Take a name from an image, and remove the image with its last one; a digest removes it with all names.

        Raise `FailedPrecondition` that lists the clones of an image that has some.
        """
        self._images.remove(reference)
        self._reclaim.collect()

    # Clones

    def clone(self, image: str, name: str | None = None, *, quota: Quota = NO_QUOTA) -> Clone:
        """Make a writable root on top of an image; a name is made up if none is given."""
        return self._clones.make(self._images.get(image), name, quota)

    def clones(self) -> tuple[Clone, ...]:
        """Return all clones by name."""
        return self._clones.every()

    def get_clone(self, name: str) -> Clone:
        """Return the clone of a name, or of a unique start of one; raise `NotFound`."""
        return self._clones.get(name)

    def changes(self, first: str, second: str | None = None, *, verify_content: bool = False) -> Iterator[Change]:
        """List what differs from ``first`` to ``second``: images, clones, ``CLONE@LABEL``, or layers by ChainID.

        With one argument, a clone is compared with its image, and an image with nothing. ``verify_content`` reads the
        files that look equal, to find an edit that kept size and modification time.
        """
        from layerfs.layer.changes import changes  # noqa: PLC0415  late, as in `layerfs.clones`

        if second is None:
            key = self._key(first)
            if name_of(key) is not None:
                yield from self._clones.get(first).changes(verify_content=verify_content)
                return
            first, second = "", first
        lower, upper = self._key(first) if first else "", self._key(second)
        with (
            self._parts.working(),
            self._parts.steady(lower, upper),
            self._parts.tree(lower) as old,
            self._parts.tree(upper) as new,
        ):
            candidates = self._parts.candidates(lower, upper)
            yield from changes(old, new, verify_content=verify_content, candidates=candidates)

    # Leases

    def lease(self, ttl: timedelta, name: str | None = None) -> Lease:
        """Make a lease: what it names is not pruned until it is removed or ``ttl`` is over (see `layerfs.leases`)."""
        return self._parts.leases.create(ttl, name)

    def get_lease(self, name: str) -> Lease:
        """Return the lease of an id, or of a unique start of one; raise `NotFound`."""
        return self._parts.leases.get(name)

    def leases(self) -> tuple[Lease, ...]:
        """Return all leases, the oldest first."""
        return self._parts.leases.every()

    # Housekeeping

    def plan_prune(self) -> PrunePlan:
        """Return what nobody needs: images without a name and a clone, layers and blobs of no image, leftovers."""
        return self._reclaim.plan()

    def prune(self, plan: PrunePlan) -> PrunePlan:
        """Remove what a plan names and is still not needed; wait for those who work with the store."""
        return self._reclaim.prune(plan)

    def du(self) -> StoreUsage:
        """Return what the store takes, and what each image, layer and clone takes alone and together with others."""
        from layerfs.accounting import Accounts  # noqa: PLC0415  only those who look at it need it

        return Accounts(self._parts).run()

    def owner(self, path: str | os.PathLike[str]) -> Owner:
        """Return whose a path is: a file of this store, a mount, a device, or a dataset by its name.

        Raise `NotFound` where there is none of these.
        """
        from layerfs.owning import Owning  # noqa: PLC0415  as above

        return Owning(self._parts).of(os.fspath(path))

    def metrics(self) -> tuple[Family, ...]:
        """Measure and count what is here, for Prometheus (`layerfs.metrics.openmetrics.render` writes it)."""
        from layerfs.metrics.gauges import gauges  # noqa: PLC0415  as above

        return gauges(self._parts)

    def migrate(
        self, target: Store, names: Sequence[str] = (), *, remove: bool = False, listener: Listener = ignore
    ) -> Migrated:
        """Carry everything, or the images and clones of these names with what they stand on, to another store.

        Each snapshot is compared before it gets its name there. Nothing changes here, unless ``remove`` asks to remove
        at the end what was carried. An interrupted migration goes on where it ended. Raise `Busy` for a clone that is
        mounted, `AlreadyExists` for a name that the target has of its own, `FailedPrecondition` for another id map and
        for a clone that was changed since it was carried, `Corrupt` where the two trees are not the same.
        """
        from layerfs.migrating.migration import migrate  # noqa: PLC0415  few stores are ever migrated
        from layerfs.migrating.plan import Side  # noqa: PLC0415  as above

        there = Side(target._parts, target._images, target._clones)
        source = Side(self._parts, self._images, self._clones)
        done = migrate(source, there, names, remove=remove, listener=listener)
        if remove:
            self._reclaim.collect()
        return done

    def check(
        self,
        *,
        deep: bool = False,
        older_than: timedelta | None = None,
        jobs: int | None = None,
        listener: Listener = ignore,
    ) -> tuple[Problem, ...]:
        """Return what is gone or broken, and whom it hurts, as far as it shows without reading contents.

        ``deep`` reads these as well, but of snapshots that were found whole less than ``older_than`` ago; ``jobs`` at a
        time, by default one for each processor. The listener, which several threads call, hears how far it is.
        """
        from layerfs.checking.examine import examine  # noqa: PLC0415  only those who look for problems need it

        return examine(self._parts, self._clock, deep=deep, older_than=older_than, jobs=jobs, listener=listener)

    def repair(
        self,
        *,
        deep: bool = True,
        force: bool = False,
        options: RegistryOptions | None = None,
        files: Sequence[Path] = (),
        listener: Listener = ignore,
    ) -> tuple[Remedy, ...]:
        """Return what can be done about each problem that `check` finds; ``force`` does it, and tells what came of it.

        Blobs come from ``files``, which are what `import_image` takes, else from the registries that the names of their
        images say; ``options`` say how to ask these, and none is asked without them.
        """
        from layerfs.checking.repair import repair  # noqa: PLC0415  only those who mend need it

        return repair(self._parts, self._clock, deep=deep, force=force, options=options, files=files, listener=listener)

    @cached_property
    def _reclaim(self) -> Reclaim:
        from layerfs.reclaim import Reclaim  # noqa: PLC0415  only those who clean up need it

        return Reclaim(self._parts, self._images, self._clones)

    def _key(self, name: str) -> str:
        """Return the snapshot that a name of people means, unpacking an image where that has not been done."""
        base, at, label = name.partition("@")
        if at and not label.startswith("sha256:"):
            return f"{self._clones.get(base).key}@{label}"
        try:
            return self._clones.get(name).key
        except NotFound:
            pass
        try:
            image = self._images.get(name)
        except NotFound:
            return self._chain(name)
        with self._parts.working():  # a prune takes what is half unpacked for a leftover
            self._images.unpack(image)
        return image.top

    def _chain(self, name: str) -> str:
        try:
            return self._parts.snapshotter.stat(name).name
        except NotFound as error:
            raise NotFound(
                f"{name!r} is no clone, image, snapshot or layer", hint="`layerfs ls` and `layerfs image ls` list them"
            ) from error
