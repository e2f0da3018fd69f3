"""Turn the entries of a layer into files below its root, each in a directory that is held by a descriptor.

Owner, extended attributes, mode and times are given in this order, as each may undo the next; the times of directories
come last of all.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterable

from layerfs.errors import Corrupt, Unsupported
from layerfs.layer import attributes, tar
from layerfs.layer.apart import LowerNeeded
from layerfs.layer.below import is_whiteout
from layerfs.layer.directories import Directories, Purpose
from layerfs.layer.limits import Limits, check
from layerfs.layer.opened import Directory
from layerfs.layer.tar import Header, shown
from layerfs.layer.whiteouts import AUFS_PREFIX, OPAQUE_NAME, WHITEOUT_PREFIX, LayerWhiteouts

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_NAMES = frozenset({b"", b".", b".."})
_LARGEST_MAJOR = (1 << 12) - 1
_LARGEST_MINOR = (1 << 20) - 1

Fill = Callable[[int, Header, Iterable[memoryview]], None]
"""Give an open, empty file its length, and what it wants of the data, which come in pieces."""

_log = logging.getLogger(__name__)


class Entries:
    """Turn entries into files, one after the other; ``filler`` fills files in its own way."""

    def __init__(
        self,
        directories: Directories,
        payload: Callable[[], Iterable[memoryview]],
        limits: Limits,
        filler: Fill | None = None,
    ) -> None:
        self._directories = directories
        self._payload = payload
        self._limits = limits
        self._filler = filler
        self._overlay = directories.overlay
        self._whiteouts = LayerWhiteouts(directories)
        self._lenient = directories.lenient
        self._last_name: bytes | None = None
        self._last = directories.root
        self._uid, self._gid, self._umask = directories.uid, directories.gid, directories.umask
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
        path = header.name
        if path.startswith(b"./"):
            path = path[2:]
        if header.type == tar.DIRECTORY and path.endswith(b"/"):
            path = path[:-1]
        above, _, name = path.rpartition(b"/")
        if name in _NO_NAMES or name.startswith(WHITEOUT_PREFIX):
            self._add_elsewhere(header, None)
        elif (above == self._last_name and self._last.fd >= 0) or self._enter(above):
            self._makers[header.type](header, self._last, name)
        else:
            self._add_elsewhere(header, above)

    def _enter(self, path: bytes) -> bool:
        """Go to a directory that is open already; False where the way to it has to be looked for."""
        found = self._directories.known(path)
        if found is None or AUFS_PREFIX in path or path.count(b"/") + 2 > self._limits.depth:
            return False
        self._directories.mark(found)
        self._last_name, self._last = path, found
        return True

    def _add_elsewhere(self, header: Header, above: bytes | None) -> None:
        """Apply an entry of which the way, ``above``, is not known, or which has no plain name."""
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
        self._last_name, self._last = above, parent
        self._makers[header.type](header, parent, name)

    def _turn(self) -> None:
        """Forget the way to the last directory if it leads through links: what is made now may lead it elsewhere."""
        if self._last_name != self._last.path[1:]:
            self._last_name = None

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
            if self._filler is not None:
                self._filler(fd, header, self._payload())
            elif header.extents is not None:
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
        pieces = iter(self._payload())
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
        self._turn()
        directories = self._directories
        found = directories.opened(parent, name)
        if found is None:
            try:
                self._make_directory(header, parent, name)
            except FileExistsError:
                found = directories.child(parent, name)
            else:
                return
        if found is not None:
            directories.mark(found)
            self._give_attributes(found, header)
            return
        hidden = self._clear(parent, name)
        made = self._make_directory(header, parent, name)
        if hidden:
            directories.make_opaque(made)

    def _make_directory(self, header: Header, parent: Directory, name: bytes) -> Directory:
        """Make a directory with its attributes and times."""
        xattrs = attributes.to_disk(header.xattrs, self._directories.whiteouts)
        made = self._directories.make(parent, name, header.mode, (header.uid, header.gid), xattrs)
        made.times = (header.mtime if header.atime is None else header.atime, header.mtime)
        self._directories.mark(made)
        return made

    def _give_attributes(self, directory: Directory, header: Header) -> None:
        """Make attributes and times of a directory those of its entry."""
        xattrs = attributes.to_disk(header.xattrs, self._directories.whiteouts)
        self._directories.set_attributes(directory, header.mode, header.uid, header.gid, xattrs)
        directory.times = (header.mtime if header.atime is None else header.atime, header.mtime)
        directory.touched = True

    def _symlink(self, header: Header, parent: Directory, name: bytes) -> None:
        """Make a symbolic link, wherever it points to."""
        self._turn()
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
        directories.open.pinned = parent
        try:
            where = self._target(header, target)
            self._link(header, where, target[-1], parent, name)
        finally:
            directories.open.pinned = None
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
