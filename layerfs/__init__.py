r"""Layered storage for containers: images from layers, writable roots from images, on pluggable snapshot drivers.

>>> import layerfs
>>> with layerfs.open("/var/lib/layerfs") as store:  # doctest: +SKIP
...     store.import_image("debian.tar", names=["debian"])
...     with store.clone("debian") as clone, clone.mounted() as root:
...         (root / "hello").write_text("a writable root\n")

Every name below is imported when it is first used, so that ``import layerfs`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layerfs.accounting import DiskUsage, StoreUsage
    from layerfs.checking.problem import Problem, ProblemKind
    from layerfs.clones import Clone
    from layerfs.contract import (
        Candidates,
        Checkable,
        CommitsTogether,
        CopyUnit,
        Damage,
        Detachable,
        DirectAccess,
        Driver,
        DriverFactory,
        Flattenable,
        Info,
        Kind,
        LayerRoot,
        Mount,
        NativeChanges,
        Quota,
        Quotas,
        Snapshot,
        SnapshotId,
        Traits,
        Transferable,
        Usage,
        VolatileMounts,
        Whiteouts,
        WritePolicy,
    )
    from layerfs.errors import (
        AlreadyExists,
        Busy,
        CommandFailed,
        Corrupt,
        FailedPrecondition,
        InvalidArgument,
        LayerfsError,
        NoSpace,
        NotFound,
        OperationFailed,
        PermissionDenied,
        Unsupported,
    )
    from layerfs.events import Listener, Progress
    from layerfs.image.files import ArchiveFormat
    from layerfs.image.platform import Platform
    from layerfs.images import Image
    from layerfs.kernel.userns import IdMap, IdRange
    from layerfs.layer.changes import Change
    from layerfs.layer.compression import Compression
    from layerfs.layer.limits import LimitExceeded, Limits
    from layerfs.leases import Lease
    from layerfs.migrating.migration import Migrated
    from layerfs.opening import open_store as open  # noqa: A004  layerfs.open, as people know it from gzip and shelve
    from layerfs.owning import Owner
    from layerfs.reclaim import PrunePlan
    from layerfs.snapshotter import Snapshotter
    from layerfs.store import Store
    from layerfs.volume import LoopVolume

_HOMES = {
    "layerfs.accounting": ("DiskUsage", "StoreUsage"),
    "layerfs.checking.problem": ("Problem", "ProblemKind"),
    "layerfs.clones": ("Clone",),
    "layerfs.contract": (
        "Candidates",
        "Checkable",
        "CommitsTogether",
        "CopyUnit",
        "Damage",
        "Detachable",
        "DirectAccess",
        "Driver",
        "DriverFactory",
        "Flattenable",
        "Info",
        "Kind",
        "LayerRoot",
        "Mount",
        "NativeChanges",
        "Quota",
        "Quotas",
        "Snapshot",
        "SnapshotId",
        "Traits",
        "Transferable",
        "Usage",
        "VolatileMounts",
        "Whiteouts",
        "WritePolicy",
    ),
    "layerfs.errors": (
        "AlreadyExists",
        "Busy",
        "CommandFailed",
        "Corrupt",
        "FailedPrecondition",
        "InvalidArgument",
        "LayerfsError",
        "NoSpace",
        "NotFound",
        "OperationFailed",
        "PermissionDenied",
        "Unsupported",
    ),
    "layerfs.events": ("Listener", "Progress"),
    "layerfs.image.files": ("ArchiveFormat",),
    "layerfs.image.platform": ("Platform",),
    "layerfs.images": ("Image",),
    "layerfs.kernel.userns": ("IdMap", "IdRange"),
    "layerfs.layer.changes": ("Change",),
    "layerfs.layer.compression": ("Compression",),
    "layerfs.layer.limits": ("LimitExceeded", "Limits"),
    "layerfs.leases": ("Lease",),
    "layerfs.migrating.migration": ("Migrated",),
    "layerfs.opening": ("open_store",),
    "layerfs.owning": ("Owner",),
    "layerfs.reclaim": ("PrunePlan",),
    "layerfs.snapshotter": ("Snapshotter",),
    "layerfs.store": ("Store",),
    "layerfs.volume": ("LoopVolume",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AlreadyExists",
    "ArchiveFormat",
    "Busy",
    "Candidates",
    "Change",
    "Checkable",
    "Clone",
    "CommandFailed",
    "CommitsTogether",
    "Compression",
    "CopyUnit",
    "Corrupt",
    "Damage",
    "Detachable",
    "DirectAccess",
    "DiskUsage",
    "Driver",
    "DriverFactory",
    "FailedPrecondition",
    "Flattenable",
    "IdMap",
    "IdRange",
    "Image",
    "Info",
    "InvalidArgument",
    "Kind",
    "LayerRoot",
    "LayerfsError",
    "Lease",
    "LimitExceeded",
    "Limits",
    "Listener",
    "LoopVolume",
    "Migrated",
    "Mount",
    "NativeChanges",
    "NoSpace",
    "NotFound",
    "OperationFailed",
    "Owner",
    "PermissionDenied",
    "Platform",
    "Problem",
    "ProblemKind",
    "Progress",
    "PrunePlan",
    "Quota",
    "Quotas",
    "Snapshot",
    "SnapshotId",
    "Snapshotter",
    "Store",
    "StoreUsage",
    "Traits",
    "Transferable",
    "Unsupported",
    "Usage",
    "VolatileMounts",
    "Whiteouts",
    "WritePolicy",
    "open",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    inner = "open_store" if name == "open" else name
    if inner not in _HOME:
        raise AttributeError(f"module 'layerfs' has no attribute {name!r}")
    return getattr(import_module(_HOME[inner]), inner)


def __dir__() -> list[str]:
    """List the public names without importing them."""
    return sorted(__all__)
