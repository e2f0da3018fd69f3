"""Where the nodes of a union lie, and what is shown of them."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NoReturn

from layerfs_fuse.attributes import (
    BLOCKS,
    ENTRY_ATTRIBUTES,
    MODE,
    NLINK,
    U32,
    U64,
    pack_attributes,
    pack_entry,
    patch_entry,
)
from layerfs_fuse.index.format import unique_ino
from layerfs_fuse.index.reader import Index
from layerfs_fuse.union.entries import times_of
from layerfs_fuse.union.handle import Handle
from layerfs_fuse.union.lower import Lower
from layerfs_fuse.union.node import Directory, Node
from layerfs_fuse.union.requests import Options
from layerfs_fuse.union.upper import PATH, Upper, eased, proc, proc_name

if TYPE_CHECKING:
    from layerfs_fuse.redirect.store import Redirects

_MOST_OPEN = 256
"""O_PATH descriptors of upper directories that are kept."""
_BLOCKS = ENTRY_ATTRIBUTES + BLOCKS
_MODE = ENTRY_ATTRIBUTES + MODE
_NLINK = ENTRY_ATTRIBUTES + NLINK
_FREELY = nullcontext()


def fail(number: int, name: bytes | None = None) -> NoReturn:
    """Raise the ``OSError`` of a number."""
    raise OSError(number, os.strerror(number), name)


class Places:
    """The tables of one union's nodes; the classes that build on it fill and change them."""

    def __init__(self, index: Index, layers: Sequence[int], upper: Upper | None, options: Options) -> None:
        """Borrow all of them; ``layers`` are O_PATH descriptors, the lowest first."""
        self.index = index
        self.lower = Lower(index, layers)
        self.upper = upper
        self.options = options
        self.on_copied_up: Callable[[int], None] | None = None
        self._nodes: dict[int, Node] = {}
        self._directories: dict[int, Directory] = {}
        self._counts = memoryview(mmap.mmap(-1, 4 * (index.count + 1))).cast("i")
        self._next = index.count + 1
        self._inodes: dict[int, Node] = {}
        """Nodes with several names, by their inode in the upper file system."""
        self._open: dict[Directory, None] = {}
        self._owed: dict[Directory, None] = {}
        self._readers: dict[int, list[Handle]] = {}
        self._redirects: Redirects | None = None
        self._recent: Handle | None = None
        self._euid, self._egid = os.geteuid(), os.getegid()
        self._ordinal = 0
        if upper is not None:
            self._ordinal = self._upper_ordinal(upper)

    def _upper_ordinal(self, upper: Upper) -> int:
        """Return the number of the upper's file system among the devices of the stack (`unique_ino`)."""
        ordinals = [layer.ordinal for layer in self.index.layer_table]
        for device, ordinal in zip(self.lower.devices, ordinals, strict=True):
            if device == upper.device:
                return ordinal
        return max(ordinals, default=0) + 1 if ordinals else 0

    def _row(self, directory: Directory, name: bytes) -> int:
        """Return what lower layers have under a name of a directory, hidden or not; 0 where there is nothing."""
        return self.index.child(directory.below, name) if directory.below else 0

    def _stands_for(self, directory: Directory, name: bytes) -> int:
        """Return the row whose copy an upper file is taken for that says nothing else; 0 if there is none."""
        row = self._row(directory, name)
        return row if row and self.kind(row) == stat.S_IFREG and not self.index.linked(row) else 0

    def _mark_ino(self, node: Node, directory: Directory, name: bytes) -> None:
        """Note the number of a file on disk before it gets a name in a directory that does not tell it."""
        if node.kind == stat.S_IFREG and (node.ino != self._ino(node.inode) or self._stands_for(directory, name)):
            path, follow = self._path(node)
            self._writable().mark_ino(path, node.ino, follow=follow)

    def kind(self, row: int) -> int:
        """Return the file type of a row as in a mode."""
        return stat.S_IFMT(self.index.mode(row))

    # -- what is shown of a node ---------------------------------------------------------------------------------------

    def _refresh(self, node: Node) -> None:
        """Read the attributes of an upper file anew."""
        node.stale = False
        if not node.upper:
            return
        self._take(node, self._status(node))

    def _take(self, node: Node, status: os.stat_result) -> None:
        """Show a file as ``status`` says; of a directory the links are those that show."""
        if isinstance(node, Directory):
            patch_entry(node.entry, status, node.ino, 0 if node.dead else 2 + node.subdirectories)
            return
        node.inode = status.st_ino
        node.written = False
        patch_entry(node.entry, status, node.ino, status.st_nlink)
        if node.redirected:
            # What lies in the lower file counts: some take a file without blocks for one without data.
            U64.pack_into(node.entry, _BLOCKS, max(status.st_blocks, -(-status.st_size // 512)))

    def _count_subdirectories(self, directory: Directory, change: int) -> None:
        directory.subdirectories += change
        U32.pack_into(directory.entry, _NLINK, 2 + directory.subdirectories)

    def mode(self, node: Node) -> int:
        """Return type and permissions as last shown."""
        return int(U32.unpack_from(node.entry, _MODE)[0])

    def _status(self, node: Node) -> os.stat_result:
        if isinstance(node, Directory):
            return os.fstat(self._place(node))
        if node.handle is not None:
            return os.fstat(node.handle.fd)
        if node.directory is None:
            if node.fd < 0:
                fail(errno.ESTALE)
            return os.fstat(node.fd)
        return os.stat(node.name, dir_fd=self._place(node.directory), follow_symlinks=False)

    # -- where things lie ----------------------------------------------------------------------------------------------

    def _place(self, directory: Directory) -> int:
        """Return an O_PATH descriptor of an upper directory, which stays the table's own."""
        if directory.open_fd >= 0:
            return directory.open_fd
        chain = [directory]
        while (above := chain[-1].directory) is not None and above.open_fd < 0:
            chain.append(above)
        if above is None:
            fail(errno.ENOENT)
        fd = above.open_fd
        for one in reversed(chain):
            fd = os.open(one.name, PATH, dir_fd=fd)
            self._keep(one, fd)
        return fd

    def _keep(self, directory: Directory, fd: int) -> None:
        """Keep a descriptor of a directory, and close the oldest where there are many."""
        directory.open_fd = fd
        self._open[directory] = None
        if len(self._open) > _MOST_OPEN:
            self._close(next(iter(self._open)))

    def _close(self, directory: Directory) -> None:
        if self._open.pop(directory, False) is None:
            os.close(directory.open_fd)
            directory.open_fd = -1

    def _reach(self, node: Node) -> tuple[int | None, bytes, bool]:
        """Return how to reach an upper file: ``dir_fd``, path, and whether the path is to be followed."""
        if node.directory is not None:
            return self._place(node.directory), node.name, False
        if isinstance(node, Directory):
            return None, proc(self._place(node)), True
        if node.fd < 0:
            fail(errno.ESTALE)
        return None, proc(node.fd), True

    def _grip(self, node: Node) -> tuple[int | None, bytes | int, bool]:
        """Return the same for calls that take an open file, too: where there is one they need no look at names."""
        if node.handle is not None:
            return None, node.handle.fd, True
        return self._reach(node)

    def _path(self, node: Node) -> tuple[bytes, bool]:
        """Return a path to an upper file for calls without ``dir_fd``, and whether it is to be followed."""
        if isinstance(node, Directory):
            return proc(self._place(node)), True
        place, path, follow = self._reach(node)
        return (path, follow) if place is None else (proc_name(place, path), follow)

    def _eased(self, directory: Directory) -> AbstractContextManager[None]:
        """Let this process do in an upper directory, for the time of a block, what its mode denies the owner."""
        if self._euid == 0:
            return _FREELY
        mode = stat.S_IMODE(self.mode(directory))
        if mode & stat.S_IRWXU == stat.S_IRWXU:
            return _FREELY
        return eased(proc(self._place(directory)), mode)

    def _keep_open(self, handle: Handle | None) -> None:
        """Keep a file open until the next one is kept."""
        recent, self._recent = self._recent, handle
        if recent is not None:
            recent.close()

    # -- times of directories ------------------------------------------------------------------------------------------

    def _touch(self, directory: Directory) -> None:
        """Note that a name was changed in a directory, so that its times are those that the disk has now."""
        directory.stale = True
        if directory.owed:
            directory.owed = False
            del self._owed[directory]

    def _hold_times(self, directory: Directory) -> None:
        """Note, before something is done in a directory that must not show, that its times are owed to the disk."""
        if not directory.owed:
            if directory.stale:
                self._refresh(directory)
            directory.owed = True
            self._owed[directory] = None

    def _settle(self, directory: Directory) -> None:
        """Put the times of a directory on disk right."""
        if not directory.owed:
            return
        directory.owed = False
        del self._owed[directory]
        os.utime(proc(self._place(directory)), ns=times_of(directory.entry))

    # -- new nodes ---------------------------------------------------------------------------------------------------

    def _ino(self, inode: int) -> int:
        """Return the number to show for an inode of the upper file system."""
        return unique_ino(inode, self._ordinal)

    def _number(self) -> int:
        number = self._next
        self._next += 1
        return number

    def _new(self, status: os.stat_result, ino: int) -> Node:
        """Return a new node of an upper file, which has no name yet."""
        number = self._next
        self._next += 1
        entry = bytearray(pack_entry(number, pack_attributes(status, ino)))
        node = Node(number, ino, entry, stat.S_IFMT(status.st_mode), upper=True)
        node.inode = status.st_ino
        return node

    def _admit(self, node: Node, directory: Directory, name: bytes) -> None:
        """Enter a node with its first name into the table."""
        node.add_name(directory, name)
        self._nodes[node.id] = node
        if isinstance(node, Directory):
            self._directories[node.id] = node
        directory.children[name] = node.id

    def _redirected_files(self) -> Redirects:
        """Return the redirected files of the upper directory, which few unions have."""
        if self._redirects is None:
            from layerfs_fuse.redirect.store import Redirects  # noqa: PLC0415  else every mount would load all of it

            upper = self._writable()
            workdir = os.open(b"..", PATH, dir_fd=upper.work)
            try:
                self._redirects = Redirects(
                    upper.fd, workdir, upper.marks.prefix, self.lower.layers, volatile=self.options.volatile
                )
            finally:
                os.close(workdir)
        return self._redirects

    def _writable(self) -> Upper:
        if self.upper is None:
            fail(errno.EROFS)
        return self.upper
