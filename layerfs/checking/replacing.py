"""Put a layer that was unpacked again in the place of a damaged one: same name, other id, the same children."""

from __future__ import annotations

from contextlib import suppress

from layerfs import rules
from layerfs.checking.deep import KnownLayer
from layerfs.contract import KeepsIndex, Kind, Mount, Snapshot, SnapshotId, Usage
from layerfs.errors import Busy, LayerfsError, NotFound
from layerfs.events import Listener, ignore
from layerfs.kernel import mounting
from layerfs.layer.limits import UNLIMITED
from layerfs.metadata import seals, snapshots
from layerfs.metadata.seals import Seal
from layerfs.parts import Parts
from layerfs.unpacking import Layer, Unpacker


def unpack_anew(parts: Parts, known: KnownLayer, listener: Listener = ignore) -> None:
    """Unpack a layer beside the one that is there and let it take its place, in one transaction.

    The caller holds the store alone. Raise `Busy` while anything that stands on it is mounted, `Corrupt` for a damaged
    blob; then nothing has changed.
    """
    layer, snapshotter = known.layer, parts.snapshotter
    above = _standing_on(parts, layer.chain)
    _check_unmounted(parts, above)
    with suppress(NotFound):
        snapshotter.remove(layer.key)
    mounts = snapshotter.prepare(layer.key, layer.parent)
    try:
        unpacker = Unpacker(parts, limits=UNLIMITED, listener=listener)
        applied = unpacker.again(layer, parts.layer_root(layer.key), known.chains, mounts)
        usage = snapshotter.holdings.freeze(snapshotter.snapshot(layer.key))
        seal = Seal(applied.entries, applied.size, applied.diff_id)
        old = _take_its_place(parts, layer, usage, seal)
    except BaseException:
        with suppress(LayerfsError):  # it has taken the place already, or the next one removes it
            snapshotter.remove(layer.key)
        raise
    with suppress(LayerfsError):  # an orphan of which others are clones (ZFS) goes with them
        snapshotter.holdings.remove(old)
    renew_indexes(parts, above)


def _standing_on(parts: Parts, name: str) -> list[str]:
    """Return a snapshot and all that stand on it, each after its parent."""
    with parts.database.read() as connection:
        return snapshots.descendant_names(connection, rules.present(connection, name).id)


def _take_its_place(parts: Parts, layer: Layer, usage: Usage, seal: Seal) -> SnapshotId:
    """Give what was unpacked the name, the labels and the children of the layer that is there; return that one's id."""
    with parts.database.write() as connection:
        old, new = rules.present(connection, layer.chain), rules.present(connection, layer.key)
        snapshots.hand_over(connection, old.id, new.id)
        labels = {**snapshots.labels(connection, old.id), **layer.labels}
        snapshots.delete(connection, old.id)
        snapshots.set_committed_as(connection, new.id, layer.chain, labels, usage, old.created)
        seals.put(connection, layer.chain, seal)
    return old.id


def renew_indexes(parts: Parts, names: list[str]) -> None:
    """Make the indexes of committed snapshots again: what they index has moved."""
    driver = parts.driver
    if isinstance(driver, KeepsIndex):
        for name in names:
            snapshot = parts.snapshotter.snapshot(name)
            if snapshot.kind is Kind.COMMITTED:
                driver.renew_index(snapshot)


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
