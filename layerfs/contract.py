"""The contract between the core and a storage driver: the words that everything else is said in.

*active* (writable), *view* (read-only) and *committed* (immutable, may be a parent) are the kinds of snapshot. A driver
turns snapshot ids into bytes on disk and returns `Mount`s; it never mounts, and knows neither names nor labels. The
rules follow containerd's ``core/snapshots/snapshotter.go``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, NewType, Protocol, runtime_checkable

SnapshotId = NewType("SnapshotId", int)
"""A snapshot's number in its store: positive, never used twice, and the name of its directory, dataset or device."""

_MOST_DIGITS = 15
"""Of an id. After the greatest one that a database can hold there would be none: a name that says so is nobody's."""


def id_of(name: str) -> SnapshotId | None:
    """Return the id of which a file or dataset has the name; None for a name that no snapshot can have, as "007"."""
    good = name.isascii() and name.isdecimal() and len(name) <= _MOST_DIGITS and not name.startswith("0")
    return SnapshotId(int(name)) if good else None


def ids_of(names: Iterable[str]) -> set[SnapshotId]:
    """Return the ids of which files or datasets have the names."""
    return {found for found in map(id_of, names) if found is not None}


class Kind(StrEnum):
    """What a snapshot may be used for."""

    ACTIVE = "active"
    VIEW = "view"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True)
class Quota:
    """What an active snapshot may take without its parents: ``size`` in bytes, ``inodes``; None is no limit."""

    size: int | None = None
    inodes: int | None = None

    def __bool__(self) -> bool:
        """Tell whether there is a limit at all."""
        return self.size is not None or self.inodes is not None

    def __str__(self) -> str:
        """Say it in words: "1048576 bytes and 100 inodes"."""
        limits = ((self.size, "bytes"), (self.inodes, "inodes"))
        return " and ".join(f"{limit} {unit}" for limit, unit in limits if limit is not None) or "none"


NO_QUOTA = Quota()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a driver is told of a snapshot.

    ``parents`` holds the ids below it, the nearest first, down to the one without a parent. ``quota`` has limits only
    for an active snapshot of a driver with `Quotas`.
    """

    id: SnapshotId
    kind: Kind
    parents: tuple[SnapshotId, ...] = ()
    quota: Quota = NO_QUOTA

    @property
    def parent(self) -> SnapshotId | None:
        """Return the nearest snapshot below, or None for one that starts empty."""
        return self.parents[0] if self.parents else None

    @property
    def writable(self) -> bool:
        """Tell whether its mounts allow writing."""
        return self.kind is Kind.ACTIVE


@dataclass(frozen=True, slots=True)
class Mount:
    r"""One mount to perform, in the form of containerd's ``mount.Mount`` and of mount(8).

    ``type`` is a file system type or "bind"; ``options`` are those of mount(8), so "ro", "bind", "lowerdir=a:b" with
    ``:`` and ``\`` inside a path escaped by ``\``. ``target`` is empty for the mount that goes to the caller's own
    target. Otherwise it is the absolute place of a mount that several snapshots share and that stands below the next
    ones: perform it unless it is there already.
    """

    type: str
    source: str
    options: tuple[str, ...] = ()
    target: str = ""

    @property
    def read_only(self) -> bool:
        """Tell whether this mount forbids writing."""
        return "ro" in self.options

    def with_options(self, *options: str) -> Mount:
        """Return this mount with further options."""
        return replace(self, options=(*self.options, *options))


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot takes on disk without its parents: ``size`` in bytes of allocated space, and ``inodes``."""

    size: int = 0
    inodes: int = 0

    def __add__(self, other: Usage) -> Usage:
        """Add two usages."""
        return Usage(self.size + other.size, self.inodes + other.inodes)


@dataclass(frozen=True, slots=True)
class Info:
    """What the snapshotter knows of a snapshot; ``parent`` is the name of a committed one, or ""."""

    name: str
    kind: Kind
    parent: str
    created: datetime
    updated: datetime
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


class CopyUnit(StrEnum):
    """What the first write to lower data copies."""

    FILE = "file"
    BLOCK = "block"
    TREE = "tree"
    """Everything, when the snapshot is made: a plain copy."""


class WritePolicy(StrEnum):
    """Where a first write to lower data goes."""

    COPY_ON_WRITE = "copy-on-write"
    REDIRECT_ON_WRITE = "redirect-on-write"
    IN_PLACE = "in-place"
    """A snapshot shares nothing, so a write finds data of its own."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a driver declares of itself; tests and benchmarks ask this, never a driver's name.

    ``max_layers`` is the largest number of snapshots in one chain, the active one not counted; None is no limit.
    ``rebase`` tells that `Snapshotter.commit` may give a parentless snapshot its parent, so that the layers of an
    image can be unpacked side by side. ``rootless`` tells that an ordinary user can work with it in a user namespace,
    ``unprivileged`` that they need not even that: then their mounts are seen by everybody and last. ``light`` tells
    that `Driver.create` takes well under a millisecond and that `Driver.commit` changes nothing, but makes durable:
    then neither is announced before it is done.
    """

    copy_unit: CopyUnit
    write_policy: WritePolicy
    max_layers: int | None = None
    rebase: bool = False
    rootless: bool = False
    unprivileged: bool = False
    light: bool = False


class Driver(Protocol):
    """Turn snapshot ids into bytes on disk.

    The core calls it with ids that it has reserved, never twice at the same time for the same id. Errors are
    `LayerfsError`s; an ``OSError`` that leaves a driver is translated by the core.
    """

    name: ClassVar[str]
    traits: ClassVar[Traits]

    def create(self, snapshot: Snapshot) -> None:
        """Make the bytes of an active snapshot or view on top of ``snapshot.parent``; leave nothing on failure.

        The root directory of one without a parent has mode 0755 whatever the umask; others keep their parent's.
        """
        ...

    def mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """Return the mounts that show it; pure: the same answer every time, and nothing is touched."""
        ...

    def commit(self, snapshot: Snapshot) -> None:
        """Make an active snapshot immutable and durable; doing it twice is no error (recovery may)."""
        ...

    def usage(self, snapshot: Snapshot) -> Usage:
        """Measure what it takes without its parents."""
        ...

    def remove(self, id: SnapshotId) -> None:  # noqa: A002  the field's word, and design.md's
        """Delete its bytes, whatever state a crash left them in; what is gone already is no error."""
        ...

    def ids(self) -> Iterable[SnapshotId]:
        """List every id of which bytes exist, whole or partial, so that the core can reclaim orphans."""
        ...

    def close(self) -> None:
        """Release what the driver holds open; doing it twice is no error."""
        ...


class Whiteouts(StrEnum):
    """How a directory that holds a layer says that a name of lower layers is gone."""

    REMOVE = "remove"
    """It does not: the directory is a whole tree, and what is gone is not there."""
    OVERLAY = "overlay"
    """Character device 0/0, and ``trusted.overlay.opaque=y`` (kernel document overlayfs.rst)."""
    OVERLAY_USER = "overlay-user"
    """Character device 0/0, and ``user.overlay.opaque=y``, for mounts with ``userxattr``."""


@dataclass(frozen=True, slots=True)
class LayerRoot:
    """The directory of one snapshot as the layer engine reads and writes it without a mount."""

    path: Path
    whiteouts: Whiteouts


@runtime_checkable
class DirectAccess(Protocol):
    """Optional power: show a snapshot's own directory, so that layers are unpacked and diffed without a mount."""

    def layer_root(self, snapshot: Snapshot) -> LayerRoot:
        """Return the directory; for whiteout styles other than REMOVE it holds what differs from the parent only."""
        ...


@runtime_checkable
class VolatileMounts(Protocol):
    """Optional power: mounts that never sync, for data that may be lost (overlay's ``volatile``)."""

    def volatile_mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """Return the mounts of `Driver.mounts` without durability."""
        ...

    def settle(self, snapshot: Snapshot) -> None:
        """Sync what a volatile mount wrote, after its unmount, and allow the next mount."""
        ...


@runtime_checkable
class UnsharedMounts(Protocol):
    """Optional power: show a snapshot without mounts that it shares with others (`Mount.target`)."""

    def unshared_mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """Return what `Driver.mounts` shows as mounts for the caller's target only, for who can perform no others."""
        ...


@runtime_checkable
class CommitsTogether(Protocol):
    """Optional power: commit several snapshots for the price of one, such as one sync of their file system."""

    def commit_all(self, snapshots: Sequence[Snapshot]) -> None:
        """Do for each what `Driver.commit` does; doing it twice is no error."""
        ...


@runtime_checkable
class Flattenable(Protocol):
    """Optional power: snapshots may keep only the changed parts of a file, and can be made to keep whole files."""

    def is_flat(self, snapshot: Snapshot) -> bool:
        """Tell whether its own directory holds whole files only, as `DirectAccess` shows them."""
        ...

    def flatten(self, snapshot: Snapshot) -> int:
        """Make all files of an active snapshot whole and return how many were not; raise `Busy` while it is mounted."""
        ...


@runtime_checkable
class Detachable(Protocol):
    """Optional power: let go of what the kernel holds between processes, such as a pool and its devices."""

    def detach(self) -> bool:
        """Take it from the kernel until the next opening, and return whether there was something.

        Raise `Busy` while a snapshot is mounted.
        """
        ...


@runtime_checkable
class Quotas(Protocol):
    """Optional power: keep an active snapshot within `Snapshot.quota`, which `Driver.create` obeys too.

    What would go beyond it fails inside with EDQUOT or ENOSPC. Limits hold to one block of the file system.
    """

    def set_quota(self, snapshot: Snapshot) -> None:
        """Hold an active snapshot to its quota from now on; doing it twice is no error (recovery may).

        What is beyond a new limit stays, and nothing can be added; or `NoSpace` says that there is too much. No quota
        at all lifts every limit, and is no error where there never was one. Raise `Unsupported` with a hint for what
        cannot be limited here, and `Busy` where it cannot be as long as the snapshot is mounted.
        """
        ...

    def quota_usage(self, snapshot: Snapshot) -> Usage:
        """Return what counts against its quota now; 0 for what is not limited here."""
        ...


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with the bytes of a snapshot, and what to do; ``id`` is None where it concerns all of them."""

    id: SnapshotId | None
    message: str
    hint: str = ""


@runtime_checkable
class Checkable(Protocol):
    """Optional power: tell which snapshots were removed or broken behind the driver's back."""

    def check(self, snapshots: Iterable[Snapshot]) -> Iterable[Damage]:
        """Return what is wrong with these, which `Driver.ids` lists; nothing is changed, and no file is read."""
        ...


@runtime_checkable
class Tidy(Protocol):
    """Optional power: know what in its directory is its own."""

    def strangers(self) -> Iterable[Path]:
        """Return the files and directories that are not: nothing of the store needs them."""
        ...


@runtime_checkable
class KeepsIndex(Protocol):
    """Optional power: keep something beside committed snapshots that is made from them, and can be made again."""

    def check_index(self, snapshot: Snapshot) -> Damage | None:
        """Compare it with what it was made from; None where it is right, or is not kept."""
        ...

    def renew_index(self, snapshot: Snapshot) -> None:
        """Make it again, whatever is there."""
        ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """Where two trees may differ: nothing else does, and not all of these need to.

    ``paths`` are names of which the file itself may differ, ``trees`` names below which everything may as well. They
    are relative, without a slash in front; some may exist in neither tree.
    """

    paths: frozenset[bytes] = frozenset()
    trees: frozenset[bytes] = frozenset()


@runtime_checkable
class NativeChanges(Protocol):
    """Optional power: know without a walk where a snapshot may differ from one that it stands on."""

    def changed_paths(self, snapshot: Snapshot, base: SnapshotId) -> Candidates:
        """Return where ``snapshot`` may differ from ``base``, which is among its parents.

        A name that is not among the candidates is the same file with the same attributes in both; contents count too.
        Raise `Unsupported` where the host does not tell: the core then compares the whole trees.
        """
        ...


@runtime_checkable
class Transferable(Protocol):
    """Optional power: write a committed snapshot as a stream, from which a driver elsewhere makes the same one.

    ``stream`` names the format: two drivers that name the same one understand each other.
    """

    stream: ClassVar[str]

    def send(self, snapshot: Snapshot, to: int, *, whole: bool = False) -> None:
        """Write a committed snapshot to the descriptor ``to``: what it holds beyond its parent, or the whole of it.

        Raise `LayerfsError` where the reader goes away.
        """
        ...

    def receive(self, snapshot: Snapshot, source: int) -> None:
        """Make a committed snapshot from the descriptor ``source``, to which `send` wrote; leave nothing on failure.

        ``snapshot`` names a parent unless the stream is whole: one that was received from the sender's parent, or sent
        to it. Raise `Corrupt` for bytes that are not a whole stream, `FailedPrecondition` for another parent.
        """
        ...


DriverFactory = Callable[[Path, Mapping[str, str]], Driver]
"""Open a driver on its directory (made if missing), with its options; an entry point of ``layerfs.drivers`` names one.

It raises `Unsupported` with a hint where the host cannot have it, found out by trying, and `InvalidArgument` for an
option that it does not know.
"""
