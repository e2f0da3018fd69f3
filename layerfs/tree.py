"""Whole directory trees: copy exactly, delete safely, measure, sync.

Everything goes by descriptors and names, never by joined paths, so a tree may be deeper than the longest path, hold
any bytes in its names, and be written to by somebody hostile meanwhile. No walk follows a symbolic link or crosses a
mount.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from layerfs.contract import Usage, id_of
from layerfs.errors import Busy, LayerfsError, os_error
from layerfs.kernel import syscalls
from layerfs.kernel.descent import Descent, open_directory
from layerfs.kernel.treecopy import TreeCopy
from layerfs.kernel.treemeter import Meter

_PRIVATE = 0o700
_TRIES = 100
"""How often to delete a tree in which somebody else still works."""

LOST = "lost+found"
"""What fsck(8) keeps in the root of a file system, and where a store keeps what it does not know."""


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _explained(what, error) from error


def _explained(what: str, error: OSError) -> LayerfsError:
    if error.errno == errno.EXDEV:
        name = os.fsdecode(error.filename or "")
        return Busy(f"cannot {what}: something is mounted at {name!r} inside", hint="unmount it, then try again")
    return os_error(what, error)


def _split(path: Path) -> tuple[int, bytes]:
    """Open the directory that holds ``path`` and return it with the last name."""
    absolute = os.fsencode(os.path.abspath(path))
    return os.open(os.path.dirname(absolute), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), os.path.basename(absolute)


# -- copying -----------------------------------------------------------------------------------------------------------


def copy_tree(
    source: Path,
    destination: Path,
    *,
    squash_owner: bool = False,
    prepare: Callable[[Path], None] | None = None,
) -> None:
    """Copy the directory ``source`` to ``destination``, which must not exist yet, with everything that it has.

    That is: contents (shared by reflink where the file system can, holes kept), hard links among themselves, owners,
    modes, extended attributes with ACLs and file capabilities, times in nanoseconds, devices, FIFOs and sockets.
    ``squash_owner`` leaves out owners that a user namespace does not map. ``prepare`` is called with the destination
    while it is empty. A failure removes what was made. Nothing is
    synced: `sync` does that. Raise `AlreadyExists`, `Busy` for a mount inside, `NoSpace` and other `LayerfsError`s.
    """
    what = f"copy {source} to {destination}"
    with _translated(what):
        os.mkdir(destination, _PRIVATE)
        try:
            if prepare is not None:
                prepare(destination)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            with Descent(os.open(source, flags)) as here, Descent(os.open(destination, flags | os.O_NOFOLLOW)) as there:
                TreeCopy(here, there, squash_owner=squash_owner).run()
        except BaseException:
            remove_tree(destination)
            raise


# -- deleting ----------------------------------------------------------------------------------------------------------


def remove_tree(path: Path) -> None:
    """Delete a directory and everything in it, or a single file; what is gone already is no error.

    What others put in or take away meanwhile is met by another try. Raise `Busy` where something is mounted inside;
    what stands beside the mount may be gone by then.
    """
    with _translated(f"remove {path}"):
        try:
            parent, name = _split(path)
        except FileNotFoundError:
            return
        try:
            _remove_again(parent, name)
        finally:
            os.close(parent)


def _remove_again(parent: int, name: bytes) -> None:
    for _ in range(_TRIES - 1):
        try:
            _remove_at(parent, name)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.ENOENT}:
                raise
        else:
            return
    _remove_at(parent, name)


def _remove_at(parent: int, name: bytes) -> None:
    if not _is_directory(parent, name):
        return
    with Descent(_entered(parent, name)) as walk:
        pending = [_emptied(walk.fd)]
        while pending:
            if pending[-1]:
                if _down(walk, pending[-1][-1]):
                    pending.append(_emptied(walk.fd))
                else:
                    pending[-1].pop()
                continue
            pending.pop()
            if pending:
                walk.up()
                os.rmdir(pending[-1].pop(), dir_fd=walk.fd)
    os.rmdir(name, dir_fd=parent)


def _is_directory(parent: int, name: bytes) -> bool:
    """Unlink what is no directory; tell whether there is a directory, still to be emptied."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return False
    except (IsADirectoryError, PermissionError):  # unlink(2): EISDIR on Linux, EPERM by POSIX
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise
        return True
    return False


def _down(walk: Descent, name: bytes) -> bool:
    """Enter a directory to be emptied; tell whether it was one: what somebody put in its place is unlinked."""
    if not _is_directory(walk.fd, name):
        return False
    _make_accessible(walk.fd, name)
    walk.down(name)
    return True


def _entered(parent: int, name: bytes) -> int:
    _make_accessible(parent, name)
    return open_directory(parent, name)


def _make_accessible(parent: int, name: bytes) -> None:
    """Give the owner all rights on a directory that is about to be deleted; who may not will see that soon enough."""
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if status.st_mode & _PRIVATE == _PRIVATE:
        return
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{fd}", _PRIVATE)
    except PermissionError:
        pass
    finally:
        os.close(fd)


def _emptied(fd: int) -> list[bytes]:
    """Unlink everything in a directory except directories; their names are returned."""
    with os.scandir(fd) as entries:
        names = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    return [name for name, directory in names if directory or _is_directory(fd, name)]


# -- listing -----------------------------------------------------------------------------------------------------------


def strangers(room: Path, own: Collection[str] = ()) -> list[Path]:
    """Return what is in a driver's directory and neither a snapshot's nor among its ``own`` names, sorted."""
    names = sorted(os.listdir(room))
    return [room / name for name in names if id_of(name) is None and name not in own and not name.startswith(LOST)]


# -- measuring ---------------------------------------------------------------------------------------------------------


def usage(path: Path) -> Usage:
    """Measure what a tree takes on disk: allocated bytes and inodes, each inode once, the root's among them.

    What is mounted inside is left out, and so is what vanishes meanwhile. Data that is shared by reflink counts fully.
    """
    with _translated(f"measure {path}"), _opened(path) as walk:
        return Meter(walk, None).total()


def difference_usage(lower: Path, upper: Path) -> Usage:
    """Measure only what ``upper`` holds that ``lower`` does not hold the same.

    The same are entries of one type, mode, owner and modification time, with one size or device number.
    """
    with _translated(f"measure {upper} against {lower}"), _opened(upper) as walk, _opened(lower) as below:
        return Meter(walk, below).total()


def _opened(path: Path) -> Descent:
    return Descent(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


# -- syncing -----------------------------------------------------------------------------------------------------------


def syncfs(path: Path) -> None:
    """Write everything of the file system that holds ``path`` to disk (syncfs(2)); raise what it could not write."""
    with _translated(f"sync the file system of {path}"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(fd)
        finally:
            os.close(fd)


def fsync_dir(path: Path) -> None:
    """Write the names in a directory to disk, so that a file made or renamed there survives a crash (fsync(2))."""
    with _translated(f"sync the directory {path}"):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
