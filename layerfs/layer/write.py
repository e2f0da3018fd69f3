"""Write a layer: the tar stream of a list of changes, the same bytes each time for the same files.

Entries are sorted by path, deletions before their siblings (OCI image specification, ``layer.md``, "Whiteouts"), and
the directories above a change come along, so that the layer says everything about itself. So do all names of a file
with several links if one of them changed: the layer restores it whole wherever it is applied. Times are kept in
nanoseconds; user and group names, access times and sockets are left out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from layerfs.contract import LayerRoot
from layerfs.errors import FailedPrecondition, Unsupported, os_error
from layerfs.events import Listener, Report, ignore
from layerfs.kernel import syscalls
from layerfs.layer import attributes, tar
from layerfs.layer.changes import ROOT, Change, ChangeKind
from layerfs.layer.compression import Compression
from layerfs.layer.digest import Digest
from layerfs.layer.links import Inode, linked_names
from layerfs.layer.output import LayerOutput, Writable
from layerfs.layer.owners import Owners
from layerfs.layer.pack import pack
from layerfs.layer.tar import Header, shown

_WHITEOUT = b".wh."
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_STAY = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
_PIECE = 1 << 20
_MOST_OPEN = 64
"""Directories kept open on the way to an entry."""
_TYPES = {
    stat.S_IFREG: tar.REGULAR,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFCHR: tar.CHARACTER_DEVICE,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
    stat.S_IFIFO: tar.FIFO,
}


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: ``digest`` and ``size`` (bytes) of the stream, ``diff_id`` and ``diff_size`` of the plain tar.

    ``entries`` counts files, directories and whiteouts.
    """

    diff_id: Digest
    digest: Digest
    size: int
    diff_size: int
    entries: int


def write_layer(
    changes: Iterable[Change],
    root: LayerRoot,
    out: Writable,
    *,
    compression: Compression = Compression.ZSTD,
    level: int | None = None,
    owners: Owners | None = None,
    listener: Listener = ignore,
    item: str = "",
) -> Written:
    """Write the layer of ``changes`` to ``out``, taking added and modified files from ``root``.

    ``root`` is the changed tree, or the overlay's upper directory that holds what changed. ``level`` is that of
    `layerfs.layer.compression.compressor`. ``owners`` translate the ids on disk to those of the layer. The listener
    hears of file contents, in bytes. Raise `Unsupported` for a name that a layer cannot have, `FailedPrecondition` for
    a tree that changes meanwhile, and for an owner that cannot be translated.
    """
    listed = {change.path: change for change in changes}
    total = sum(change.size for change in listed.values() if change.kind is not ChangeKind.DELETED)
    report = Report(listener, "diff", item, total)
    with LayerOutput(out, compression, level) as output:
        try:
            with _Writer(root, output, report, owners) as writer:
                writer.run(listed)
        except OSError as error:
            raise _explained(root, error) from error
        output.finish()
    report.finish()
    return Written(output.diff_id, output.digest, output.size, output.diff_size, writer.entries)


def _explained(root: LayerRoot, error: OSError) -> Exception:
    """Tell a tree that changed meanwhile from a failing disk."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return FailedPrecondition(
            f"{root.path} changed while its layer was written: {error.strerror} ({error.filename!r})",
            hint="stop what works in it, then try again",
        )
    return os_error(f"write a layer of {root.path}", error)


def _order(path: bytes, *, deleted: bool) -> bytes:
    """Return a key that sorts component by component, and deletions before their siblings."""
    if path == ROOT:
        return b""
    above, _, name = path.rpartition(b"/")
    front = b"\x02" + above.replace(b"/", b"\0\x02") + b"\0" if above else b""
    return front + (b"\x01" if deleted else b"\x02") + name


class _Writer:
    """Write entries, one after the other, in their order."""

    def __init__(self, root: LayerRoot, output: LayerOutput, report: Report, owners: Owners | None) -> None:
        self._whiteouts = root.whiteouts
        self._output = output
        self._report = report
        self._owners = owners
        self._root = os.open(root.path, _DIRECTORY)
        self._here = self._root
        self._way = [(b"", self._root)]
        self._links: dict[Inode, tuple[bytes, int]] = {}
        self.entries = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _path, fd in self._way:
            os.close(fd)

    def run(self, listed: dict[bytes, Change]) -> None:
        """Write everything, then the names that the links written need to be whole."""
        deleted = {path for path, change in listed.items() if change.kind is ChangeKind.DELETED}
        wanted = _with_parents(listed)
        if broken := next((path for path in deleted if any(above in deleted for above in _above(path))), None):
            raise FailedPrecondition(f"{shown(broken)} is deleted together with its directory, and listed twice")
        for path in sorted(wanted, key=lambda path: _order(path, deleted=path in deleted)):
            if path in deleted:
                self._delete(path)
            else:
                self._add(path)
        for path in self._unlisted_names(wanted):
            for part in (*_above(path), path):
                if part not in wanted:
                    wanted.add(part)
                    self._add(part)

    # -- entries -------------------------------------------------------------------------------------------------------

    def _delete(self, path: bytes) -> None:
        """Write a whiteout."""
        above, slash, name = path.rpartition(b"/")
        self._emit(_plain_header(above + slash + _WHITEOUT + _sound(name, path)))

    def _add(self, path: bytes) -> None:
        """Write a file with its contents, or a link to one that is written already."""
        if path == ROOT:
            self._write_by_name(b".", b".", os.fstat(self._root), self._root)
            return
        above, _, name = path.rpartition(b"/")
        self._go_to(above)
        status = os.stat(_sound(name, path), dir_fd=self._here, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            inode = (status.st_dev, status.st_ino)
            first, names = self._links.get(inode, (path, status.st_nlink))
            self._links[inode] = (first, names - 1)
            if first != path:
                self._emit_file(_header(path, status, {}, kind=tar.HARD_LINK, link=first))
                return
        if stat.S_ISREG(status.st_mode):
            self._write_regular(path, name)
        elif not stat.S_ISSOCK(status.st_mode):
            self._write_by_name(path, name, status, self._here)

    def _write_regular(self, path: bytes, name: bytes) -> None:
        """Write a regular file as it is when it is opened."""
        fd = os.open(name, _READ, dir_fd=self._here)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(2, "the file was replaced by another", path)
            xattrs = attributes.from_disk(attributes.read(fd), self._whiteouts)
            self._emit_file(_header(path, status, xattrs))
            self._copy(fd, path, status.st_size)
        finally:
            os.close(fd)

    def _copy(self, fd: int, path: bytes, size: int) -> None:
        """Write exactly ``size`` bytes of a file, and the padding."""
        left = size
        while left:
            piece = os.read(fd, min(_PIECE, left))
            if not piece:
                raise FileNotFoundError(2, "the file became shorter", path)
            left -= len(piece)
            self._output.write(piece)
        self._output.write(bytes(-size % tar.BLOCK_SIZE))
        if size:
            self._report.add(size)

    def _write_by_name(self, path: bytes, name: bytes, status: os.stat_result, directory: int) -> None:
        """Write an entry that has no contents."""
        xattrs = attributes.from_disk(attributes.read(attributes.proc_path(directory, name)), self._whiteouts)
        link = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else b""
        self._emit_file(_header(path, status, xattrs, link=link))

    def _emit_file(self, header: Header) -> None:
        """Write the header of what is on disk, with the owners of a layer."""
        self._emit(header if self._owners is None else self._owners.packed(header))

    def _emit(self, header: Header) -> None:
        self.entries += 1
        self._output.write(pack(header))

    def _go_to(self, path: bytes) -> None:
        """Open the directory that holds the next entries, from the nearest one above it that is open.

        Those on the way stay open, as entries of theirs may follow: opening them anew took a tenth of the time.
        """
        above, fd = self._way[-1]
        while path != above and above and not path.startswith(above + b"/"):
            self._way.pop()
            os.close(fd)
            above, fd = self._way[-1]
        if path != above:
            below = path[len(above) + 1 :] if above else path
            fd = syscalls.openat2(fd, below, _DIRECTORY, resolve=_STAY)
            self._way.append((path, fd))
            if len(self._way) > _MOST_OPEN:
                os.close(self._way.pop(1)[1])  # the uppermost but the root
        self._here = fd

    # -- links ---------------------------------------------------------------------------------------------------------

    def _unlisted_names(self, listed: set[bytes]) -> list[bytes]:
        """Find the unchanged names of files of which other names are in the layer."""
        missing = {inode for inode, (_, left) in self._links.items() if left > 0}
        if not missing:
            return []
        found = [
            path
            for path, inode in linked_names(os.open(b".", _DIRECTORY, dir_fd=self._root))
            if inode in missing and path not in listed
        ]
        return sorted(found, key=lambda path: _order(path, deleted=False))


def _with_parents(paths: Iterable[bytes]) -> set[bytes]:
    """Return the paths and all directories above them, without the root."""
    found = set(paths)
    for path in list(found):
        above = path.rpartition(b"/")[0]
        while above and above not in found:
            found.add(above)
            above = above.rpartition(b"/")[0]
    return found


def _above(path: bytes) -> list[bytes]:
    """Return the directories above a path, the outermost first and without the root."""
    parts = path.split(b"/")
    return [b"/".join(parts[:end]) for end in range(1, len(parts))]


def _sound(name: bytes, path: bytes) -> bytes:
    """Refuse a name that would be a whiteout in the layer."""
    if name.startswith(_WHITEOUT):
        raise Unsupported(
            f"{shown(path)} cannot be in a layer: names that start with {_WHITEOUT.decode()!r} mean deletions there",
            hint="rename or remove it",
        )
    return name


def _plain_header(name: bytes) -> Header:
    """Return the header of an empty file, without anything that could differ."""
    return Header(name, tar.REGULAR, 0, 0, 0, 0, 0, b"", 0, 0, 0)


def _header(
    path: bytes, status: os.stat_result, xattrs: dict[bytes, bytes], *, kind: bytes | None = None, link: bytes = b""
) -> Header:
    """Return the header of a file."""
    kind = kind or _TYPES[stat.S_IFMT(status.st_mode)]
    is_device = kind in (tar.CHARACTER_DEVICE, tar.BLOCK_DEVICE)
    size = status.st_size if kind == tar.REGULAR else 0
    return Header(
        path + b"/" if kind == tar.DIRECTORY else path,
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        size,
        status.st_mtime_ns,
        link,
        os.major(status.st_rdev) if is_device else 0,
        os.minor(status.st_rdev) if is_device else 0,
        size,
        xattrs=xattrs,
    )
