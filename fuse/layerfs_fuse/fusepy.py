"""The union by way of fusepy, for systems on which only libfuse speaks to the kernel.

fusepy (its module is called ``fuse``) and mfusepy, its maintained successor for libfuse 2 and 3, call methods that take
*paths*; the union takes nodes. So each call walks from the root, which is why our own server is the default (figures:
docs/explanation/decisions.md). Names go through as Latin-1, so that any bytes come out as they went in.
"""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Final

from layerfs.errors import OperationFailed, Unsupported
from layerfs_fuse.attributes import ATTRIBUTES, NODEID, U64
from layerfs_fuse.mounting import SUBTYPE, Attachment
from layerfs_fuse.union import NOW, Caller, Changes, Handle, Union

BINDINGS: Final = ("mfusepy", "fuse")
"""The modules that offer the interface, the better one first."""

Chain = list[int]
"""Nodes from the root on, each in the one before."""

_ENCODING = "latin-1"
_ROOT = 1
_SECOND = 1_000_000_000
_FLAGS = ~(os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_NOFOLLOW | os.O_APPEND)
_ATTRIBUTES: Final[tuple[str, ...]] = (
    "st_ino",
    "st_size",
    "st_blocks",
    "st_mode",
    "st_nlink",
    "st_uid",
    "st_gid",
    "st_rdev",
)


def binding() -> ModuleType:
    """Import a binding; raise `Unsupported` where none works, which they find out when they load libfuse."""
    reasons: list[str] = []
    for name in BINDINGS:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            reasons.append(f"{name}: {error}")
    raise Unsupported(
        f"no FUSE binding for Python: {'; '.join(reasons)}",
        hint="pip install layerfs[fusepy], and libfuse: apt-get install libfuse3-3 (or libfuse2)",
    )


def serve(union: Union, target: Path, attachment: Attachment, *, ready: Callable[[], None] | None = None) -> None:
    """Mount ``union`` at ``target`` and answer until it is unmounted; ``ready`` is called once it is mounted."""
    module = binding()
    os.umask(0)
    kind = PathOperations if module.__name__ == BINDINGS[0] else _CalledByName
    operations = kind(union, module.fuse_get_context, ready)
    options = dict.fromkeys(("default_permissions", "use_ino", "hard_remove", *attachment.flags), True)
    if attachment.allow_other:
        options["allow_other"] = True
    try:
        module.FUSE(
            operations,
            str(target),
            encoding=_ENCODING,
            foreground=True,
            nothreads=True,
            fsname=attachment.source,
            subtype=SUBTYPE,
            **options,
        )
    except RuntimeError as error:
        raise OperationFailed(f"libfuse cannot mount at {target}: {error}", hint="its own words are above") from error
    finally:
        operations.close()


class PathOperations:
    """What fusepy calls, on a union; both ways in which its two versions call it."""

    use_ns = True
    """Tells the binding that times are nanoseconds."""
    flag_nullpath_ok = True
    """Tells that what is open needs no path: a file may have lost its name (``hard_remove``)."""
    flag_nopath = True
    flag_utime_omit_ok = False

    def __init__(
        self, union: Union, context: Callable[[], tuple[int, int, int]], ready: Callable[[], None] | None
    ) -> None:
        self._union = union
        self._context = context
        self._ready = ready
        self._handles: dict[int, Handle] = {}
        self._chains: dict[int, Chain] = {}
        """What is open, files and directories, by number: the nodes from the root to it."""
        self._numbers = count(1)

    def init(self, path: str) -> None:  # noqa: ARG002  the interface's
        """Tell that the mount is there."""
        if self._ready is not None:
            self._ready()

    def close(self) -> None:
        """Close what is still open."""
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()

    # -- names ---------------------------------------------------------------------------------------------------------

    def _reach(self, path: str) -> Chain:
        """Return the nodes from the root to a path, to be left by the caller: who is known has known parents."""
        chain = [_ROOT]
        for name in filter(None, path.encode(_ENCODING).split(b"/")):
            entry = self._union.lookup(chain[-1], name)
            if entry is None:
                self._leave(chain)
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            chain.append(_node_of(entry))
        return chain

    def _leave(self, chain: Chain) -> None:
        """Take the lookups of a chain back, the last one first; those of the root are not counted."""
        for node in reversed(chain[1:]):
            self._union.forget(node, 1)

    @contextmanager
    def _node(self, path: str) -> Iterator[int]:
        """Give the node at a path as long as the block runs."""
        chain = self._reach(path)
        try:
            yield chain[-1]
        finally:
            self._leave(chain)

    @contextmanager
    def _either(self, path: str | None, number: int | None) -> Iterator[int]:
        """Give the node of an open file, or that at a path."""
        if number in self._chains:
            yield self._chains[number][-1]
        elif path is not None:
            with self._node(path) as node:
                yield node
        else:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    @contextmanager
    def _place(self, path: str) -> Iterator[tuple[int, bytes]]:
        """Give the directory that a path lies in, and the last name."""
        parent, _, name = path.rpartition("/")
        with self._node(parent) as node:
            yield node, name.encode(_ENCODING)

    def _caller(self) -> Caller:
        uid, gid, pid = self._context()
        return Caller(uid, gid, pid)  # libfuse has applied the umask

    def _forget(self, entry: bytes | bytearray) -> None:
        self._union.forget(_node_of(entry), 1)

    def mkdir(self, path: str, mode: int) -> int:
        """Make a directory."""
        with self._place(path) as (parent, name):
            self._forget(self._union.make_directory(parent, name, mode, self._caller()))
        return 0

    def mknod(self, path: str, mode: int, dev: int) -> int:
        """Make a file, a FIFO, a socket or a device."""
        with self._place(path) as (parent, name):
            self._forget(self._union.make_node(parent, name, mode, dev, self._caller()))
        return 0

    def symlink(self, target: str, source: str) -> int:
        """Make a symbolic link ``target`` that points to ``source``."""
        with self._place(target) as (parent, name):
            self._forget(self._union.make_symlink(parent, name, source.encode(_ENCODING), self._caller()))
        return 0

    def link(self, target: str, source: str) -> int:
        """Make another name ``target`` of the file ``source``."""
        with self._node(source) as node, self._place(target) as (parent, name):
            self._forget(self._union.link(node, parent, name))
        return 0

    def unlink(self, path: str) -> int:
        """Remove a name; the file stays as long as it is open."""
        with self._place(path) as (parent, name):
            self._union.unlink(parent, name)
        return 0

    def rmdir(self, path: str) -> int:
        """Remove an empty directory."""
        with self._place(path) as (parent, name):
            self._union.remove_directory(parent, name)
        return 0

    def rename(self, old: str, new: str) -> int:
        """Rename."""
        with self._place(old) as (parent, name), self._place(new) as (new_parent, new_name):
            self._union.rename(parent, name, new_parent, new_name)
        return 0

    def opendir(self, path: str) -> int:
        """Open a directory and return its number."""
        return self._keep(self._reach(path))

    def releasedir(self, path: str | None, fh: int) -> int:  # noqa: ARG002  the interface's
        """Close a directory."""
        self._leave(self._chains.pop(fh))
        return 0

    def readdir(self, path: str | None, fh: int) -> list[tuple[str, dict[str, int], int]]:  # noqa: ARG002  as above
        """List a directory: names, what they are, and 0 for "all at once"; an inode number of 0 would hide a name."""
        union, node = self._union, self._chains[fh][-1]
        names = [(b".", node), (b"..", node), *union.names(node)]
        return [(name.decode(_ENCODING), _status(union.attributes(child)), 0) for name, child in names]

    def readlink(self, path: str) -> str:
        """Return where a symbolic link points."""
        with self._node(path) as node:
            return self._union.read_link(node).decode(_ENCODING)

    # -- attributes ----------------------------------------------------------------------------------------------------

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, int]:
        """Return the status of a file, times in nanoseconds."""
        with self._either(path, fh) as node:
            return _status(self._union.attributes(node))

    def chmod(self, path: str, mode: int) -> int:
        """Change the mode."""
        return self._set(path, Changes(mode=mode))

    def chown(self, path: str, uid: int, gid: int) -> int:
        """Change owner and group; -1 leaves one alone."""
        return self._set(path, Changes(uid=_given(uid), gid=_given(gid)))

    def truncate(self, path: str | None, length: int, fh: int | None = None) -> int:
        """Change the size."""
        with self._either(path, fh) as node:
            self._union.set_attributes(node, Changes(size=length))
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        """Change the times of access and modification, in nanoseconds; None is now."""
        atime, mtime = times or (NOW, NOW)
        return self._set(path, Changes(atime_ns=atime, mtime_ns=mtime))

    def _set(self, path: str, changes: Changes) -> int:
        with self._node(path) as node:
            self._union.set_attributes(node, changes)
        return 0

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:  # noqa: ARG002  the interface's
        """Return an extended attribute."""
        with self._node(path) as node:
            return self._union.get_xattr(node, name.encode(_ENCODING))

    def listxattr(self, path: str) -> list[str]:
        """List the names of the extended attributes."""
        with self._node(path) as node:
            return [name.decode(_ENCODING) for name in self._union.list_xattrs(node)]

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:  # noqa: ARG002  the interface's
        """Set an extended attribute."""
        with self._node(path) as node:
            self._union.set_xattr(node, name.encode(_ENCODING), value, options)
        return 0

    def removexattr(self, path: str, name: str) -> int:
        """Remove an extended attribute."""
        with self._node(path) as node:
            self._union.remove_xattr(node, name.encode(_ENCODING))
        return 0

    def statfs(self, path: str) -> dict[str, int]:  # noqa: ARG002  the interface's
        """Return what the file system of the upper directory has left."""
        found = self._union.statfs()
        names = (
            "f_bavail",
            "f_bfree",
            "f_blocks",
            "f_bsize",
            "f_favail",
            "f_ffree",
            "f_files",
            "f_frsize",
            "f_namemax",
        )
        return {name: getattr(found, name) for name in names}

    # -- open files ----------------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int) -> int:
        """Open a file and return its number."""
        chain = self._reach(path)
        try:
            handle = self._union.open(chain[-1], flags & _FLAGS)
        except OSError:
            self._leave(chain)
            raise
        return self._keep(chain, handle)

    def create(self, path: str, mode: int, fi: int | None = None) -> int:  # noqa: ARG002  the interface's
        """Make a file and open it."""
        directory, _, name = path.rpartition("/")
        chain = self._reach(directory)
        try:
            entry, handle = self._union.create(chain[-1], name.encode(_ENCODING), mode, os.O_RDWR, self._caller())
        except OSError:
            self._leave(chain)
            raise
        return self._keep([*chain, _node_of(entry)], handle)

    def _keep(self, chain: Chain, handle: Handle | None = None) -> int:
        """Give what was opened a number."""
        number = next(self._numbers)
        self._chains[number] = chain
        if handle is not None:
            self._handles[number] = handle
        return number

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:  # noqa: ARG002  the interface's
        """Read."""
        return self._handles[fh].read(size, offset)

    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:  # noqa: ARG002  the interface's
        """Write."""
        return self._handles[fh].write(data, offset)

    def fsync(self, path: str | None, datasync: int, fh: int) -> int:  # noqa: ARG002  the interface's
        """Put a file on disk."""
        self._handles[fh].sync(datasync=bool(datasync))
        return 0

    def fsyncdir(self, path: str | None, datasync: int, fh: int) -> int:  # noqa: ARG002  the interface's
        """Put the names in a directory on disk."""
        self._union.sync_directory(self._chains[fh][-1])
        return 0

    def release(self, path: str | None, fh: int) -> int:  # noqa: ARG002  the interface's
        """Close a file."""
        self._handles.pop(fh).close()
        self._leave(self._chains.pop(fh))
        return 0

    def fallocate(self, path: str | None, mode: int, offset: int, size: int, fh: int) -> int:  # noqa: ARG002  the interface's
        """Change the space that a range takes."""
        self._handles[fh].allocate(mode, offset, size)
        return 0


class _CalledByName(PathOperations):
    """What fusepy wants: one call for everything. mfusepy warns of it."""

    def __call__(self, name: str, *arguments: object) -> object:
        method = getattr(self, name, None)
        if method is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return method(*arguments)


def _node_of(entry: bytes | bytearray) -> int:
    return int(U64.unpack_from(entry, NODEID)[0])


def _given(number: int) -> int | None:
    return None if number in (-1, (1 << 32) - 1) else number


def _status(attributes: bytes | bytearray) -> dict[str, int]:
    (ino, size, blocks, *times, mode, nlink, uid, gid, rdev, _, _) = ATTRIBUTES.unpack(attributes)
    status: dict[str, int] = dict(zip(_ATTRIBUTES, (ino, size, blocks, mode, nlink, uid, gid, rdev), strict=True))
    for at, name in enumerate(("st_atime", "st_mtime", "st_ctime")):
        status[name] = times[at] * _SECOND + times[at + 3]
    return status
