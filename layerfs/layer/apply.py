"""Apply a layer: make the files of a tar stream below a directory, and prove by digests that it was the right stream.

Rules: OCI image specification, ``layer.md`` ("Applying Changesets", "Whiteouts"). A *whiteout* ``.wh.<name>`` removes a
name of lower layers, ``.wh..wh..opq`` all names of a directory (which makes it *opaque*), wherever in the stream they
stand; neither touches what the same layer brings. Names and link targets are cleaned of ``.`` and ``..`` as text, the
root being its own parent; symbolic links in the way are followed below the root.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from layerfs.contract import LayerRoot, Whiteouts
from layerfs.errors import Corrupt, LayerfsError, Unsupported, os_error
from layerfs.events import Listener, Progress, ignore
from layerfs.layer import attributes, tar
from layerfs.layer.apart import LowerNeeded
from layerfs.layer.below import Below, Mounted, is_whiteout
from layerfs.layer.digest import Digest
from layerfs.layer.directories import Directories, Directory, Purpose
from layerfs.layer.limits import Limits, check
from layerfs.layer.owners import Owners
from layerfs.layer.pipeline import LayerStream, Readable
from layerfs.layer.reader import TarReader
from layerfs.layer.tar import Header, shown
from layerfs.layer.whiteouts import AUFS_PREFIX, OPAQUE_NAME, WHITEOUT_PREFIX, LayerWhiteouts

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LARGEST_MAJOR = (1 << 12) - 1
_LARGEST_MINOR = (1 << 20) - 1

_log = logging.getLogger(__name__)


Lower = Callable[[], Below]
"""Give the lower layers merged."""


class OwnerPolicy(StrEnum):
    """What to do where the kernel refuses an owner, an attribute or a device to an ordinary user."""

    KEEP = "keep"
    """Fail: the tree is exact, or there is none."""
    SQUASH = "squash"
    """Leave the owner as it is, and leave out the attribute or the device; `Applied.squashed` counts them."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of a layer.

    ``digest`` and ``compressed_size`` (bytes) are those of the stream as it was read, ``diff_id`` and ``size`` those of
    the uncompressed tar to its last byte. ``entries`` counts tar headers. ``lists_root`` tells that the layer says what
    its root directory is.
    """

    diff_id: Digest
    digest: Digest
    compressed_size: int
    size: int
    entries: int
    squashed: int = 0
    lists_root: bool = True


def apply(
    stream: Readable,
    root: LayerRoot,
    *,
    lower: Path | Lower | None = None,
    base: bool = False,
    apart: bool = False,
    owner: OwnerPolicy = OwnerPolicy.KEEP,
    owners: Owners | None = None,
    limits: Limits | None = None,
    listener: Listener = ignore,
    item: str = "",
    total: int | None = None,
) -> Applied:
    """Unpack a layer, gzip, zstd or plain, into ``root``; read the stream to its last byte.

    For the overlay styles ``root`` receives this layer only. ``lower`` shows the layers below merged: directories that
    the layer does not list get their attributes from there, symbolic links there are followed, hard links to files
    there copy them up, and whiteouts of nothing are left out. Without it such directories belong to root with mode
    0755, and such hard links fail. It may be a function, which is called if the layer needs it at all. ``base`` tells
    that nothing is below at all, so that whiteouts have no meaning. ``apart`` raises `LowerNeeded` where the result
    would not be that with ``lower``, as far as the layer's root directory is not concerned. ``owners`` translate the
    ids of the layer to those on disk.

    ``listener`` hears of the compressed bytes, ``item`` and ``total`` (bytes) being passed on. Raise `Corrupt` for what
    is no sound layer, `LimitExceeded` for one beyond ``limits``, `Unsupported` for what the root cannot hold, and the
    errors of the operating system; the root then holds part of the layer and should be thrown away.
    """
    limits = limits or Limits()
    try:
        with LayerStream(stream, limits) as source:
            reader = TarReader(_reported(source, listener, item, total), limits)
            lenient = owner is OwnerPolicy.SQUASH
            applier = _apply(reader, root, lower, base=base, apart=apart, lenient=lenient, owners=owners, limits=limits)
            for _ in _reported(source, listener, item, total):
                pass
    except OSError as error:
        raise os_error(f"unpack a layer into {root.path}", error) from error
    return Applied(
        source.diff_id,
        source.digest,
        source.compressed_size,
        source.size,
        reader.entries,
        applier.squashed,
        applier.lists_root,
    )


def _reported(source: LayerStream, listener: Listener, item: str, total: int | None) -> Iterator[bytes]:
    """Pass blocks on, and tell the listener how far it is."""
    for block in source:
        listener(Progress("unpack", item, source.compressed_size, total))
        yield block


def _apply(
    reader: TarReader,
    root: LayerRoot,
    lower: Path | Lower | None,
    *,
    base: bool,
    apart: bool,
    lenient: bool,
    owners: Owners | None,
    limits: Limits,
) -> _Applier:
    """Apply every entry; return who did it, and knows what came of it."""
    tracking = root.whiteouts is Whiteouts.REMOVE and not base and not _is_empty(root.path)
    below = partial(Mounted, lower) if isinstance(lower, Path) else lower
    directories = Directories(root, below, base=base, tracking=tracking, lenient=lenient)
    with closing(directories):
        directories.apart = apart and not base
        if owners is not None:
            directories.owner = owners.root
            if base:
                os.fchown(directories.root.fd, *owners.root)
        applier = _Applier(directories, reader.payload, limits)
        for header in reader if owners is None else owners.unpacked(reader):
            try:
                applier.add(header)
            except OSError as error:
                raise _entry_error(header, error) from error
        directories.finish()
    return applier


def _is_empty(path: Path) -> bool:
    """Tell whether a directory has no entries."""
    with os.scandir(path) as entries:
        return next(entries, None) is None


def _entry_error(header: Header, error: OSError) -> LayerfsError:
    """Say which entry the operating system refused."""
    what = f"unpack the tar entry {shown(header.name)}"
    if error.errno == errno.ENAMETOOLONG:
        return Corrupt(f"cannot {what}: a name or target in it is longer than the file system allows")
    if error.errno == errno.EPERM and header.type in (tar.CHARACTER_DEVICE, tar.BLOCK_DEVICE):
        return os_error(f"{what}, a device", error)
    return os_error(what, OSError(error.errno, error.strerror))


class _Applier:
    """Turn entries into files, one after the other."""

    def __init__(self, directories: Directories, payload: Callable[[], Iterator[memoryview]], limits: Limits) -> None:
        self._directories = directories
        self._payload = payload
        self._limits = limits
        self._overlay = directories.overlay
        self._whiteouts = LayerWhiteouts(directories)
        self._lenient = directories.lenient
        self._last_name: bytes | None = None
        self._last = directories.root
        self._uid = os.geteuid()
        self._gid = os.getegid()
        self._umask = _umask()
        self.squashed = 0
        self.lists_root = False
        self._makers: dict[bytes, Callable[[Header, Directory, bytes], None]] = {
            tar.REGULAR: self._file,
            tar.DIRECTORY: self._directory,
            tar.SYMLINK: self._symlink,
            tar.HARD_LINK: self._hard_link,
            tar.CHARACTER_DEVICE: self._node,
            tar.BLOCK_DEVICE: self._node,
            tar.FIFO: self._node,
        }

    def add(self, header: Header) -> None:
        """Apply one entry."""
        above, _, name = header.name.rpartition(b"/")
        if above != self._last_name or name in (b"", b".", b"..") or name.startswith(WHITEOUT_PREFIX):
            self._add_elsewhere(header)
            return
        self._makers[header.type](header, self._last, name)

    def _add_elsewhere(self, header: Header) -> None:
        """Apply an entry that does not plainly lie in the directory of the one before."""
        parts = self._clean(header.name)
        if not parts:
            self._root(header)
            return
        name = parts.pop()
        if any(part.startswith(AUFS_PREFIX) for part in parts) or (
            name.startswith(AUFS_PREFIX) and name != OPAQUE_NAME
        ):
            return
        if name.startswith(WHITEOUT_PREFIX):
            self._whiteouts.add(parts, name)
            return
        parent = self._directories.find(parts, Purpose.CONTENT)
        if parent is None:
            raise Corrupt(f"the tar entry {shown(header.name)} has no directory to lie in")
        self._directories.mark(parent)
        self._makers[header.type](header, parent, name)
        if header.type is not tar.DIRECTORY and header.type is not tar.SYMLINK:
            self._last_name, self._last = header.name.rpartition(b"/")[0], parent

    def _clean(self, path: bytes) -> list[bytes]:
        """Split a name, without ``.`` and with ``..`` taken as text; it cannot rise above the root."""
        parts: list[bytes] = []
        for part in path.split(b"/"):
            if part == b"..":
                if parts:
                    parts.pop()
            elif part and part != b".":
                parts.append(part)
        if len(parts) > self._limits.depth:
            check(self._limits, "depth", len(parts), f"the depth of {shown(path)}")
        return parts

    # -- entries -------------------------------------------------------------------------------------------------------

    def _root(self, header: Header) -> None:
        """Give the root directory its attributes; another file in its place has no meaning."""
        if header.type == tar.DIRECTORY:
            self._give_attributes(self._directories.root, header)
            self.lists_root = True

    def _file(self, header: Header, parent: Directory, name: bytes) -> None:
        """Make a regular file."""
        mode = header.mode
        try:
            fd = os.open(name, _CREATE, mode & 0o777, dir_fd=parent.fd)
        except FileExistsError:
            self._clear(parent, name)
            fd = os.open(name, _CREATE, mode & 0o777, dir_fd=parent.fd)
        try:
            if header.extents is not None:
                self._fill_sparse(fd, header)
            else:
                for piece in self._payload():
                    _write_all(fd, piece)
            if header.uid != self._uid or header.gid != self._gid or parent.gid != self._gid:
                self._directories.change_owner(lambda: os.fchown(fd, header.uid, header.gid))
            if header.xattrs or not parent.plain:
                self._replace_xattrs(fd, header)
            if mode & (self._umask | 0o7000) or not parent.plain:
                os.fchmod(fd, mode)
            mtime = header.mtime
            os.utime(fd, ns=(mtime if header.atime is None else header.atime, mtime))
        finally:
            os.close(fd)
        self._brought(parent, name)

    def _fill_sparse(self, fd: int, header: Header) -> None:
        """Write the data of a sparse file where it belongs."""
        os.ftruncate(fd, header.real_size)
        pieces = self._payload()
        piece = memoryview(b"")
        for offset, length in header.extents or ():
            position, end = offset, offset + length
            while position < end:
                if not piece:
                    piece = next(pieces)
                part = piece[: end - position]
                os.lseek(fd, position, os.SEEK_SET)
                _write_all(fd, part)
                position += len(part)
                piece = piece[len(part) :]

    def _directory(self, header: Header, parent: Directory, name: bytes) -> None:
        """Make a directory, or give its attributes to the one that is there; replace anything else."""
        self._last_name = None
        directories = self._directories
        hidden = False
        found = directories.child(parent, name)
        if found is None:
            hidden = self._clear(parent, name)
            found = directories.make(parent, name, 0o700)
        directories.mark(found)
        if hidden:
            directories.make_opaque(found)
        self._give_attributes(found, header)

    def _give_attributes(self, directory: Directory, header: Header) -> None:
        """Make attributes and times of a directory those of its entry."""
        xattrs = attributes.to_disk(header.xattrs, self._directories.whiteouts)
        self._directories.set_attributes(directory, header.mode, header.uid, header.gid, xattrs)
        directory.times = (header.mtime if header.atime is None else header.atime, header.mtime)
        directory.touched = True

    def _symlink(self, header: Header, parent: Directory, name: bytes) -> None:
        """Make a symbolic link, wherever it points to."""
        self._last_name = None
        if not header.link:
            raise Corrupt(f"the symbolic link {shown(header.name)} has no target")
        try:
            os.symlink(header.link, name, dir_fd=parent.fd)
        except FileExistsError:
            self._clear(parent, name)
            os.symlink(header.link, name, dir_fd=parent.fd)
        self._finish_by_name(header, parent, name)

    def _node(self, header: Header, parent: Directory, name: bytes) -> None:
        """Make a device or a FIFO."""
        device = self._device(header)
        kind = {tar.CHARACTER_DEVICE: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK}.get(header.type, stat.S_IFIFO)
        self._clear(parent, name)
        try:
            os.mknod(name, kind | 0o600, device, dir_fd=parent.fd)
        except PermissionError:
            if not self._lenient:
                raise
            self.squashed += 1
            _log.warning("left out the device %s, which needs privilege", shown(header.name))
            return
        self._finish_by_name(header, parent, name)

    def _device(self, header: Header) -> int:
        """Return the number of a device; refuse those that Linux has not, and the one that an overlay hides by."""
        if not (0 <= header.major <= _LARGEST_MAJOR and 0 <= header.minor <= _LARGEST_MINOR):
            raise Corrupt(f"the device {shown(header.name)} has a number that is out of range")
        if self._overlay and header.type == tar.CHARACTER_DEVICE and header.major == header.minor == 0:
            raise Unsupported(
                f"the layer has a character device 0/0, {shown(header.name)}, which an overlay takes for a whiteout",
                hint="use the copy or btrfs driver",
            )
        return os.makedev(header.major, header.minor)

    def _finish_by_name(self, header: Header, parent: Directory, name: bytes) -> None:
        """Give owner, extended attributes, mode and times to what cannot be opened."""
        fd = parent.fd
        if header.uid != self._uid or header.gid != self._gid or parent.gid != self._gid:
            self._directories.change_owner(
                lambda: os.chown(name, header.uid, header.gid, dir_fd=fd, follow_symlinks=False)
            )
        if header.xattrs or not parent.plain:
            self._replace_xattrs(attributes.proc_path(fd, name), header)
        if header.type != tar.SYMLINK:
            os.chmod(name, header.mode, dir_fd=fd)
        times = (header.mtime if header.atime is None else header.atime, header.mtime)
        os.utime(name, ns=times, dir_fd=fd, follow_symlinks=False)
        self._brought(parent, name)

    def _replace_xattrs(self, path: int | bytes, header: Header) -> None:
        """Give a new file its extended attributes, and take away those that it inherited."""
        whiteouts = self._directories.whiteouts
        attributes.replace(path, attributes.to_disk(header.xattrs, whiteouts), whiteouts, lenient=self._lenient)

    def _brought(self, parent: Directory, name: bytes) -> None:
        """Remember that this layer brought a file."""
        parent.touched = True
        if parent.names is not None:
            parent.names[name] = None

    # -- hard links ----------------------------------------------------------------------------------------------------

    def _hard_link(self, header: Header, parent: Directory, name: bytes) -> None:
        """Link to a file of this layer or of a lower one; its owner, mode and times are those of the target."""
        target = self._clean(header.link)
        if not target:
            raise Corrupt(f"the hard link {shown(header.name)} has no target")
        directories = self._directories
        directories.pinned = parent
        try:
            where = self._target(header, target)
            self._link(header, where, target[-1], parent, name)
        finally:
            directories.pinned = None
        self._brought(parent, name)

    def _target(self, header: Header, target: list[bytes]) -> Directory:
        """Return the directory of a hard link's target, which is copied up where only lower layers have it."""
        directories = self._directories
        where = directories.find(target[:-1], Purpose.TARGET)
        if where is not None:
            try:
                status = os.stat(target[-1], dir_fd=where.fd, follow_symlinks=False)
            except FileNotFoundError:
                status = None
            if status is not None and not (self._overlay and is_whiteout(status)):
                return where
            if status is None and directories.copy_up(where, target[-1]):
                return where
        if directories.apart:
            raise LowerNeeded(f"the hard link {shown(header.name)}")
        hint = None
        if self._overlay and not directories.knows_lower:
            hint = "its target may be in a lower layer, which was not given: unpack the layers one after the other"
        raise Corrupt(
            f"the hard link {shown(header.name)} has the target {shown(header.link)}, which is not there", hint=hint
        )

    def _link(self, header: Header, where: Directory, target: bytes, parent: Directory, name: bytes) -> None:
        """Make the link, over whatever has its name."""
        source = os.stat(target, dir_fd=where.fd, follow_symlinks=False)
        if stat.S_ISDIR(source.st_mode):
            raise Corrupt(f"the hard link {shown(header.name)} has a directory as its target")
        try:
            there = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            if (there.st_dev, there.st_ino) == (source.st_dev, source.st_ino):
                return
            self._clear(parent, name)
        os.link(target, name, src_dir_fd=where.fd, dst_dir_fd=parent.fd, follow_symlinks=False)

    # -- replacement ---------------------------------------------------------------------------------------------------

    def _clear(self, parent: Directory, name: bytes) -> bool:
        """Make way for a new file; tell whether lower layers had something there that a directory must hide."""
        existed = self._whiteouts.remove(parent, name)
        if existed:
            self._last_name = None
            parent.touched = True
            if parent.names is not None:
                parent.names.pop(name, None)
        return existed and self._overlay


def _write_all(fd: int, data: memoryview) -> None:
    """Write everything; a signal or a full disk may cut a write short."""
    while (written := os.write(fd, data)) < len(data):
        data = data[written:]


def _umask() -> int:
    """Return the file mode creation mask without changing it (proc_pid_status(5)); all bits where that is not told."""
    try:
        with open("/proc/thread-self/status", "rb") as status:
            for line in status:
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o777
