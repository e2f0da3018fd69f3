"""The gauges of one store: what it takes and holds, how much room is left, and what waits for somebody."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from layerfs.accounting import Accounts, StoreUsage
from layerfs.contract import DirectAccess, Kind, Snapshot
from layerfs.errors import os_error
from layerfs.kernel import mountinfo
from layerfs.kernel.mountinfo import MountPoint
from layerfs.metadata import clones, images, seals, snapshots
from layerfs.metrics.openmetrics import Family, MetricType, Sample
from layerfs.parts import Parts
from layerfs.unpacking import LAYER_LABEL

_BILLION = 10**9


def gauges(parts: Parts) -> tuple[Family, ...]:
    """Measure a store, as `layerfs du` does, and count what is in it."""
    usage = Accounts(parts).run()
    return (*_space(usage), *_room(parts.path / parts.driver.name), *_counts(parts), *_waiting(parts))


def _gauge(name: str, text: str, samples: Iterable[Sample] | float, unit: str = "") -> Family:
    listed = (Sample(samples),) if isinstance(samples, int | float) else tuple(samples)
    return Family(f"layerfs_{name}", MetricType.GAUGE, text, listed, unit)


def _space(usage: StoreUsage) -> Iterator[Family]:
    taken = [((("part", str(part)),), part_usage) for part, part_usage in usage.parts.items()]
    yield _gauge(
        "store_bytes",
        "Allocated bytes that the store takes, by part; the parts add up.",
        (Sample(one.size, labels) for labels, one in taken),
        "bytes",
    )
    yield _gauge(
        "store_inodes",
        "Inodes that the store takes, by part; the parts add up.",
        (Sample(one.inodes, labels) for labels, one in taken),
    )


def _room(place: Path) -> Iterator[Family]:
    try:
        status = os.statvfs(place)
    except OSError as error:
        raise os_error(f"look how full the file system of {place} is", error) from error
    yield _gauge(
        "filesystem_size_bytes",
        "Size of the file system that holds the snapshots.",
        status.f_blocks * status.f_frsize,
        "bytes",
    )
    yield _gauge(
        "filesystem_free_bytes",
        "Bytes of it that are free for ordinary users.",
        status.f_bavail * status.f_frsize,
        "bytes",
    )
    yield _gauge("filesystem_inodes", "Inodes that it can have; 0 where it has no limit.", status.f_files)
    yield _gauge("filesystem_free_inodes", "Inodes of it that are free for ordinary users.", status.f_favail)


def _counts(parts: Parts) -> Iterator[Family]:
    with parts.database.read() as connection:
        kinds = Counter(row.kind for row in snapshots.ready(connection))
        layers = len(snapshots.with_label(connection, LAYER_LABEL))
        found = len(images.every(connection))
        writable = len(clones.every(connection))
    yield _gauge("driver", "1, with the name of the store's driver.", [Sample(1, (("driver", parts.driver.name),))])
    yield _gauge("images", "Images.", found)
    yield _gauge("layers", "Layers that are unpacked.", layers)
    yield _gauge("clones", "Clones.", writable)
    yield _gauge(
        "snapshots",
        "Snapshots by kind; layers and clones are among them.",
        (Sample(kinds[kind], (("kind", str(kind)),)) for kind in Kind),
    )
    yield _gauge("blobs", "Blobs: manifests, configurations and layers.", sum(1 for _ in parts.blobs.digests()))
    yield _gauge("mounts", "Mounts of its snapshots that this process can see.", sum(1 for _ in mounts(parts)))


def _waiting(parts: Parts) -> Iterator[Family]:
    with parts.database.read() as connection:
        unfinished = len(snapshots.unfinished(connection))
        committed = snapshots.by_kind(connection, Kind.COMMITTED)
        checked = [seal.checked for seal in seals.every(connection).values() if seal.checked is not None]
    leases = parts.leases.every()
    yield _gauge("unfinished_snapshots", "Snapshots that are being made or committed, or were in a crash.", unfinished)
    yield _gauge("leases", "Leases that are not over.", sum(not lease.over for lease in leases))
    yield _gauge(
        "unchecked_snapshots",
        "Committed snapshots of which `layerfs check --deep` never read the contents.",
        len(committed) - len(checked),
    )
    if checked:
        yield _gauge(
            "last_check_timestamp_seconds",
            "When the contents of a snapshot were last found whole, in seconds since 1970.",
            max(checked) / _BILLION,
            "seconds",
        )
        yield _gauge(
            "oldest_check_timestamp_seconds",
            "The same of the snapshot that was not looked at for the longest.",
            min(checked) / _BILLION,
            "seconds",
        )


def mounts(parts: Parts) -> Iterator[MountPoint]:
    """Yield the mounts that show snapshots of a store, without those that it makes for itself."""
    place = os.path.realpath(parts.path)
    sources = _sources(parts)
    device, root = mountinfo.origin(parts.path / parts.driver.name) or (None, "")
    below = os.path.join(root, "")
    for point in mountinfo.mount_points():
        if point.path.is_relative_to(place):
            continue
        shown = (point.upper, *point.lowers, point.source)
        bound = point.device == device and point.root.startswith(below)
        if bound or point.source in sources or any(one.startswith(f"{place}/") for one in shown):
            yield point


def _sources(parts: Parts) -> set[str]:
    """Return the devices or datasets that hold the writable snapshots, where these are no directories."""
    if isinstance(parts.driver, DirectAccess):
        return set()
    with parts.database.read() as connection:
        rows = [*snapshots.by_kind(connection, Kind.ACTIVE), *snapshots.by_kind(connection, Kind.VIEW)]
        found: list[Snapshot] = [snapshots.snapshot(connection, row) for row in rows]
    return {parts.driver.mounts(snapshot)[-1].source for snapshot in found}
