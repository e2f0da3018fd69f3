"""Unpack the layers of an image into snapshots: in order, or side by side where the driver can take them so.

*Apart* means without the layers below: a layer goes into a snapshot without a parent, which gets its parent when it is
committed, in order (`layerfs.contract.Traits.rebase`). A layer that needs those below it to be understood is unpacked
in order after all, so the result never depends on the way.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

from layerfs import locks
from layerfs.contract import LayerRoot, Mount, Whiteouts
from layerfs.errors import Corrupt, FailedPrecondition, NotFound
from layerfs.events import Listener, Progress, ignore
from layerfs.image.descriptor import Descriptor
from layerfs.kernel import mounting, userns
from layerfs.layer.digest import Digest
from layerfs.parts import Parts

if TYPE_CHECKING:  # and imported by the methods that use them: a third of the time that a small command takes
    from concurrent.futures import Future

    from layerfs.layer.apply import Applied
    from layerfs.layer.below import Below, Stack
    from layerfs.layer.limits import Limits

LAYER_LABEL = "layerfs/layer"
"""Marks the snapshots that hold unpacked layers: those that `prune` may remove once no image names them."""

UNPACKING = "unpack/"
"""Starts the keys of snapshots into which a layer is being unpacked; its ChainID follows."""

_MOST_JOBS = 4
"""Layers at a time unless more are asked for: each has some 20 MiB of blocks under way in its three threads."""
_BATCH = 16
"""Layers that are locked at once, each by a descriptor."""
_DESCRIPTORS = 220
"""Descriptors that one layer may hold open, most of them directories."""
_STACKED = 8
"""The part of all descriptors that the lower layers may take, one for each; more layers are mounted instead."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer to unpack: its blob, what it must be, the name of its snapshot, and that of the one below or ""."""

    blob: Descriptor
    diff_id: Digest
    chain: str
    parent: str

    @property
    def key(self) -> str:
        """Return the key of the snapshot into which it is unpacked."""
        return f"{UNPACKING}{self.chain}"


def default_jobs() -> int:
    """Return how many layers to unpack at a time: one on two processors, which a single layer keeps busy."""
    processors = len(os.sched_getaffinity(0))
    return 1 if processors <= 2 else min(_MOST_JOBS, processors // 2)  # noqa: PLR2004  measured on two


class Unpacker:
    """Unpack layers for one call: what they may cost, how many at a time, and who listens."""

    def __init__(
        self, parts: Parts, *, limits: Limits | None = None, jobs: int | None = None, listener: Listener = ignore
    ) -> None:
        self._parts = parts
        self._limits = limits
        self._jobs = default_jobs() if jobs is None else jobs
        self._listener = listener
        self._stopping = Event()
        self._stack: Stack | None = None
        self._chains: Sequence[str] = ()

    def run(self, layers: Sequence[Layer]) -> None:
        """Make sure that every one of these layers, the lowest first, is there as a snapshot."""
        missing = [layer for layer in layers if not self.is_there(layer.chain)]
        traits = self._parts.driver.traits
        stackable = traits.max_layers is None or len(layers) <= traits.max_layers
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        jobs = min(self._jobs, (descriptors - descriptors // _STACKED) // _DESCRIPTORS)
        self._chains = [layer.chain for layer in layers] if len(layers) <= descriptors // _STACKED else ()
        try:
            if jobs > 1 and len(missing) > 1 and traits.rebase and stackable:
                for start in range(0, len(missing), _BATCH):
                    self._side_by_side(missing[start : start + _BATCH], jobs)
                return
            for layer in missing:
                with self._locked(layer):
                    if not self.is_there(layer.chain):
                        self._in_order(layer)
        finally:
            if self._stack is not None:
                self._stack.drop()
                self._stack = None

    def is_there(self, chain: str) -> bool:
        """Tell whether a layer is unpacked."""
        try:
            self._parts.snapshotter.snapshot(chain)
        except NotFound:
            return False
        return True

    def _locked(self, layer: Layer) -> AbstractContextManager[None]:
        what = f"the layer {layer.chain}"
        return locks.locked(self._parts.lock_file, locks.named(layer.chain), exclusive=True, what=what)

    def _in_order(self, layer: Layer) -> None:
        """Unpack one layer on the one below, and commit it only if it is what its DiffID says."""
        snapshotter = self._parts.snapshotter
        mounts = self._prepare(layer, layer.parent)
        try:
            applied = self._apply(layer, mounts)
            _check_diff_id(layer, applied)
            snapshotter.commit(layer.chain, layer.key, labels={LAYER_LABEL: str(layer.blob.digest)})
        except BaseException:
            snapshotter.remove(layer.key)
            raise

    def _prepare(self, layer: Layer, parent: str) -> tuple[Mount, ...]:
        with suppress(NotFound):
            self._parts.snapshotter.remove(layer.key)  # what a crash left; the lock tells that nobody works on it
        return self._parts.snapshotter.prepare(layer.key, parent)

    # Side by side

    def _side_by_side(self, layers: Sequence[Layer], jobs: int) -> None:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  see the imports above

        with ExitStack() as stack:
            # From the lowest up, as everybody takes them, so that no two wait for each other.
            for layer in layers:
                stack.enter_context(self._locked(layer))
            waiting = [layer for layer in layers if not self.is_there(layer.chain)]
            pool = stack.enter_context(ThreadPoolExecutor(jobs, thread_name_prefix="layerfs-unpack"))
            futures = [pool.submit(self._apart, layer) for layer in waiting]
            try:
                for layer, future in zip(waiting, futures, strict=True):
                    self._finish(layer, future.result())
            except BaseException:
                self._give_up(waiting, futures)
                raise

    def _apart(self, layer: Layer) -> Applied | None:
        """Unpack a layer without those below; return None, and leave nothing, where it needs them."""
        from layerfs.layer.apart import LowerNeeded  # noqa: PLC0415  see the imports above

        mounts = self._prepare(layer, "")
        try:
            return self._apply(layer, mounts, apart=True)
        except LowerNeeded:
            self._parts.snapshotter.remove(layer.key)
            return None
        except BaseException:
            self._parts.snapshotter.remove(layer.key)
            raise

    def _finish(self, layer: Layer, applied: Applied | None) -> None:
        """Give a layer that was unpacked apart its parent; unpack it now where that could not be."""
        from layerfs.layer.apart import adopt_root  # noqa: PLC0415  see the imports above

        if applied is None:
            self._in_order(layer)
            return
        _check_diff_id(layer, applied)
        own = self._parts.layer_root(layer.key)
        below = self._parts.layer_root(layer.parent) if layer.parent else None
        if own and below and not applied.lists_root:
            adopt_root(own, below)
        labels = {LAYER_LABEL: str(layer.blob.digest)}
        self._parts.snapshotter.commit(layer.chain, layer.key, labels=labels, parent=layer.parent or None)

    def _give_up(self, layers: Sequence[Layer], futures: Sequence[Future[Applied | None]]) -> None:
        """Stop what is under way, and remove what is not committed."""
        self._stopping.set()
        for layer, future in zip(layers, futures, strict=True):
            if not future.cancel():
                future.exception()  # waits
            with suppress(NotFound):
                self._parts.snapshotter.remove(layer.key)

    def _hear(self, event: Progress) -> None:
        """Pass an event on, or end the work of this thread where another layer has failed."""
        if self._stopping.is_set():
            raise _StoppedError
        self._listener(event)

    # Both

    def _apply(self, layer: Layer, mounts: Sequence[Mount], *, apart: bool = False) -> Applied:
        from layerfs.layer.apply import OwnerPolicy, apply  # noqa: PLC0415  see the imports above
        from layerfs.layer.owners import Owners  # noqa: PLC0415  see the imports above

        owners = Owners(self._parts.id_map) if self._parts.id_map else None
        # An ordinary user, or a namespace of one id, has but itself: owners are kept where more than one can exist.
        alone = owners is None and (os.geteuid() != 0 or userns.id_map().single)
        with ExitStack() as stack:
            root = self._parts.layer_root(layer.key)
            if root is None:
                root = LayerRoot(stack.enter_context(mounting.mounted(mounts)), Whiteouts.REMOVE)
            stream = stack.enter_context(self._parts.blobs.open(layer.blob.digest))
            below = partial(self._below, layer, root, stack)
            return apply(
                stream,
                root,
                lower=below if layer.parent and not apart else None,
                base=not layer.parent,
                apart=apart,
                owner=OwnerPolicy.SQUASH if alone else OwnerPolicy.KEEP,
                owners=owners,
                limits=self._limits,
                known=layer.blob.digest,
                listener=self._hear,
                item=layer.blob.digest,
                total=layer.blob.size,
            )

    def _below(self, layer: Layer, root: LayerRoot, stack: ExitStack) -> Below:
        """Show what is below a layer, by the directories of the layers or else by a mount, which takes far longer."""
        from layerfs.layer.below import Mounted, Stack  # noqa: PLC0415  see the imports above

        if root.whiteouts is Whiteouts.REMOVE or layer.parent not in self._chains:
            return Mounted(stack.enter_context(self._parts.temporary_view(layer.parent)))
        if self._stack is None:
            self._stack = Stack()
        for chain in self._chains[len(self._stack) : self._chains.index(layer.parent) + 1]:
            own = self._parts.layer_root(chain)
            if own is None:
                raise FailedPrecondition(f"the driver {self._parts.driver.name} does not show the layer {chain}")
            self._stack.push(own)
        return self._stack


class _StoppedError(Exception):
    """End a thread whose layer nobody wants any more."""


def _check_diff_id(layer: Layer, applied: Applied) -> None:
    if applied.diff_id != layer.diff_id:
        raise Corrupt(
            f"the layer {layer.blob.digest} unpacks to {applied.diff_id}; its image says {layer.diff_id}",
            hint="the image was damaged or altered: get it again",
        )
