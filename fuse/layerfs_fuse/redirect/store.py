"""The redirected files of one upper directory: making, opening and removing them."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Sequence

from layerfs.kernel import syscalls
from layerfs_fuse.redirect import marks
from layerfs_fuse.redirect.file import RedirectedFile
from layerfs_fuse.redirect.format import DIRECTORY, Header, Identity, block_shift

_log = logging.getLogger(__name__)

_IDLE = 32
"""Files that nobody has open and that stay open here, so that what is pending in them can be synced."""
_ID_SIZE = 16
_LONGEST_PATH = 3000
"""Bytes of a path that may fit beside other attributes where a file system gives them one block of 4 KiB."""
_IN_ORDER = frozenset({syscalls.EXT_MAGIC, syscalls.XFS_MAGIC, syscalls.TMPFS_MAGIC})
"""File systems that bring changes of names, inodes and attributes to the disk in order, whichever file is synced."""
_PATH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOWER = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_STAY = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
_MAP = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV})
_OWNER_ACCESS = stat.S_IRUSR | stat.S_IWUSR


class Redirects:
    """The redirected files below one upper directory, each open at most once however many have it open."""

    def __init__(
        self,
        upper: int,
        work: int,
        prefix: bytes,
        layers: Sequence[int],
        *,
        volatile: bool = False,
    ) -> None:
        """Borrow descriptors (O_PATH will do) of the upper and the working directory and of the layers, lowest first.

        ``prefix`` is that of the marks to make.
        """
        self._upper = upper
        self._prefix = prefix
        self._layers = tuple(layers)
        self._volatile = volatile
        self._marked = bool(marks.root_marks(_proc(upper)))
        self._in_order = volatile or syscalls.file_system_magic(_proc(upper)) in _IN_ORDER
        with contextlib.suppress(FileExistsError):
            os.mkdir(DIRECTORY, 0o700, dir_fd=work)
        self._maps = os.open(DIRECTORY, _PATH, dir_fd=work)
        self._files: dict[int, RedirectedFile] = {}
        """Those that are open, by the inode number of the upper file, which no other file can have meanwhile."""
        self._idle: OrderedDict[int, RedirectedFile] = OrderedDict()
        self._known: set[bytes] = set()
        """Ids that this process has checked or made: what is pending there needs no checksum."""

    # -- making --------------------------------------------------------------------------------------------------------

    def begin(self, fd: int, lower: int, layer: int, path: bytes) -> bool:
        """Make an empty file redirected onto a lower one, with its length; False where it had better be copied.

        ``fd`` is open to read and write on a file that has no name in the upper directory yet, ``lower`` to read on the
        file at ``path`` of a layer. Raise ``OSError`` (ENOSPC); the file is then to be thrown away.
        """
        status = os.fstat(lower)
        if not status.st_size or len(path) > _LONGEST_PATH or not stat.S_ISREG(status.st_mode):
            return False
        identity = Identity.of(status)
        number = os.urandom(_ID_SIZE)
        header = Header(block_shift(identity.size), layer, identity, identity.size, number, path)
        map_fd = os.open(header.map_name, _MAP | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._maps)
        try:
            if not self._begin(fd, map_fd, header):
                os.unlink(header.map_name, dir_fd=self._maps)
                os.close(map_fd)
                return False
            self._admit(header, os.dup(lower), os.dup(fd), map_fd, trusted=True)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(header.map_name, dir_fd=self._maps)
            os.close(map_fd)
            raise
        return True

    def _begin(self, fd: int, map_fd: int, header: Header) -> bool:
        if not self._marked:
            marks.mark_root(_proc(self._upper), self._prefix)
            if not self._in_order:
                syscalls.syncfs(map_fd)
            self._marked = True
        os.ftruncate(fd, header.identity.size)
        if not marks.put(fd, self._prefix, header):
            os.ftruncate(fd, 0)
            return False
        if not self._in_order:
            os.fsync(map_fd)
        return True

    def _admit(self, header: Header, lower: int, upper: int, map_fd: int, *, trusted: bool) -> RedirectedFile:
        file = RedirectedFile(
            header, lower, upper, map_fd, prefix=self._prefix, trusted=trusted, volatile=self._volatile
        )
        file.on_release = self._released
        self._files[file.ino] = self._idle[file.ino] = file
        self._known.add(header.id)
        self._close_oldest()
        return file

    # -- opening -------------------------------------------------------------------------------------------------------

    def open(self, fd: int) -> RedirectedFile:
        """Open a redirected file, by a descriptor of any kind, which is not kept; to be given back by its `release`.

        Raise ``OSError``: EIO where its map or the lower file is not there any more, or is another one.
        """
        file = self._files.get(os.fstat(fd).st_ino)
        if file is None:
            header = _header(_proc(fd), follow=True)
            if header is None:
                raise OSError(errno.EIO, "no redirected file")
            file = self._open(fd, header)
        return self._used(file)

    def known(self, ino: int) -> RedirectedFile | None:
        """Do what `open` does, for a file that is open here, by its inode number; None where it is not."""
        file = self._files.get(ino)
        return None if file is None else self._used(file)

    def _used(self, file: RedirectedFile) -> RedirectedFile:
        file.users += 1
        self._idle.pop(file.ino, None)
        return file

    def _open(self, fd: int, header: Header) -> RedirectedFile:
        held: list[int] = []
        try:
            held.append(find_lower(header, self._layers))
            held.append(open_writable(fd))
            held.append(open_map(self._maps, header))
            return self._admit(header, *held, trusted=header.id in self._known)
        except OSError:
            for one in held:
                os.close(one)
            raise

    def _released(self, file: RedirectedFile) -> None:
        """Keep a file that nobody uses any more for a while."""
        if self._files.get(file.ino) is not file:
            file.close()  # discarded meanwhile
            return
        self._idle[file.ino] = file
        self._close_oldest()

    def _close_oldest(self) -> None:
        while len(self._idle) > _IDLE:
            number, file = self._idle.popitem(last=False)
            if file.users:
                continue
            del self._files[number]
            self._finish(file)

    def _finish(self, file: RedirectedFile) -> None:
        """Close a file; what is pending in it is made sure of as long as that is easy."""
        try:
            if file.unsettled:
                file.sync(datasync=True)
            file.seal()
        except OSError:
            # Nobody asked for it, so nobody is to be told; the checksums tell what arrived.
            _log.exception("cannot sync a redirected file")
        finally:
            file.close()

    # -- the end -------------------------------------------------------------------------------------------------------

    def discard(self, fd: int) -> None:
        """Remove the map of a file if that has lost its last name; whoever has it open goes on."""
        status = os.fstat(fd)
        header = None if status.st_nlink else _header(_proc(fd), follow=True)
        if header is None:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(header.map_name, dir_fd=self._maps)
        file = self._files.pop(status.st_ino, None)
        self._idle.pop(status.st_ino, None)
        self._known.discard(header.id)
        if file is not None and not file.users:
            file.close()

    def sync(self) -> None:
        """Make sure of everything that was written; raise the first ``OSError`` after trying all."""
        failure: OSError | None = None
        for file in list(self._files.values()):
            try:
                if file.unsettled:
                    file.sync(datasync=True)
            except OSError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Sync and close everything; files still in use end here."""
        try:
            self.sync()
        finally:
            for file in self._files.values():
                self._finish(file)
            self._files.clear()
            self._idle.clear()
            os.close(self._maps)


def find_lower(header: Header, layers: Sequence[int]) -> int:
    """Open the lower file of a header; raise ``OSError`` (EIO) where no layer has it as it was."""
    order = [*range(len(layers) - 1, -1, -1)]
    if header.layer < len(layers):
        order.remove(header.layer)
        order.insert(0, header.layer)
    for number in order:
        try:
            fd = syscalls.openat2(layers[number], header.path, _LOWER, resolve=_STAY)
        except OSError as error:
            if error.errno in _GONE:
                continue
            raise
        if stat.S_ISREG(os.fstat(fd).st_mode) and header.identity.is_of(fd):
            return fd
        os.close(fd)
    _log.error("no layer has the file %r any more that a redirected file stands on", header.path)
    raise OSError(errno.EIO, "the lower file of a redirected file is gone or was changed", header.path)


def open_map(maps: int, header: Header) -> int:
    """Open the map of a header; raise ``OSError`` (EIO) where it is gone."""
    try:
        return os.open(header.map_name, _MAP, dir_fd=maps)
    except FileNotFoundError as error:
        _log.error("the map %s of a redirected file is gone", header.map_name.decode())
        raise OSError(errno.EIO, "the map of a redirected file is gone", header.map_name) from error


def open_writable(fd: int) -> int:
    """Open the file of a descriptor anew to read and write, also where its mode forbids that to its owner."""
    try:
        return os.open(_proc(fd), os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        # Who may write was decided before it came to us.
        mode = stat.S_IMODE(os.stat(_proc(fd)).st_mode)
        os.chmod(_proc(fd), mode | _OWNER_ACCESS)
        try:
            return os.open(_proc(fd), os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.chmod(_proc(fd), mode)


def _header(path: bytes, *, follow: bool = False) -> Header | None:
    try:
        found = marks.header_of(path, follow=follow)
    except ValueError as error:
        raise OSError(errno.EIO, str(error), path) from error
    return None if found is None else found[1]


def _proc(fd: int) -> bytes:
    """Return a path to an open file, for calls that know no O_PATH descriptors; it is to be followed."""
    return b"/proc/self/fd/%d" % fd
