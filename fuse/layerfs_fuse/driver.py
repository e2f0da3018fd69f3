"""The fuse driver: a directory per snapshot, stacked by our own union file system in user space.

::

    <root>/<id>/index     the merged view of the committed snapshot <id> with all below it (`layerfs_fuse.index`)
    <root>/<id>/quota     what it may take (`layerfs_fuse.union.ledger`)
    <root>/<id>/log       what the process that serves a mount of it had to say

and what `layerfs.layerdirs` makes: upperdir, workdir and lowerdirs in overlay's format. It needs no kernel overlay, no
privilege beyond /dev/fuse and fusermount3, and has no limit of layers; a lookup costs the same at any depth.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from layerfs.contract import (
    CopyUnit,
    Damage,
    Driver,
    Kind,
    LayerRoot,
    Mount,
    Snapshot,
    SnapshotId,
    Traits,
    Usage,
    WritePolicy,
)
from layerfs.errors import (
    Busy,
    Corrupt,
    InvalidArgument,
    LayerfsError,
    NotFound,
    PermissionDenied,
    Unsupported,
    os_error,
)
from layerfs.kernel import mounting, temporary
from layerfs.kernel.options import escape_path
from layerfs.layerdirs import LayerDirectories, open_directories
from layerfs_fuse.index.builder import build
from layerfs_fuse.index.checks import check
from layerfs_fuse.index.compare import difference
from layerfs_fuse.index.reader import Index
from layerfs_fuse.redirect.flatten import flatten_tree, has_redirects
from layerfs_fuse.stack import open_index, open_layer
from layerfs_fuse.union import ledger
from layerfs_fuse.union.upper import is_used, settled

TYPE = "fuse.layerfs"
"""The type of its mounts, and the name of the program that performs them: ``mount.fuse.layerfs``."""

_OPTIONS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "server": {"own": (), "fusepy": ("fusepy",)},
    "write": {"copy": (), "redirect": ("write=redirect",)},
    "passthrough": {"on": (), "off": ("nopassthrough",)},
}
"""The driver's options, their values, and what these are as options of a mount."""


class FuseDriver:
    """Keep each snapshot's own changes in ``<root>/<id>/diff`` and let a union in user space show the stack."""

    name: ClassVar[str] = "fuse"
    traits: ClassVar[Traits] = Traits(
        CopyUnit.FILE, WritePolicy.COPY_ON_WRITE, rebase=True, rootless=True, unprivileged=True
    )

    def __init__(self, directories: LayerDirectories, words: Sequence[str] = ()) -> None:
        """Take over the directories; ``words`` are further options of every mount."""
        self._directories = directories
        self._words = tuple(words)

    def create(self, snapshot: Snapshot) -> None:
        """Make the directories (`layerfs.layerdirs`), whose root takes over the attributes of the parent's."""
        if snapshot.parent is not None and is_used(self._work(snapshot.parent)):
            self._await_times(replace(snapshot, id=snapshot.parent, parents=snapshot.parents[1:], kind=Kind.ACTIVE))
        self._directories.create(snapshot, work=snapshot.writable)
        if snapshot.quota:
            try:
                self.set_quota(snapshot)
            except BaseException:
                self._directories.remove(snapshot.id)
                raise

    def mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """Return the one mount of the union, whose source is the snapshot's directory: by it mounts are found."""
        own = self._directories.path(snapshot.id)
        # A view of nothing shows its own, empty directory.
        ids = snapshot.parents or (() if snapshot.writable else (snapshot.id,))
        options = _stack([self._directories.diff(one) for one in ids], own if snapshot.writable else None)
        if snapshot.parent is not None:
            options += (f"index={escape_path(self._index(snapshot.parent))}",)
        if snapshot.quota:
            options += (f"quota={escape_path(self._quota(snapshot.id))}",)
        return (Mount(TYPE, str(own), (*options, f"log={escape_path(own / 'log')}", *self._words)),)

    def commit(self, snapshot: Snapshot) -> None:
        """Build the index of the snapshot on that of its parent, and sync both it and the layer."""
        self.commit_all([snapshot])

    def commit_all(self, snapshots: Sequence[Snapshot]) -> None:
        """Build the indexes of those that no other of them stands on, and sync (`layerfs.contract.CommitsTogether`).

        The index of one in between is built when it is mounted, which hardly ever happens.
        """
        for snapshot in snapshots:
            self._finish_files(snapshot)
        below = {parent for snapshot in snapshots for parent in snapshot.parents}
        for snapshot in snapshots:
            if snapshot.id not in below:
                self._build(snapshot)
        if snapshots:
            self._directories.sync(snapshots[0].id)

    def usage(self, snapshot: Snapshot) -> Usage:
        """Measure what the snapshot adds to its parents."""
        return self._directories.usage(snapshot.id)

    def set_quota(self, snapshot: Snapshot) -> None:
        """Write the quota where the union that counts reads it (`layerfs.contract.Quotas`).

        Raise `Busy` while it is mounted without one: that union does not count.
        """
        place = self._quota(snapshot.id)
        mounted = bool(mounting.users(self.mounts(snapshot)))
        if not snapshot.quota and not mounted:
            place.unlink(missing_ok=True)
            return
        if snapshot.quota and "fusepy" in self._words:
            raise Unsupported("fusepy counts nothing for a quota", hint="leave out the option server=fusepy")
        if snapshot.quota and mounted and not ledger.is_held(place):
            raise Busy(f"snapshot {snapshot.id} is mounted without a quota", hint="unmount it, then try again")
        ledger.write_quota(place, snapshot.quota)

    def quota_usage(self, snapshot: Snapshot) -> Usage:
        """Measure its directory; files that are open and have no name any more count only inside."""
        return self.usage(snapshot)

    def remove(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Delete the directory, once the process that served its last mount has ended."""
        settled(self._work(id))
        self._directories.remove(id)

    def ids(self) -> Iterable[SnapshotId]:
        """List the snapshots, and those that a crash left half made or half deleted."""
        return self._directories.ids()

    def strangers(self) -> Iterable[Path]:
        """List what is no snapshot's (`layerfs.contract.Tidy`)."""
        return self._directories.strangers()

    def close(self) -> None:
        """Do nothing: the driver holds nothing open."""

    def layer_root(self, snapshot: Snapshot) -> LayerRoot:
        """Return the directory of changes (`layerfs.contract.DirectAccess`)."""
        if snapshot.writable:
            self._await_times(snapshot)
        return self._directories.layer_root(snapshot)

    def is_flat(self, snapshot: Snapshot) -> bool:
        """Tell whether no file is redirected (`layerfs.contract.Flattenable`)."""
        return not has_redirects(self._directories.diff(snapshot.id))

    def flatten(self, snapshot: Snapshot) -> int:
        """Make redirected files whole (`layerfs_fuse.redirect.flatten`)."""
        settled(self._work(snapshot.id))
        if self.is_flat(snapshot):
            return 0
        layers = [self._directories.diff(parent) for parent in reversed(snapshot.parents)]
        return flatten_tree(self._directories.diff(snapshot.id), self._work(snapshot.id), layers)

    def volatile_mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """Return the mount without syncs (`layerfs.contract.VolatileMounts`)."""
        (mount,) = self.mounts(snapshot)
        return (mount.with_options("volatile"),) if snapshot.writable else (mount,)

    def settle(self, snapshot: Snapshot) -> None:
        """Sync what a volatile mount wrote."""
        self._directories.sync(snapshot.id)

    def try_out(self) -> None:
        """Mount a union and change what it shows; raise what goes wrong."""

        def mounts(lower: Path, own: Path) -> Sequence[Mount]:
            return (Mount(TYPE, str(own), (*_stack([lower], own), "volatile", *self._words)),)

        self._directories.try_out(mounts)

    def check_index(self, snapshot: Snapshot) -> Damage | None:
        """Hold the index of a snapshot against one built now (`layerfs.contract.KeepsIndex`)."""
        place = self._index(snapshot.id)
        if not place.exists():
            return None  # it is built when somebody needs it
        with ExitStack() as stack:
            layers = [open_layer(self._directories.diff(one), stack) for one in _upwards(snapshot)]
            try:
                kept = stack.enter_context(open_index(place, layers))
                check(kept)
                fresh = stack.enter_context(temporary.room("layerfs-index-")) / "index"
                build(fresh, layers, whiteouts=self._directories.whiteouts, sync=False)
                wrong = difference(kept, stack.enter_context(Index.open(fresh)))
            except Corrupt as error:
                wrong = error.message
        return Damage(snapshot.id, f"its index: {wrong}", "it can be made again: layerfs repair") if wrong else None

    def renew_index(self, snapshot: Snapshot) -> None:
        """Build the index of a snapshot from nothing but its layers (`layerfs.contract.KeepsIndex`)."""
        with ExitStack() as stack:
            layers = [open_layer(self._directories.diff(one), stack) for one in _upwards(snapshot)]
            build(self._index(snapshot.id), layers, whiteouts=self._directories.whiteouts)

    def _await_times(self, snapshot: Snapshot) -> None:
        """Wait until the times of directories are right on disk, unless it is mounted.

        An unmount is over before the process that served it has put the last ones right.
        """
        if not mounting.users(self.mounts(snapshot)):
            settled(self._work(snapshot.id))

    def _finish_files(self, snapshot: Snapshot) -> None:
        """Make the files whole, and keep the union that still shows them from changing what is immutable from now on.

        containerd allows a commit of what is mounted. The process that serves it has written everything when the mount
        is read-only; to make files whole it would have to end.
        """
        points = mounting.users(self.mounts(snapshot)) if snapshot.writable else []
        if not points:
            self.flatten(snapshot)
            return
        for point in points:
            mounting.make_read_only(point.path)
        if not self.is_flat(snapshot):
            raise Busy(f"files of snapshot {snapshot.id} are stored in parts", hint=f"umount {points[0].path} first")

    def _work(self, id: SnapshotId) -> Path:  # noqa: A002  the contract's word
        return self._directories.path(id) / "work"

    def _quota(self, id: SnapshotId) -> Path:  # noqa: A002  the contract's word
        return self._directories.path(id) / "quota"

    def _index(self, id: SnapshotId) -> Path:  # noqa: A002  the contract's word
        return self._directories.path(id) / "index"

    def _build(self, snapshot: Snapshot) -> None:
        """Merge the layers above the nearest snapshot with an index into that one's."""
        chain = (snapshot.id, *snapshot.parents)
        with ExitStack() as stack:
            layers = [open_layer(self._directories.diff(one), stack) for one in reversed(chain)]
            parent = None
            for depth in range(1, len(chain)):
                with suppress(NotFound, Corrupt):
                    parent = stack.enter_context(open_index(self._index(chain[depth]), layers[:-depth]))
                    layers = layers[-depth:]
                    break
            build(self._index(snapshot.id), layers, parent=parent, whiteouts=self._directories.whiteouts, sync=False)


class RedirectingFuseDriver(FuseDriver):
    """The same where the first write to a lower file stores the changed blocks and does not copy the file."""

    traits: ClassVar[Traits] = replace(
        FuseDriver.traits, copy_unit=CopyUnit.BLOCK, write_policy=WritePolicy.REDIRECT_ON_WRITE
    )


def open_driver(root: Path, options: Mapping[str, str]) -> Driver:
    """Open the fuse driver on ``root``; raise `Unsupported` that says why where a union cannot be mounted.

    It is tried once for each root (`layerfs.layerdirs.open_directories`). Options are ``write``, "copy" or "redirect",
    ``server``, "own" or "fusepy", and ``passthrough``, "on" or "off".
    """
    words = _words(options)
    kind = RedirectingFuseDriver if options.get("write") == "redirect" else FuseDriver

    def try_out(directories: LayerDirectories) -> None:
        kind(directories, words).try_out()

    def refusal(problem: LayerfsError) -> Unsupported:
        return Unsupported(f"a union in user space does not work in {root}: {problem}", hint=_hint(problem))

    return kind(open_directories(root, try_out, refusal), words)


def _words(options: Mapping[str, str]) -> Sequence[str]:
    """Return the mount options that the driver's options stand for."""
    words: list[str] = []
    for option, value in options.items():
        if option == "redirect-from":
            words.append(f"redirect_from={value}")
            continue
        values = _OPTIONS.get(option)
        if values is None:
            raise InvalidArgument(
                f"the fuse driver has no option {option!r}", hint=f"it has {' and '.join(sorted(_OPTIONS))}"
            )
        if value not in values:
            raise InvalidArgument(f"{option} is {value!r}", hint=f"give {' or '.join(values)}")
        words += values[value]
    return words


def _upwards(snapshot: Snapshot) -> tuple[SnapshotId, ...]:
    """Return a snapshot and those below it, the lowest first."""
    return (*reversed(snapshot.parents), snapshot.id)


def _stack(lowers: Sequence[Path], own: Path | None) -> tuple[str, ...]:
    """Return the options of the union of ``lowers``, the uppermost first, below the directories in ``own``."""
    options: tuple[str, ...] = ()
    if lowers:
        options += ("lowerdir=" + ":".join(map(escape_path, lowers)),)
    if own is not None:
        options += (f"upperdir={escape_path(own / 'diff')}", f"workdir={escape_path(own / 'work')}")
    else:
        options += ("ro",)
    return (*options, "allow_other") if os.geteuid() == 0 else options


def _hint(problem: LayerfsError) -> str:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        found = os_error("open /dev/fuse", error)
        return "chmod 666 /dev/fuse, as udev does" if isinstance(found, PermissionDenied) else "modprobe fuse"
    return problem.hint or "put the store on ext4, xfs, btrfs or tmpfs, which keep extended attributes"
