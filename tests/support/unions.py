"""A union to test without a kernel in between: a stack of layers, a client that walks paths, and what is seen."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from layerfs.layerdirs import own_whiteouts
from layerfs_fuse.attributes import ATTRIBUTES, DIRENT, ENTRY_SIZE, U64
from layerfs_fuse.index.builder import build
from layerfs_fuse.index.reader import Index
from layerfs_fuse.union import Caller, Handle, Options, Union, Upper
from layerfs_fuse.union.counted import CountedUnion, CountedUpper


@dataclass(frozen=True, slots=True)
class Seen:
    """What anybody sees of a file; of a directory no size. ``times`` are those of the data."""

    mode: int
    nlink: int
    uid: int
    gid: int
    mtime: int
    ino: int
    rdev: int = 0
    size: int = 0
    content: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()

    def without_ino(self) -> Seen:
        """Return the same without the number of the inode."""
        return replace(self, ino=0)


class Stack:
    """Layers in directories below ``place``, the lowest first, with their index and an upper directory."""

    def __init__(
        self, place: Path, layers: Sequence[Path], *, options: Options | None = None, quota: Path | None = None
    ) -> None:
        self.place = place
        self.paths = tuple(layers)
        self.upper_path, self.work_path = place / "upper", place / "work"
        for path in (self.upper_path, self.work_path):
            path.mkdir(exist_ok=True)
        self.options = options
        self.quota = quota
        self.fds = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in layers]
        build(place / "index", self.fds, whiteouts=own_whiteouts(), sync=False)
        self.index = Index.open(place / "index")
        self._open()

    def _open(self) -> None:
        kind = Upper if self.quota is None else CountedUpper
        self.upper = kind.open(self.upper_path, self.work_path, marks=own_whiteouts())
        if isinstance(self.upper, CountedUpper) and self.quota is not None:
            how = self.options or Options()
            self.union: Union = CountedUnion(self.index, self.fds, self.upper, how, quota=self.quota)
        else:
            self.union = Union(self.index, self.fds, self.upper, self.options)

    def remount(self) -> None:
        """Close the union and open another one on the same directories."""
        self.union.close()
        self.upper.close()
        self._open()

    def close(self) -> None:
        """Close everything."""
        self.union.close()
        self.upper.close()
        self.index.close()
        for fd in self.fds:
            os.close(fd)


@contextmanager
def stacked(place: Path, layers: Sequence[Path], *, options: Options | None = None) -> Iterator[Stack]:
    """Open a stack for the time of the block."""
    stack = Stack(place, layers, options=options)
    before = os.umask(0)
    try:
        yield stack
    finally:
        os.umask(before)
        stack.close()


@dataclass
class Client:
    """Call a union by paths without symbolic links in the way, and remember what was looked up, as a kernel does."""

    stack: Stack
    caller: Caller = field(default_factory=lambda: Caller(os.geteuid(), os.getegid(), 1, 0o022))
    lookups: Counter[int] = field(default_factory=Counter)

    @property
    def union(self) -> Union:
        """Return the union of now."""
        return self.stack.union

    def count(self, entry: bytes | bytearray) -> int:
        """Return the node of an entry, and remember the lookup."""
        node = int(U64.unpack_from(entry)[0])
        self.lookups[node] += 1
        return node

    def node(self, path: bytes) -> int:
        """Walk to a path; raise ``OSError``."""
        node = 1
        for name in path.split(b"/") if path else ():
            if node != 1 and not stat.S_ISDIR(self.fields(node)[9]):
                raise NotADirectoryError(errno.ENOTDIR, "not a directory")
            entry = self.union.lookup(node, name)
            if entry is None:
                raise FileNotFoundError(errno.ENOENT, "not there", path)
            node = self.count(entry)
        return node

    def at(self, path: bytes) -> tuple[int, bytes]:
        """Walk to the directory of a path and return it with the last name."""
        above, _, name = path.rpartition(b"/")
        node = self.node(above)
        if not stat.S_ISDIR(self.fields(node)[9]):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        return node, name

    def fields(self, node: int) -> tuple[int, ...]:
        """Return the attributes of a node as numbers."""
        return ATTRIBUTES.unpack(self.union.attributes(node))

    def forget(self, keep: Callable[[int], bool] = lambda _: False) -> None:
        """Forget everything but what is to be kept."""
        for node, count in sorted(self.lookups.items(), reverse=True):
            if not keep(node):
                self.union.forget(node, count)
                del self.lookups[node]

    def create(self, path: bytes, mode: int = 0o644, content: bytes = b"") -> int:
        """Make a file and return its node."""
        entry, handle = self.union.create(*self.at(path), mode, os.O_RDWR, self.caller)
        self.put(handle, content, 0)
        handle.close()
        return self.count(entry)

    def write(self, path: bytes, content: bytes, offset: int = 0) -> None:
        """Write into a file."""
        handle = self.union.open(self.node(path), os.O_WRONLY)
        self.put(handle, content, offset)
        handle.close()

    def put(self, handle: Handle, content: bytes, offset: int) -> int:
        """Write through an open file, as the server of a union does that counts or does not."""
        if isinstance(self.union, CountedUnion):
            return self.union.write(handle, memoryview(content), offset)
        return handle.write(content, offset)

    def read(self, path: bytes) -> bytes:
        """Return the content of a file."""
        handle = self.union.open(self.node(path), os.O_RDONLY)
        try:
            return whole(handle)
        finally:
            handle.close()

    # -- what is seen --------------------------------------------------------------------------------------------------

    def tree(self) -> dict[bytes, Seen]:
        """Look at everything, by READDIRPLUS; check on the way that all answers agree."""
        found = {b"": self._seen(1)}
        pending = [(b"", 1)]
        while pending:
            above, directory = pending.pop()
            for name, node in self.listing(directory).items():
                path = above + b"/" + name if above else name
                entry = self.union.lookup(directory, name)
                assert entry is not None
                assert self.count(entry) == node
                found[path] = self._seen(node)
                if stat.S_ISDIR(found[path].mode):
                    pending.append((path, node))
        return found

    def listing(self, directory: int, size: int = 700) -> dict[bytes, int]:
        """List a directory in both ways and return its names with their nodes."""
        plus, plain = [dict(self._listed(directory, size, plus=plus)) for plus in (True, False)]
        assert list(plus) == list(plain)
        assert dict(self.union.names(directory)) == plus
        return plus

    def _listed(self, directory: int, size: int, *, plus: bool) -> Iterator[tuple[bytes, int]]:
        offset = 0
        names: set[bytes] = set()
        while reply := bytes(self.union.list(directory, offset, size, plus=plus)):
            place = 0
            while place < len(reply):
                entry = reply[place : place + ENTRY_SIZE] if plus else b""
                _, offset, length, kind = DIRENT.unpack_from(reply, place + len(entry))
                start = place + len(entry) + DIRENT.size
                name = reply[start : start + length]
                assert name not in names
                names.add(name)
                place = start + length + (-length % 8)
                if name in (b".", b".."):
                    continue
                if plus and not any(entry):  # what a kernel knows is not told again
                    node = dict(self.union.names(directory))[name]
                    assert self.lookups[node]
                    yield name, node
                elif plus:
                    assert ATTRIBUTES.unpack_from(entry, 40)[9] >> 12 == kind
                    yield name, self.count(entry)
                else:
                    yield name, 0
        assert {b".", b".."} < names or names == {b".", b".."}

    def _seen(self, node: int) -> Seen:
        ino, size, _, _, mtime, _, _, mtime_ns, _, mode, nlink, uid, gid, rdev, _, _ = self.fields(node)
        xattrs = tuple(sorted((name, self.union.get_xattr(node, name)) for name in self.union.list_xattrs(node)))
        content = b""
        if stat.S_ISREG(mode):
            handle = self.union.open(node, os.O_RDONLY)
            content = whole(handle)
            handle.close()
        elif stat.S_ISLNK(mode):
            content = self.union.read_link(node)
        if stat.S_ISDIR(mode):
            size = 0
        return Seen(mode, nlink, uid, gid, mtime * 10**9 + mtime_ns, ino, rdev, size, content, xattrs)


def whole(handle: Handle) -> bytes:
    """Return everything in an open file."""
    return handle.read(1 << 22, 0)


def tree_of(root: Path) -> dict[bytes, Seen]:
    """Look at everything below a directory."""
    top = os.fsencode(root)
    found = {b"": seen_at(top)}
    pending = [b""]
    while pending:
        above = pending.pop()
        for name in os.listdir(os.path.join(top, above)):
            path = os.path.join(above, name)
            try:
                found[path] = seen_at(os.path.join(top, path))
            except FileNotFoundError:
                continue  # a whiteout that the kernel's overlay lists, and shows nothing behind
            if stat.S_ISDIR(found[path].mode):
                pending.append(path)
    return found


def seen_at(path: bytes) -> Seen:
    """Look at one file."""
    status = os.lstat(path)
    mode = status.st_mode
    names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]
    content = b""
    if stat.S_ISREG(mode):
        content = Path(os.fsdecode(path)).read_bytes()
    elif stat.S_ISLNK(mode):
        content = os.readlink(path)
    return Seen(
        mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_ino,
        status.st_rdev & 0xFFFFFFFF,
        0 if stat.S_ISDIR(mode) else status.st_size,
        content,
        tuple(sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)),
    )
