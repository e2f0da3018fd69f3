"""The btrfs driver: each snapshot is a subvolume ``<root>/<id>``, a btrfs snapshot of its parent.

A btrfs snapshot is made and deleted in one transaction of the file system, so a crash leaves all of it or nothing.
Writes go to new blocks, whatever the size of the file, and lookups cost the same at every depth.

A subvolume that somebody makes inside a snapshot is not part of a btrfs snapshot of it, which would show an empty
directory in its place; it is turned into a directory before the snapshot becomes a parent.

Source: btrfs-subvolume(8), btrfs-quota(8), and libbtrfsutil's ``btrfsutil.h``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Protocol, cast

from layerfs import locks, tree, trial
from layerfs.contract import (
    NO_QUOTA,
    Candidates,
    CopyUnit,
    Driver,
    LayerRoot,
    Mount,
    Snapshot,
    SnapshotId,
    Traits,
    Usage,
    Whiteouts,
    WritePolicy,
    ids_of,
)
from layerfs.errors import Busy, Corrupt, InvalidArgument, Unsupported
from layerfs.kernel import btrfs_send, qgroups, syscalls, userns

_SUBVOLUME_INODE = 256
"""The inode number of every subvolume's root directory (``BTRFS_FIRST_FREE_OBJECTID``)."""

_FROZEN = ".changes"
"""The directory of the read-only snapshots that live as long as somebody lists what an active one changed."""

_TRIED = ".tried"
"""The mark that this file system was tried out."""

_NO_QGROUP = {errno.ENOTCONN, errno.ENOENT}
_REFUSED = {errno.EPERM, errno.EACCES, errno.EROFS}


class _Library(Protocol):
    """What is used of the module btrfsutil, which has no type annotations of its own."""

    def create_subvolume(self, path: Path) -> None: ...
    def create_snapshot(self, source: Path, path: Path, *, read_only: bool = False) -> None: ...
    def delete_subvolume(self, path: Path) -> None: ...
    def subvolume_id(self, path: Path) -> int: ...
    def get_subvolume_read_only(self, path: Path) -> bool: ...
    def set_subvolume_read_only(self, path: Path, read_only: bool) -> None: ...  # noqa: FBT001  btrfsutil's signature
    def sync(self, path: Path) -> None: ...

    def SubvolumeIterator(  # noqa: N802  btrfsutil's name
        self, path: Path, *, post_order: bool
    ) -> AbstractContextManager[Iterator[tuple[str, int]]]: ...


class BtrfsDriver:
    """Keep every snapshot as the subvolume ``<root>/<id>``."""

    name: ClassVar[str] = "btrfs"
    traits: ClassVar[Traits] = Traits(CopyUnit.BLOCK, WritePolicy.REDIRECT_ON_WRITE, rootless=True)

    def __init__(self, root: Path, library: _Library) -> None:
        self._root = root
        self._library = library

    def create(self, snapshot: Snapshot) -> None:
        """Make a snapshot of the parent, or an empty subvolume."""
        own = self._path(snapshot.id)
        if snapshot.parent is not None:
            parent = self._path(snapshot.parent)
            if not self._library.get_subvolume_read_only(parent):
                self._fold(parent)
            self._library.create_snapshot(parent, own, read_only=not snapshot.writable)
            with ExitStack() as undo:
                undo.callback(self._delete, own)
                self._limit(snapshot)
                undo.pop_all()
            return
        self._library.create_subvolume(own)
        with ExitStack() as undo:
            undo.callback(self._delete, own)
            self._limit(snapshot)
            own.chmod(0o755)  # the mode obeys the umask, a container's root does not
            tree.fsync_dir(own)
            if not snapshot.writable:
                self._library.set_subvolume_read_only(own, True)
            undo.pop_all()

    def mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """Return one bind mount."""
        access = "rw" if snapshot.writable else "ro"
        return (Mount("bind", str(self._path(snapshot.id)), ("rbind", access)),)

    def commit(self, snapshot: Snapshot) -> None:
        """Set the flag that makes the subvolume read-only, then sync what was written before it.

        The flag is one ioctl that takes effect at once for everybody, mounted or not: there is no moment at which the
        bytes exist twice or under no name, as with a read-only snapshot that replaces the original.
        """
        own = self._path(snapshot.id)
        with ExitStack() as undo:
            if not self._library.get_subvolume_read_only(own):
                self._fold(own)
                self._library.set_subvolume_read_only(own, True)
                undo.callback(self._thaw, own)
            if snapshot.quota:  # a btrfs snapshot would inherit the limit
                undo.callback(self.set_quota, snapshot)
                self.set_quota(replace(snapshot, quota=NO_QUOTA))
            self._library.sync(own)
            undo.pop_all()

    def usage(self, snapshot: Snapshot) -> Usage:
        """Count what differs from the parent; where quotas are on, the bytes are the exclusive ones of its qgroup.

        Without quotas a file counts whole when one of its blocks was written.
        """
        own = self._path(snapshot.id)
        if snapshot.parent is None:
            measured = tree.usage(own)
        elif snapshot.writable:
            measured = tree.difference_usage(self._path(snapshot.parent), own)
        else:
            return Usage()
        exclusive = self._exclusive(own)
        return measured if exclusive is None else Usage(exclusive, measured.inodes)

    def set_quota(self, snapshot: Snapshot) -> None:
        """Limit the exclusive bytes of its qgroup (`layerfs.contract.Quotas`): what it shares with others is free.

        So a clone may write as much as its quota says, whatever the size of its image. btrfs cannot limit inodes.
        """
        size, inodes = snapshot.quota.size, snapshot.quota.inodes
        if inodes is not None:
            raise Unsupported("btrfs cannot limit inodes", hint="limit the size only, or use the fuse driver")
        number = self._library.subvolume_id(self._path(snapshot.id))
        try:
            qgroups.limit(self._root, number, size)  # by its own directory that would need room in it
        except OSError as error:
            if error.errno not in _NO_QGROUP | _REFUSED:
                raise
            if size is None:
                return
            if error.errno in _REFUSED:
                raise Unsupported("only root may limit what btrfs writes", hint="use the fuse driver") from error
            raise Unsupported(
                f"quotas are off on the btrfs of {self._root}",
                hint=f"btrfs quota enable {self._root}, or open the store once with --option quotas=on",
            ) from error

    def quota_usage(self, snapshot: Snapshot) -> Usage:
        """Return the exclusive bytes of its qgroup."""
        return Usage(self._exclusive(self._path(snapshot.id)) or 0)

    def remove(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Delete the subvolume, those inside it before, and its qgroup; the space comes back some moments later."""
        own = self._path(id)
        if not own.exists():
            return
        number, nested = self._library.subvolume_id(own), self._nested(own)
        if nested:
            self._thaw(*nested, own)
        for path in (*nested, own):
            self._delete(path)
        with suppress(OSError):  # there is none, or the kernel deletes it itself after its cleaner (`qgroups.remove`)
            qgroups.remove(self._root, number)

    def ids(self) -> Iterable[SnapshotId]:
        """List the subvolumes; none of them is ever partial."""
        return ids_of(os.listdir(self._root))

    def strangers(self) -> Iterable[Path]:
        """List what is no snapshot's (`layerfs.contract.Tidy`)."""
        return tree.strangers(self._root, {_FROZEN, _TRIED, trial.PLACE})

    def close(self) -> None:
        """Do nothing: the driver holds nothing open."""

    def layer_root(self, snapshot: Snapshot) -> LayerRoot:
        """Return the subvolume, which is a whole tree (`layerfs.contract.DirectAccess`)."""
        return LayerRoot(self._path(snapshot.id), Whiteouts.REMOVE)

    def changed_paths(self, snapshot: Snapshot, base: SnapshotId) -> Candidates:
        """Ask `btrfs send` what differs (`layerfs.contract.NativeChanges`); raise `Unsupported` where it may not."""
        own = self._path(snapshot.id)
        if os.geteuid() != 0 or not userns.is_initial():
            raise Unsupported("btrfs tells only root what changed", hint="run it as root")
        try:
            with self._frozen(own) as frozen:
                found = btrfs_send.candidates(frozen, self._library.subvolume_id(self._path(base)))
        except (OSError, Corrupt) as error:
            raise Unsupported(f"btrfs does not tell what changed in {own}: {error}", hint="run it as root") from error
        # A subvolume that somebody made inside is no part of the stream.
        nested = frozenset(os.fsencode(path.relative_to(own)) for path in self._nested(own))
        return Candidates(found.paths, found.trees | nested)

    def sweep(self) -> None:
        """Delete the read-only snapshots that killed processes left, unless somebody works with one."""
        place = self._root / _FROZEN
        if not place.exists() or os.listdir(place) == ["lock"]:
            return
        with suppress(Busy), self._freezing(exclusive=True):
            for path in place.iterdir():
                if path.name != "lock":
                    self._delete(path)

    def try_out(self) -> None:
        """Make a subvolume and a read-only snapshot of it, and delete both; raise what goes wrong."""
        with trial.scratch(self._root, self._clear) as place:
            origin, snapshot = place / "origin", place / "snapshot"
            self._library.create_subvolume(origin)
            self._library.create_snapshot(origin, snapshot, read_only=True)

    def _path(self, id: SnapshotId) -> Path:  # noqa: A002  the contract's word
        return self._root / str(id)

    @contextmanager
    def _frozen(self, own: Path) -> Iterator[int]:
        """Give a descriptor of a subvolume that is read-only, or of a read-only snapshot of it for the time being."""
        with ExitStack() as stack:
            if not self._library.get_subvolume_read_only(own):
                place = self._root / _FROZEN
                place.mkdir(mode=0o700, exist_ok=True)
                stack.enter_context(self._freezing(exclusive=False))
                taken = place / os.urandom(8).hex()
                self._library.create_snapshot(own, taken, read_only=True)
                stack.callback(self._delete, taken)
                own = taken
            descriptor = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            yield descriptor

    def _freezing(self, *, exclusive: bool) -> AbstractContextManager[None]:
        """Hold the right to have, or to sweep, read-only snapshots of active ones."""
        place, timeout = locks.named("changes"), 0 if exclusive else None
        return locks.locked(
            self._root / _FROZEN / "lock", place, exclusive=exclusive, what="the list of changes", timeout=timeout
        )

    def _limit(self, snapshot: Snapshot) -> None:
        if snapshot.quota:
            self.set_quota(snapshot)

    def _nested(self, own: Path) -> list[Path]:
        """List the subvolumes inside one, those deepest down first."""
        try:
            with self._library.SubvolumeIterator(own, post_order=True) as found:
                return [own / path for path, _ in found]
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
        # The root of a user namespace may not search the trees, and the library takes it for the real one.
        directories = [directory for directory, *_ in os.walk(own, topdown=False) if directory != str(own)]
        return [Path(directory) for directory in directories if os.lstat(directory).st_ino == _SUBVOLUME_INODE]

    def _fold(self, own: Path) -> None:
        """Turn the subvolumes inside one into directories, by reflink; a crash at any moment loses nothing."""
        found = self._nested(own)
        self._thaw(*found)
        for nested in found:
            above = nested.parent.stat()
            aside = nested.with_name(f".layerfs-folded-{self._library.subvolume_id(nested)}")
            if nested != aside:  # it is, if a crash came after the exchange: the directory stands in its place then
                tree.remove_tree(aside)
                tree.copy_tree(nested, aside)
                syscalls.rename_exchange(syscalls.AT_FDCWD, os.fsencode(nested), syscalls.AT_FDCWD, os.fsencode(aside))
            self._delete(aside)
            os.utime(nested.parent, ns=(above.st_atime_ns, above.st_mtime_ns))

    def _thaw(self, *subvolumes: Path) -> None:
        for path in subvolumes:
            if self._library.get_subvolume_read_only(path):
                self._library.set_subvolume_read_only(path, False)

    def _exclusive(self, own: Path) -> int | None:
        number = self._library.subvolume_id(own)
        if qgroups.exclusive(own, number) is None:
            return None
        self._library.sync(own)  # the counts are those of the last transaction
        return qgroups.exclusive(own, number)

    def _delete(self, path: Path) -> None:
        try:
            self._library.delete_subvolume(path)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            # Without the mount option user_subvol_rm_allowed an ordinary user may delete an empty subvolume only, and
            # with it one that is not read-only.
            self._library.set_subvolume_read_only(path, False)
            tree.remove_tree(path)

    def _clear(self, place: Path) -> None:
        for path in (place / "snapshot", place / "origin"):
            if path.exists():
                self._delete(path)
        with suppress(FileNotFoundError):
            place.rmdir()


def open_driver(root: Path, options: Mapping[str, str]) -> Driver:
    """Open the btrfs driver on ``root``; raise `Unsupported` where that is not on btrfs or the library is missing.

    The option ``quotas=on`` turns quotas on for the whole file system, where counting costs every write something.
    """
    for option in options.keys() - {"quotas"}:
        raise InvalidArgument(f"the btrfs driver has no option {option!r}", hint="it has quotas")
    if options.get("quotas", "on") != "on":
        raise InvalidArgument(f"quotas is {options['quotas']!r}", hint="quotas=on, or `btrfs quota disable`")
    existing = next(path for path in (root, *root.absolute().parents) if path.exists())
    if syscalls.file_system_magic(os.fsencode(existing)) != syscalls.BTRFS_MAGIC:
        raise Unsupported(
            f"{root} is not on btrfs",
            hint="`layerfs store create --loop 10G --fs btrfs` makes a store in a file of its own; or use overlay2",
        )
    driver = BtrfsDriver(root, _load())
    # Layers hold setuid programs: no other user of the host may reach them (containerd's CVE-2021-41103).
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    tried = root / _TRIED
    if not tried.exists():  # once: what works is the file system's, and each try costs it four transactions
        try:
            driver.try_out()
        except OSError as error:
            raise Unsupported(
                f"subvolumes do not work in {root}: {error}", hint="run it as root, or as the owner of the directory"
            ) from error
        tried.touch()
    if "quotas" in options:
        qgroups.enable(root)
    driver.sweep()
    return driver


def _load() -> _Library:
    try:
        return cast("_Library", import_module("btrfsutil"))
    except ImportError as error:
        raise Unsupported(
            f"the module btrfsutil cannot be loaded: {error}",
            hint="pip install 'layerfs[btrfs]', with libbtrfsutil-dev installed; where that is older than 1.4,"
            " 'btrfsutil<6.14'",
        ) from error
