"""A directory per snapshot that holds what it adds to its parents, for drivers that stack such directories.

::

    <root>/<id>/diff      what the snapshot adds to its parents: the upperdir, later a lowerdir
    <root>/<id>/work      the workdir, where a mount needs one
    <root>/.new/<id>      being made; <root>/.removed/<id> being deleted: after a crash `ids` names both
    <root>/xattrs         whether layers say "opaque" in trusted.overlay or in user.overlay

Source of the format: the kernel's Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from stat import S_IMODE, S_ISCHR

from layerfs import projects, tree, trial
from layerfs.contract import LayerRoot, Mount, Snapshot, SnapshotId, Usage, Whiteouts, ids_of
from layerfs.errors import LayerfsError, NoSpace, Unsupported, os_error
from layerfs.kernel import mounting, userns
from layerfs.projects import Projects

_ROOT_MODE, _WORK_MODE = 0o755, 0o711
"""The modes of a root and of a workdir (semantics of containerd's overlay snapshotter)."""
_XATTRS = {Whiteouts.OVERLAY: "trusted", Whiteouts.OVERLAY_USER: "user"}
"""The namespace of extended attributes in which each style is written down."""


class LayerDirectories:
    """Make, measure and delete the directories of snapshots below ``root``."""

    def __init__(self, root: Path, whiteouts: Whiteouts) -> None:
        self.root = root
        self.whiteouts = whiteouts
        self.projects = Projects(root, None)

    def path(self, id: SnapshotId) -> Path:  # noqa: A002  the contract's word
        """Return the directory of a snapshot."""
        return self.root / str(id)

    def diff(self, id: SnapshotId) -> Path:  # noqa: A002  the contract's word
        """Return the directory of a snapshot's own changes."""
        return self.root / str(id) / "diff"

    def layer_root(self, snapshot: Snapshot) -> LayerRoot:
        """Return that directory as the layer engine wants it (`layerfs.contract.DirectAccess`)."""
        return LayerRoot(self.diff(snapshot.id), self.whiteouts)

    def create(self, snapshot: Snapshot, *, work: bool) -> None:
        """Make the directories aside, a workdir among them if wanted, and rename them into place.

        A rename is never on disk before what was done ahead of it, so a power cut leaves all of a snapshot or nothing.
        """
        new = f"{self.root}/.new/{snapshot.id}"  # text, for paths as objects cost as much as the system calls
        try:
            os.mkdir(new, 0o700)
        except FileExistsError:  # left by a crash that also lost the row, and with it the number
            tree.remove_tree(Path(new))
            os.mkdir(new, 0o700)
        try:
            self._fill(new, snapshot, work=work)
            os.rename(new, f"{self.root}/{snapshot.id}")
        except BaseException:
            tree.remove_tree(Path(new))
            raise

    def _fill(self, new: str, snapshot: Snapshot, *, work: bool) -> None:
        diff = f"{new}/diff"
        os.mkdir(diff)
        if snapshot.parent is None:
            os.chmod(diff, _ROOT_MODE)  # mkdir obeys the umask, a container's root does not
        else:
            _copy_attributes(f"{self.root}/{snapshot.parent}/diff", diff)
        if work:
            os.mkdir(f"{new}/work")
            os.chmod(f"{new}/work", _WORK_MODE)
        self.projects.mark(snapshot, diff, *((f"{new}/work",) if work else ()))

    def sync(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Put a snapshot's bytes on disk."""
        tree.syncfs(self.diff(id))

    def usage(self, id: SnapshotId) -> Usage:  # noqa: A002  the contract's word
        """Measure what a snapshot adds to its parents."""
        return tree.usage(self.diff(id))

    def remove(self, id: SnapshotId) -> None:  # noqa: A002  the contract's word
        """Rename the directory away at once, then delete it."""
        trash = self.root / ".removed" / str(id)
        with suppress(FileNotFoundError):
            os.rename(self.path(id), trash)
        tree.remove_tree(trash)
        tree.remove_tree(self.root / ".new" / str(id))

    def ids(self) -> set[SnapshotId]:
        """List the snapshots, and those that a crash left half made or half deleted."""
        places = (self.root, self.root / ".new", self.root / ".removed")
        return ids_of(name for place in places for name in os.listdir(place))

    def strangers(self) -> list[Path]:
        """Return what is in ``root`` or its two rooms and is no snapshot's (`layerfs.contract.Tidy`)."""
        rooms = {
            self.root: {".new", ".removed", "xattrs", projects.RECORD, trial.PLACE},
            self.root / ".new": {"xattrs"},
            self.root / ".removed": set[str](),
        }
        return [path for room, own in rooms.items() for path in tree.strangers(room, own)]

    def try_out(self, mounts: Callable[[Path, Path], Sequence[Mount]]) -> None:
        """Mount what ``mounts`` gives for a lower directory and a snapshot's own, and see changes written down right.

        A change, a deletion and a directory that is replaced must show as copy, whiteout and opaque directory; raise
        what goes wrong.
        """
        with trial.scratch(self.root, _clear) as place:
            lower, merged = place / "lower", place / "merged"
            for directory in (lower, lower / "replaced", place / "diff", place / "work", merged):
                directory.mkdir()
            for name in ("changed", "deleted"):
                (lower / name).touch()
            with mounting.mounted(mounts(lower, place), merged):
                _exercise(merged)
            self._inspect(place / "diff")

    def _inspect(self, upper: Path) -> None:
        deleted = (upper / "deleted").lstat()
        opaque = os.getxattr(upper / "replaced", f"{_XATTRS[self.whiteouts]}.overlay.opaque")
        if not S_ISCHR(deleted.st_mode) or deleted.st_rdev or opaque != b"y":
            raise Unsupported("a deletion is not written down as a character device 0/0 or an opaque directory")


def _clear(place: Path) -> None:
    if os.path.ismount(place / "merged"):
        mounting.unmount(place / "merged")
    tree.remove_tree(place)


def _exercise(merged: Path) -> None:
    (merged / "changed").write_bytes(b"new")
    (merged / "deleted").unlink()
    (merged / "replaced").rmdir()
    (merged / "replaced").mkdir()
    if "deleted" in os.listdir(merged):
        raise Unsupported("a deleted file is listed still: the file system does not tell types in readdir (d_type)")


def open_directories(
    root: Path, try_out: Callable[[LayerDirectories], None], refusal: Callable[[LayerfsError], Unsupported]
) -> LayerDirectories:
    """Open ``root``, and the first time try out there what the driver needs.

    Only the first time: a store must open on a disk that is full, so that somebody can remove from it. What fails in
    ``try_out`` is raised as ``refusal`` words it, and nothing is left of the trial.
    """
    whiteouts = _whiteouts(root / "xattrs")
    # Layers hold setuid programs: no other user of the host may reach them (containerd's CVE-2021-41103).
    for directory in (root, root / ".new", root / ".removed"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directories = LayerDirectories(root, whiteouts)
    if not (root / "xattrs").exists():
        _try(try_out, directories, refusal)
        _record(root, whiteouts)
    return directories


def _try(
    try_out: Callable[[LayerDirectories], None],
    directories: LayerDirectories,
    refusal: Callable[[LayerfsError], Unsupported],
) -> None:
    try:
        try_out(directories)
    except (LayerfsError, OSError) as error:
        problem = os_error("try it out", error) if isinstance(error, OSError) else error
        refused = problem if isinstance(problem, NoSpace) else refusal(problem)
        root = directories.root
        for directory in (root / ".removed", root / ".new", root):
            with suppress(OSError):  # not empty, so it was here before
                directory.rmdir()
        raise refused from error


def own_whiteouts() -> Whiteouts:
    """Return the style whose attributes this user can read and write: trusted.* is for root of the host."""
    privileged = userns.is_initial() and os.geteuid() == 0
    return Whiteouts.OVERLAY if privileged else Whiteouts.OVERLAY_USER


def _whiteouts(record: Path) -> Whiteouts:
    """Return how this store's layers say that a directory is opaque; mixing the two would show deleted files again."""
    own = own_whiteouts()
    try:
        recorded = record.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return own
    if recorded == _XATTRS[Whiteouts.OVERLAY_USER]:
        return Whiteouts.OVERLAY_USER
    if own is not Whiteouts.OVERLAY:
        raise Unsupported(
            f"{record.parent} holds layers made by root, whose trusted.overlay attributes others cannot see",
            hint="run it as root, or make a store of your own with --store",
        )
    return Whiteouts.OVERLAY


def _record(root: Path, whiteouts: Whiteouts) -> None:
    new = root / ".new/xattrs"
    with open(new, "w", encoding="ascii") as file:
        file.write(_XATTRS[whiteouts] + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, root / "xattrs")


def _copy_attributes(source: str, target: str) -> None:
    """Give ``target`` the owner, extended attributes, mode and times of ``source``: the topmost layer's are shown."""
    status = os.stat(source)
    os.chown(target, status.st_uid, status.st_gid)
    for name in os.listxattr(source):
        # overlayfs's own say how the source stands to its lowers; the label is given by the host's policy.
        if not name.startswith(("trusted.overlay.", "user.overlay.", "security.selinux")):
            os.setxattr(target, name, os.getxattr(source, name))
    os.chmod(target, S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
