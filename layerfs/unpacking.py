"""Unpack the layers of an image into snapshots, together where the driver can take them so, else one by one.

*Together* they go into snapshots without parents, which get their parents when all of them are committed at the end
(`layerfs.contract.Traits.rebase`): in one transaction and with one sync, which else are most of what a small layer
costs. Then they may also be unpacked *side by side*, without the layers below in view. A layer that needs those below
it to be understood waits for its turn after all, so the result never depends on the way.
"""

from __future__ import annotations

import os
import resource
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from threading import Event
from typing import TYPE_CHECKING, BinaryIO

from layerfs import locks
from layerfs.contract import DirectAccess, LayerRoot, Mount, Snapshot, Whiteouts
from layerfs.errors import Corrupt, FailedPrecondition, LayerfsError, NotFound
from layerfs.events import Listener, Progress, ignore
from layerfs.image.descriptor import Descriptor
from layerfs.kernel import mounting, userns
from layerfs.layer.digest import Digest
from layerfs.metadata import seals
from layerfs.metadata.seals import Seal
from layerfs.parts import Parts
from layerfs.snapshotter import Planned

if TYPE_CHECKING:  # and imported by the methods that use them: a third of the time that a small command takes
    from layerfs.layer.apply import Applied, OwnerPolicy
    from layerfs.layer.below import Below, Stack
    from layerfs.layer.entries import Fill
    from layerfs.layer.limits import Limits
    from layerfs.layer.owners import Owners

LAYER_LABEL = "layerfs/layer"
"""Marks the snapshots that hold unpacked layers: those that `prune` may remove once no image names them."""

UNPACKING = "unpack/"
"""Starts the keys of snapshots into which a layer is being unpacked by itself; its ChainID follows."""

_MOST_JOBS = 4
"""Layers at a time unless more are asked for: each has some 20 MiB of blocks under way in its three threads."""
_DESCRIPTORS = 220
"""Descriptors that one layer at work may hold open, most of them directories; the others hold one each."""
_OTHERS = 64
"""Descriptors that are left to the rest of the process."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer to unpack: its blob, what it must be, the name of its snapshot, and that of the one below or ""."""

    blob: Descriptor
    diff_id: Digest
    chain: str
    parent: str

    @property
    def key(self) -> str:
        """Return the key of the snapshot into which it is unpacked by itself."""
        return f"{UNPACKING}{self.chain}"

    @property
    def labels(self) -> dict[str, str]:
        """Return the labels of its snapshot."""
        return {LAYER_LABEL: str(self.blob.digest)}


def default_jobs() -> int:
    """Return how many layers to unpack at a time: one on two processors, which a single layer keeps busy."""
    processors = len(os.sched_getaffinity(0))
    return 1 if processors <= 2 else min(_MOST_JOBS, processors // 2)  # noqa: PLR2004  measured on two


class Unpacker:
    """Unpack layers for one call: what they may cost, how many at a time, and who listens.

    ``opened`` gives the stream of a blob that was verified, and may wait for it.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        limits: Limits | None = None,
        jobs: int | None = None,
        opened: Callable[[Digest], BinaryIO] | None = None,
        listener: Listener = ignore,
    ) -> None:
        self._parts = parts
        self._opened = opened or parts.blobs.open
        self._limits = limits
        self._jobs = default_jobs() if jobs is None else jobs
        self._listener = listener
        self._stopping = Event()
        self._roots: dict[str, LayerRoot] = {}
        """The directories of the layers that can be looked at without a mount, by their names."""
        self._stack: Stack | None = None
        self._chains: Sequence[str] = ()
        """The layers that `_stack` can hold, the lowest first."""
        self._seals: dict[str, Seal] = {}
        """What was unpacked, by the names of the layers."""

    def run(self, layers: Sequence[Layer]) -> None:
        """Make sure that every one of these layers, the lowest first, is there as a snapshot."""
        missing = self._missing(layers)
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        affordable = (descriptors - _OTHERS - len(layers)) // _DESCRIPTORS
        if affordable > 0 and len(layers) <= descriptors // 2:
            self._chains = [layer.chain for layer in layers]
        try:
            if len(missing) > 1 and self._chains and self._stackable(len(layers)):
                self._together(missing, min(self._jobs, affordable))
                return
            for layer in missing:
                with self._locked(layer):
                    if self._missing([layer]):
                        self._by_itself(layer)
        finally:
            self._drop()

    def again(
        self,
        layer: Layer,
        root: LayerRoot | None,
        chains: Sequence[str],
        mounts: Sequence[Mount] = (),
        *,
        filler: Fill | None = None,
    ) -> Applied:
        """Unpack a layer that is there once more, into a root of its own, or what the mounts show where that is None.

        ``chains`` are all of its image. The blob is verified, too. ``filler`` is that of `layerfs.layer.apply.apply`.
        """
        self._chains = chains
        try:
            return self._apply(layer, root, mounts, filler=filler, verify=True)
        finally:
            self._drop()

    def _drop(self) -> None:
        if self._stack is not None:
            self._stack.drop()
            self._stack = None

    def is_there(self, chain: str) -> bool:
        """Tell whether a layer is unpacked."""
        return not self._parts.snapshotter.missing([chain])

    def _missing(self, layers: Sequence[Layer]) -> list[Layer]:
        missing = self._parts.snapshotter.missing(layer.chain for layer in layers)
        return [layer for layer in layers if layer.chain in missing]

    def _stackable(self, count: int) -> bool:
        """Tell whether the driver gives so many layers their parents later, and shows what each of them holds."""
        traits = self._parts.driver.traits
        fits = traits.max_layers is None or count <= traits.max_layers
        return traits.rebase and fits and self._direct is not None

    def _locked(self, *layers: Layer) -> AbstractContextManager[None]:
        """Hold layers against others who unpack them; everybody takes them from the lowest up."""
        what = f"the layer {layers[0].chain}"
        places = [locks.named(layer.chain) for layer in layers]
        return locks.locked(self._parts.lock_file, *places, exclusive=True, what=what)

    # One by one

    def _by_itself(self, layer: Layer) -> None:
        """Unpack one layer on the one below, and commit it only if it is what its DiffID says."""
        snapshotter = self._parts.snapshotter
        with suppress(NotFound):
            snapshotter.remove(layer.key)  # what a crash left; the lock tells that nobody works on it
        mounts = snapshotter.prepare(layer.key, layer.parent)
        try:
            self._apply(layer, self._parts.layer_root(layer.key), mounts)
            snapshotter.commit(layer.chain, layer.key, labels=layer.labels)
        except BaseException:
            with suppress(LayerfsError):  # a commit that could not be taken back is the next recovery's
                snapshotter.remove(layer.key)
            raise
        with self._parts.database.write(durable=False) as connection:
            self._seal(connection)

    # Together

    def _together(self, layers: Sequence[Layer], jobs: int) -> None:
        with self._locked(*layers):
            waiting = self._missing(layers)
            plans = [Planned(layer.chain, layer.parent, layer.labels) for layer in waiting]
            with self._parts.snapshotter.together(plans, within=self._seal) as made:
                for layer, snapshot in zip(waiting, made, strict=True):
                    self._roots[layer.chain] = self._shown(snapshot)
                if jobs > 1:
                    self._side_by_side(waiting, made, jobs)
                else:
                    for layer in waiting:
                        self._finish(layer, None)

    def _side_by_side(self, layers: Sequence[Layer], made: Sequence[Snapshot], jobs: int) -> None:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  see the imports above

        with ThreadPoolExecutor(jobs, thread_name_prefix="layerfs-unpack") as pool:
            futures = [pool.submit(self._apart, *one) for one in zip(layers, made, strict=True)]
            try:
                for layer, future in zip(layers, futures, strict=True):
                    self._finish(layer, future.result())
            except BaseException:
                self._stopping.set()
                for future in futures:
                    future.cancel()
                raise

    def _apart(self, layer: Layer, snapshot: Snapshot) -> Applied | None:
        """Unpack a layer without those below; return None, and leave nothing, where it needs them."""
        from layerfs.layer.apart import LowerNeeded  # noqa: PLC0415  see the imports above

        try:
            return self._apply(layer, self._roots[layer.chain], apart=True)
        except LowerNeeded:
            self._parts.snapshotter.empty(snapshot)
            return None

    def _finish(self, layer: Layer, applied: Applied | None) -> None:
        """Unpack a layer unless that was done apart, and let its root show what the layers below say of it."""
        from layerfs.layer.apart import adopt_root  # noqa: PLC0415  see the imports above

        root = self._root(layer.chain)
        if applied is None:
            applied = self._apply(layer, root)
        if layer.parent and not applied.lists_root:
            adopt_root(root, self._root(layer.parent))

    def _root(self, chain: str) -> LayerRoot:
        """Return the directory of a layer, which need not be committed yet."""
        if chain not in self._roots:
            self._roots[chain] = self._shown(self._parts.snapshotter.snapshot(chain))
        return self._roots[chain]

    def _shown(self, snapshot: Snapshot) -> LayerRoot:
        if self._direct is None:
            raise FailedPrecondition(f"the driver {self._parts.driver.name} does not show what its snapshots hold")
        return self._direct.layer_root(snapshot)

    @cached_property
    def _direct(self) -> DirectAccess | None:
        """Return the driver, if it shows what its snapshots hold; asked once, for a Protocol takes 20 µs to look at."""
        driver = self._parts.driver
        return driver if isinstance(driver, DirectAccess) else None

    def _hear(self, event: Progress) -> None:
        """Pass an event on, or end the work of this thread where another layer has failed."""
        if self._stopping.is_set():
            raise _StoppedError
        self._listener(event)

    # Both

    def _seal(self, connection: sqlite3.Connection) -> None:
        """Write down what the layers are that were unpacked: their blobs tell, so nothing is read for it."""
        for chain, seal in self._seals.items():
            seals.put(connection, chain, seal)
        self._seals.clear()

    def _apply(
        self,
        layer: Layer,
        root: LayerRoot | None,
        mounts: Sequence[Mount] = (),
        *,
        apart: bool = False,
        filler: Fill | None = None,
        verify: bool = False,
    ) -> Applied:
        """Unpack a layer into its root, or what the mounts show; raise `Corrupt` if it is not what its DiffID says."""
        from layerfs.layer.apply import apply  # noqa: PLC0415  see the imports above

        with ExitStack() as stack:
            if root is None:
                root = LayerRoot(stack.enter_context(mounting.mounted(mounting.scratch(mounts))), Whiteouts.REMOVE)
            stream = stack.enter_context(self._opened(layer.blob.digest))
            below = partial(self._below, layer, root, stack)
            applied = apply(
                stream,
                root,
                lower=below if layer.parent and not apart else None,
                base=not layer.parent,
                apart=apart,
                owner=self._policy,
                owners=self._owners,
                limits=self._limits,
                known=None if verify else layer.blob.digest,
                filler=filler,
                listener=self._hear,
                item=layer.blob.digest,
                total=layer.blob.size,
            )
        if applied.diff_id != layer.diff_id:
            raise Corrupt(
                f"the layer {layer.blob.digest} unpacks to {applied.diff_id}; its image says {layer.diff_id}",
                hint="the image was damaged or altered: get it again",
            )
        if applied.digest != layer.blob.digest:
            raise Corrupt(
                f"the blob {layer.blob.digest} has other bytes than its name says: {applied.digest}",
                hint="`layerfs repair --force` brings it again",
            )
        self._seals[layer.chain] = Seal(applied.entries, applied.size, applied.diff_id)
        return applied

    @cached_property
    def _owners(self) -> Owners | None:
        from layerfs.layer.owners import Owners  # noqa: PLC0415  see the imports above

        return Owners(self._parts.id_map) if self._parts.id_map else None

    @cached_property
    def _policy(self) -> OwnerPolicy:
        """Keep owners where more than one can exist: an ordinary user, or a namespace of one id, has but itself."""
        from layerfs.layer.apply import OwnerPolicy  # noqa: PLC0415  see the imports above

        alone = self._parts.id_map is None and (os.geteuid() != 0 or userns.id_map().single)
        return OwnerPolicy.SQUASH if alone else OwnerPolicy.KEEP

    def _below(self, layer: Layer, root: LayerRoot, stack: ExitStack) -> Below:
        """Show what is below a layer, by the directories of the layers or else by a mount, which takes far longer."""
        from layerfs.layer.below import Mounted, Stack  # noqa: PLC0415  see the imports above

        if root.whiteouts is Whiteouts.REMOVE or layer.parent not in self._chains:
            return Mounted(stack.enter_context(self._parts.temporary_view(layer.parent)))
        if self._stack is None:
            self._stack = Stack()
        for chain in self._chains[len(self._stack) : self._chains.index(layer.parent) + 1]:
            self._stack.push(self._root(chain))
        return self._stack


class _StoppedError(Exception):
    """End a thread whose layer nobody wants any more."""
