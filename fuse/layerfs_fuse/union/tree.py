"""The tree that a union shows: lookup, lower files of which a name is hidden, and forgetting."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from layerfs_fuse.attributes import ENTRY_ATTRIBUTES, NLINK, U32, pack_attributes, pack_entry
from layerfs_fuse.index.format import ROOT
from layerfs_fuse.index.reader import Index
from layerfs_fuse.union.loading import Loading
from layerfs_fuse.union.node import HIDDEN, Directory, Node
from layerfs_fuse.union.places import fail
from layerfs_fuse.union.requests import Options
from layerfs_fuse.union.upper import Upper

LONGEST_NAME = 255
_NLINK = ENTRY_ATTRIBUTES + NLINK


class Tree(Loading):
    """The nodes of one union; the classes that build on it change them."""

    def __init__(self, index: Index, layers: Sequence[int], upper: Upper | None, options: Options) -> None:
        """Borrow all of them; ``layers`` are O_PATH descriptors, the lowest first."""
        super().__init__(index, layers, upper, options)
        if upper is not None:
            self._admit_root(upper)

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

    def is_last(self, node: int, count: int) -> bool:
        """Tell whether somebody who takes back so many lookups forgets the node; where nothing can change it may be.

        The kernel takes single lookups back, too: of the node that a name is found to have in place of another.
        """
        if self.upper is None:
            return True
        if node < len(self._counts):
            return self._counts[node] <= count
        known = self._nodes.get(node)
        return known is None or known.lookups <= count

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
