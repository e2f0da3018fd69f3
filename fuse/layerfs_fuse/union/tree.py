"""The table of nodes: lookup, what is shown of a node, loading upper directories, forgetting, and where things lie."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NoReturn

from layerfs.contract import WritePolicy
from layerfs.layer.attributes import DEFAULT_ACL
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
from layerfs_fuse.index.format import ROOT, unique_ino
from layerfs_fuse.index.markers import OPAQUE_XWHITEOUTS, OPAQUE_YES
from layerfs_fuse.index.reader import Index
from layerfs_fuse.union.entries import times_of
from layerfs_fuse.union.handle import Handle
from layerfs_fuse.union.lower import Lower
from layerfs_fuse.union.node import HIDDEN, Directory, Node
from layerfs_fuse.union.requests import Options
from layerfs_fuse.union.upper import PATH, Upper, eased, proc, proc_name

if TYPE_CHECKING:
    from layerfs_fuse.redirect.store import Redirects

LONGEST_NAME = 255
_MOST_OPEN = 256
"""O_PATH descriptors of upper directories that are kept."""
_BLOCKS = ENTRY_ATTRIBUTES + BLOCKS
_MODE = ENTRY_ATTRIBUTES + MODE
_NLINK = ENTRY_ATTRIBUTES + NLINK
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def fail(number: int, name: bytes | None = None) -> NoReturn:
    """Raise the ``OSError`` of a number."""
    raise OSError(number, os.strerror(number), name)


class Tree:
    """The nodes of one union; the classes that build on it change them."""

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
            if options.write is WritePolicy.REDIRECT_ON_WRITE:
                self._redirected_files()  # what it takes to begin is not to be added to the first write
            self._admit_root(upper)

    def _upper_ordinal(self, upper: Upper) -> int:
        """Return the number of the upper's file system among the devices of the stack (`unique_ino`)."""
        ordinals = [layer.ordinal for layer in self.index.layer_table]
        for device, ordinal in zip(self.lower.devices, ordinals, strict=True):
            if device == upper.device:
                return ordinal
        return max(ordinals, default=0) + 1 if ordinals else 0

    def _admit_root(self, upper: Upper) -> None:
        ino = self.index.ino(ROOT)
        entry = bytearray(pack_entry(ROOT, pack_attributes(os.fstat(upper.fd), ino)))
        root = Directory(ROOT, ino, entry, upper=True, below=ROOT)
        root.open_fd = upper.fd
        root.lookups = 1
        self._nodes[ROOT] = self._directories[ROOT] = root
        self._load(root)

    # -- lookup --------------------------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> bytes | bytearray | None:
        """Return the entry of a name and count one lookup of its node; None where there is no such name."""
        index = self.index
        directory = self._directories.get(parent)
        if directory is None:
            row = index.child(parent, name)
        else:
            if not directory.loaded:
                self._load(directory)
            known = directory.children.get(name)
            if known is not None:
                if known == HIDDEN:
                    return None
                node = self._nodes[known] if known > 0 else self._find(directory, name)
                return self._counted(node)
            row = index.child(directory.below, name) if directory.below else 0
        if not row:
            if len(name) > LONGEST_NAME:
                fail(errno.ENAMETOOLONG, name)
            return None
        if self.upper is None:
            return index.entry(row)
        if index.linked(row):
            row = index.node(row)
            patched = self._patched(row)
            if patched is not None:
                return self._counted(patched)
        self._counts[row] += 1
        return index.entry(row)

    def _counted(self, node: Node) -> bytearray:
        """Count a lookup of a node and return its entry."""
        if node.id < len(self._counts):
            self._counts[node.id] += 1
        else:
            node.lookups += 1
        if node.stale or node.past:
            self._refresh(node)
        return node.entry

    def entry(self, node: int) -> bytes | bytearray:
        """Return the 128 bytes of a node's entry, without counting a lookup."""
        known = self._nodes.get(node)
        if known is None:
            return self.index.entry(node)
        if known.stale or known.past:
            self._refresh(known)
        return known.entry

    def attributes(self, node: int) -> bytes | bytearray:
        """Return the 88 bytes of a node's attributes."""
        known = self._nodes.get(node)
        if known is None:
            return self.index.attributes(node)
        if known.stale or known.past:
            self._refresh(known)
        return known.entry[ENTRY_ATTRIBUTES:]

    def _resolve(self, directory: Directory, name: bytes) -> Node | int:
        """Return the node of a name, or the row of a pristine one; 0 where there is no such name."""
        if not directory.loaded:
            self._load(directory)
        known = directory.children.get(name)
        if known is not None:
            if known == HIDDEN:
                return 0
            return self._nodes[known] if known > 0 else self._find(directory, name)
        return self._row(directory, name)

    def _row(self, directory: Directory, name: bytes) -> int:
        """Return what lower layers have under a name of a directory, hidden or not; 0 where there is nothing."""
        return self.index.child(directory.below, name) if directory.below else 0

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
        mode = stat.S_IMODE(self.mode(directory))
        if self._euid == 0 or mode & stat.S_IRWXU == stat.S_IRWXU:
            return nullcontext()
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

    # -- loading -------------------------------------------------------------------------------------------------------

    def _load(self, directory: Directory) -> None:
        """Read the names of an upper directory, and count the directories that show in it."""
        place = self._place(directory)
        with self._eased(directory):
            fd = os.open(b".", _LIST, dir_fd=place)
            try:
                with os.scandir(fd) as found:
                    kinds = {os.fsencode(one.name): _kind(one) for one in found}
            finally:
                os.close(fd)
            self._find_whiteouts(directory, place, kinds)
        directory.loaded = True
        directory.children = {name: -kind for name, kind in kinds.items()}
        self._load_subdirectories(directory)

    def _find_whiteouts(self, directory: Directory, place: int, kinds: dict[bytes, int]) -> None:
        """Set the kind of whiteouts to 0, and find out the kinds that the listing left open."""
        upper = self._writable()
        opaque = upper.read_mark(proc(place), upper.marks.opaque, follow=True)
        directory.marked = opaque == OPAQUE_XWHITEOUTS
        for name, kind in kinds.items():
            if not kind:
                status = os.stat(name, dir_fd=place, follow_symlinks=False)
                whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
                kinds[name] = 0 if whiteout else stat.S_IFMT(status.st_mode)
            elif directory.marked and kind == stat.S_IFREG and upper.is_hiding(place, name):
                kinds[name] = 0

    def _load_subdirectories(self, directory: Directory) -> None:
        count = 0
        below = directory.below
        if below:
            count = int(U32.unpack_from(self.index.attributes(below), NLINK)[0]) - 2
        for name, kind in directory.children.items():
            row = self.index.child(below, name) if below else 0
            count += (kind == -stat.S_IFDIR) - (row != 0 and self.index.is_directory(row))
        directory.subdirectories = count
        if not directory.stale:
            U32.pack_into(directory.entry, _NLINK, 2 + count)

    def _find(self, directory: Directory, name: bytes) -> Node:
        """Look at something in an upper directory that was not looked at yet."""
        upper = self._writable()
        place = self._place(directory)
        status = os.stat(name, dir_fd=place, follow_symlinks=False)
        if status.st_nlink > 1 and (known := self._inodes.get(status.st_ino)) is not None:
            known.add_name(directory, name)
            directory.children[name] = known.id
            return known
        path = proc_name(place, name)
        marks = upper.names(path)
        if stat.S_ISDIR(status.st_mode):
            node: Node = self._found_directory(directory, name, status, path, marks)
        else:
            ino = self._found_ino(directory, name, status, path, marks)
            node = self._new(status, ino)
            if upper.redirected in marks:
                node.redirected = True
                self._take(node, status)
            if status.st_nlink > 1:
                self._inodes[status.st_ino] = node
        node.bare = all(upper.is_private(mark) for mark in marks)
        self._admit(node, directory, name)
        return node

    def _found_directory(
        self, directory: Directory, name: bytes, status: os.stat_result, path: bytes, marks: list[bytes]
    ) -> Directory:
        upper = self._writable()
        below = self._row(directory, name)
        if below and not self.index.is_directory(below):
            below = 0
        if below and upper.marks.opaque in marks and upper.read_mark(path, upper.marks.opaque) == OPAQUE_YES:
            below = 0
        if below:
            ino = self.index.ino(below)
        else:
            ino = (upper.read_ino(path) if upper.ino in marks else 0) or self._ino(status.st_ino)
        number = below if below and below not in self._nodes else self._number()
        entry = bytearray(pack_entry(number, pack_attributes(status, ino)))
        found = Directory(number, ino, entry, upper=True, below=below)
        found.plain = DEFAULT_ACL not in marks
        found.directory, found.name = directory, name  # loading needs its place
        self._load(found)
        found.directory = None
        return found

    def _found_ino(
        self, directory: Directory, name: bytes, status: os.stat_result, path: bytes, marks: list[bytes]
    ) -> int:
        """Return the inode number to show of an upper file that is no directory."""
        upper = self._writable()
        if upper.ino in marks and (ino := upper.read_ino(path)):
            return ino
        row = self._row(directory, name)
        # What could not be given a mark is taken for the copy of what it looks like.
        if (
            row
            and stat.S_ISLNK(status.st_mode)
            and stat.S_ISLNK(self.index.mode(row))
            and (os.readlink(path) == self.index.target(row))
        ):
            return self.index.ino(row)
        return self._ino(status.st_ino)

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

    # -- lower files with several names --------------------------------------------------------------------------------

    def _patched(self, row: int) -> Node | None:
        """Return the node of a lower file of which some names are hidden; None where all show."""
        known = self._nodes.get(row)
        if known is not None or not self._directories[ROOT].children:
            return known
        aliases = self.index.aliases(row)
        visible = sum(map(self._shows, aliases))
        return self._patch(row, visible) if visible < len(aliases) else None

    def _patch(self, row: int, visible: int) -> Node:
        """Remember of a lower file that so many of its names show."""
        node = self._nodes.get(row)
        if node is None:
            entry = bytearray(self.index.entry(row))
            node = Node(row, self.index.ino(row), entry, self.kind(row), upper=False, row=row)
            self._nodes[row] = node
        hidden = len(self.index.aliases(row)) - visible
        links = int(U32.unpack_from(self.index.attributes(row), NLINK)[0])
        U32.pack_into(node.entry, _NLINK, max(links - hidden, 0) if visible else 0)
        return node

    def _shows(self, row: int) -> bool:
        """Tell whether a row is what shows at its own path, untouched."""
        chain = [row]
        while chain[-1] != ROOT:
            chain.append(self.index.parent(chain[-1]))
        directory = self._directories[ROOT]
        for one in reversed(chain[:-1]):
            if directory.below != self.index.parent(one):
                return False
            name = self.index.name(one)
            if not directory.loaded:
                self._load(directory)
            if name not in directory.children:
                return True
            found = self._resolve(directory, name)
            if not isinstance(found, Directory):
                return False
            directory = found
        return False

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def forget(self, node: int, count: int) -> None:
        """Take back so many lookups; what nobody knows any more leaves memory."""
        if self.upper is None:
            return
        counts = self._counts
        if node < len(counts):
            counts[node] -= count
            if counts[node] > 0:
                return
            known = self._nodes.get(node)
        else:
            known = self._nodes.get(node)
            if known is not None:
                known.lookups -= count
        if known is not None:
            self._drop(known)

    def _known(self, node: Node) -> bool:
        """Tell whether the kernel knows a node."""
        return (self._counts[node.id] if node.id < len(self._counts) else node.lookups) > 0

    def _drop(self, node: Node) -> None:
        """Let an object go that nobody needs; its names are looked at again when somebody asks."""
        if self._known(node) or node.past or node.id == ROOT:
            return
        if self._recent is not None and self._recent.record is node:
            self._keep_open(None)
        if isinstance(node, Directory):
            if node.live:
                return
            self._settle_quietly(node)
            self._close(node)
            del self._directories[node.id]
        del self._nodes[node.id]
        if self._inodes.get(node.inode) is node:
            del self._inodes[node.inode]
        if node.fd >= 0:
            if node.redirected:
                self._redirected_files().discard(node.fd)
            os.close(node.fd)
            node.fd = -1
        for directory, name in node.names():
            directory.children[name] = -node.kind
            directory.live -= 1
            if not self._known(directory):
                self._drop(directory)

    def _settle_quietly(self, directory: Directory) -> None:
        if not directory.owed:
            return
        try:
            self._settle(directory)
        except OSError:
            # The directory is gone, or the disk fails: its times are the least then.
            self._owed.pop(directory, None)


def _kind(entry: os.DirEntry[str]) -> int:
    """Return the file type of an entry of a listing; 0 where it does not tell."""
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0
