"""Put a layer that was unpacked again in the place of a damaged one: same name, other id, the same children."""

from __future__ import annotations

from contextlib import ExitStack, suppress

from layerfs.checking.deep import KnownLayer
from layerfs.contract import KeepsIndex, Kind, LayerRoot, Mount, Snapshot, Whiteouts
from layerfs.errors import Busy, LayerfsError, NotFound
from layerfs.events import Listener, ignore
from layerfs.kernel import mounting
from layerfs.layer.limits import UNLIMITED
from layerfs.metadata import seals, snapshots
from layerfs.metadata.seals import Seal
from layerfs.parts import Parts
from layerfs.unpacking import Unpacker


def unpack_anew(parts: Parts, known: KnownLayer, listener: Listener = ignore) -> None:
    """Unpack a layer beside the one that is there and let it take its place, in one transaction.

    The caller holds the store alone. Raise `Busy` while anything that stands on it is mounted, `Corrupt` for a damaged
    blob; then nothing has changed.
    """
    layer, snapshotter = known.layer, parts.snapshotter
    above = standing_on(parts, layer.chain)
    _check_unmounted(parts, above)
    with suppress(NotFound):
        snapshotter.remove(layer.key)
    mounts = snapshotter.prepare(layer.key, layer.parent)
    try:
        with ExitStack() as stack:
            root = parts.layer_root(layer.key)
            if root is None:
                root = LayerRoot(stack.enter_context(mounting.mounted(mounts)), Whiteouts.REMOVE)
            applied = Unpacker(parts, limits=UNLIMITED, listener=listener).again(layer, root, known.chains)
        usage = snapshotter.holdings.freeze(snapshotter.snapshot(layer.key))
    except BaseException:
        snapshotter.remove(layer.key)
        raise
    with parts.database.write() as connection:
        old = snapshots.find(connection, layer.chain)
        new = snapshots.find(connection, layer.key)
        if old is None or new is None:
            raise NotFound(f"the layer {layer.chain} was removed meanwhile")
        for child in snapshots.children(connection, old.id):
            row = snapshots.find(connection, child)
            if row is not None:
                snapshots.set_parent(connection, row.id, new.id)
        labels = {**snapshots.labels(connection, old.id), **layer.labels}
        snapshots.delete(connection, old.id)
        snapshots.set_committed_as(connection, new.id, layer.chain, labels, usage, old.created)
        seals.put(connection, layer.chain, Seal(applied.entries, applied.size, applied.diff_id))
    with suppress(LayerfsError):  # an orphan of which others are clones (ZFS) goes with them
        snapshotter.holdings.remove(old.id)
    renew_indexes(parts, above)


def renew_indexes(parts: Parts, names: list[str]) -> None:
    """Make the indexes of committed snapshots again: what they index has moved."""
    driver = parts.driver
    if isinstance(driver, KeepsIndex):
        for name in names:
            snapshot = parts.snapshotter.snapshot(name)
            if snapshot.kind is Kind.COMMITTED:
                driver.renew_index(snapshot)


def standing_on(parts: Parts, name: str) -> list[str]:
    """Return a snapshot and all that stand on it, however far above."""
    found = [name]
    with parts.database.read() as connection:
        for each in found:
            row = snapshots.find(connection, each)
            if row is not None:
                found.extend(snapshots.children(connection, row.id))
    return found


def _check_unmounted(parts: Parts, names: list[str]) -> None:
    for name in names:
        snapshot = parts.snapshotter.snapshot(name)
        if snapshot.kind is Kind.COMMITTED:
            continue
        mounts = _mounts(parts, snapshot)
        used = mounting.users(mounts) if mounts else []
        if used:
            raise Busy(f"{name!r}, which stands on it, is mounted at {used[0].path}", hint="unmount it, then try again")
        mounting.release_shared(mounts)


def _mounts(parts: Parts, snapshot: Snapshot) -> tuple[Mount, ...]:
    with suppress(LayerfsError):
        return parts.snapshotter.holdings.mounts(snapshot, f"snapshot {snapshot.id}")
    return ()
