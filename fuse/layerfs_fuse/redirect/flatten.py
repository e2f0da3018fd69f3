"""Make redirected files whole: fill in what shows from below, then take the marks off.

A file is filled in place, where the header hides what is being written: so all its names stay names of one file,
nothing but the missing blocks is written, and a crash or a full disk leaves a redirected file with the same contents.
It can be done again at any time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from layerfs.errors import Corrupt, LayerfsError, os_error
from layerfs.kernel import syscalls
from layerfs.kernel.descent import Descent
from layerfs.kernel.descriptors import opened
from layerfs.layer.attributes import CAPABILITY
from layerfs.layer.tar import shown
from layerfs_fuse.redirect import marks
from layerfs_fuse.redirect.file import RedirectedFile
from layerfs_fuse.redirect.format import DIRECTORY, KEPT, Header, Kept
from layerfs_fuse.redirect.store import find_lower, open_map, open_writable
from layerfs_fuse.union.upper import locked

_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PATH = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def has_redirects(upperdir: Path) -> bool:
    """Tell whether an upper directory may hold redirected files: one look at its root.

    Whoever lets anybody but the union read it calls `flatten_tree` then. Raise what `os_error` makes of a failure.
    """
    try:
        return bool(marks.root_marks(os.fsencode(upperdir)))
    except OSError as error:
        raise os_error(f"look at the upper directory {upperdir}", error) from error


def flatten_tree(upperdir: Path, workdir: Path, layers: Sequence[Path]) -> int:
    """Make all redirected files of an upper directory whole and return how many there were.

    ``layers`` are the lower directories, the lowest first. Nobody may write in any of these directories meanwhile; a
    union is kept out by its lock. It may be interrupted and done again. Raise `Busy` where a union is mounted,
    `NoSpace` and what else `os_error` makes of a failure, and `Corrupt` where a map or a lower file is gone or changed;
    files that were reached before stay whole, the others redirected.
    """
    if not has_redirects(upperdir):
        return 0
    try:
        with ExitStack() as stack:
            os.makedirs(workdir, exist_ok=True)
            stack.enter_context(opened(locked(workdir)))
            root = stack.enter_context(opened(os.open(upperdir, _LIST)))
            held = tuple(stack.enter_context(opened(os.open(layer, _PATH))) for layer in layers)
            maps = _open_maps(stack, workdir)
            count = _Flattening(upperdir, maps, held).run(os.dup(root))
            # A file must be whole on the disk before its map goes.
            syscalls.syncfs(root)
            _remove_maps(maps)
            for prefix in marks.root_marks(root):
                marks.unmark_root(root, prefix)
    except OSError as error:
        raise os_error(f"flatten {upperdir}", error) from error
    return count


def _open_maps(stack: ExitStack, workdir: Path) -> int:
    """Open the directory of the maps; it is made anew where it is gone, and then there are none."""
    place = os.path.join(os.fsencode(workdir), DIRECTORY)
    with contextlib.suppress(FileExistsError):
        os.mkdir(place, 0o700)
    return stack.enter_context(opened(os.open(place, _LIST | os.O_NOFOLLOW)))


def _remove_maps(maps: int) -> None:
    for name in os.listdir(maps):
        os.unlink(name, dir_fd=maps)


class _Flattening:
    """One walk through an upper directory."""

    def __init__(self, upperdir: Path, maps: int, layers: Sequence[int]) -> None:
        self._upperdir = upperdir
        self._maps = maps
        self._layers = layers
        self._count = 0
        self._path: list[bytes] = []

    def run(self, root: int) -> int:
        """Flatten everything below ``root``, which is closed, and return the number of files."""
        with Descent(root) as place:
            pending = [self._files(place.fd)]
            while pending:
                if pending[-1]:
                    name = pending[-1].pop()
                    place.down(name)
                    self._path.append(name)
                    pending.append(self._files(place.fd))
                    continue
                pending.pop()
                if pending:
                    place.up()
                    self._path.pop()
        return self._count

    def _files(self, directory: int) -> list[bytes]:
        """Flatten the files of a directory and return the names of the directories in it."""
        directories: list[bytes] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    directories.append(name)
                elif entry.is_file(follow_symlinks=False):
                    self._file(directory, name)
        return directories

    def _file(self, directory: int, name: bytes) -> None:
        try:
            found = marks.header_of(b"/proc/self/fd/%d/%s" % (directory, name))
            if found is None:
                return
            with opened(os.open(name, _FILE, dir_fd=directory)) as fd:
                flatten(fd, *found, maps=self._maps, layers=self._layers)
        except (OSError, ValueError) as error:
            raise self._explained(name, error) from error
        self._count += 1

    def _explained(self, name: bytes, error: OSError | ValueError) -> LayerfsError:
        what = f"{shown(b'/'.join((*self._path, name)))} of {self._upperdir}"
        if isinstance(error, OSError) and error.errno != errno.EIO:
            return os_error(f"make {what} whole", error)
        return Corrupt(
            f"cannot make {what} whole: {error}",
            hint="it holds changed blocks only: the working directory and the unchanged lower layers belong to it",
        )


def flatten(fd: int, prefix: bytes, header: Header, *, maps: int, layers: Sequence[int]) -> None:
    """Make one file whole, given by a descriptor of any kind; its map stays, for the caller to remove after a sync.

    Nobody may have it open to write. Raise ``OSError``: EIO where its map or lower file is gone, ENOSPC; then it is
    what it was.
    """
    with ExitStack() as stack:
        lower = stack.enter_context(opened(find_lower(header, layers)))
        map_fd = stack.enter_context(opened(open_map(maps, header)))
        upper = stack.enter_context(opened(open_writable(fd)))
        kept = _keep(upper, prefix)
        held = [os.dup(one) for one in (lower, upper, map_fd)]
        file = RedirectedFile(header, *held, prefix=prefix, trusted=False)
        try:
            file.fill()
        finally:
            file.close()
        os.fdatasync(upper)
        _restore(upper, kept)
        marks.clear(upper, prefix)


def _keep(upper: int, prefix: bytes) -> Kept:
    """Note what writing changes, or return what was noted when this was begun before."""
    kept = marks.kept_of(upper, prefix)
    if kept is not None:
        return kept
    status = os.fstat(upper)
    capability = marks.get(upper, CAPABILITY) or b""
    kept = Kept(status.st_atime_ns, status.st_mtime_ns, stat.S_IMODE(status.st_mode), capability)
    try:
        marks.set_mark(upper, prefix + KEPT, kept.pack())
    except OSError as error:
        # Without room for it only a crash right now would change the time of the file.
        if error.errno != errno.ENOSPC:
            raise
    return kept


def _restore(upper: int, kept: Kept) -> None:
    if kept.capability and marks.get(upper, CAPABILITY) != kept.capability:
        os.setxattr(upper, CAPABILITY, kept.capability)
    if stat.S_IMODE(os.fstat(upper).st_mode) != kept.mode:
        os.fchmod(upper, kept.mode)
    os.utime(upper, ns=(kept.atime_ns, kept.mtime_ns))
