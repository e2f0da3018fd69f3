"""Requests about the names in directories: finding, listing, making, linking, renaming and removing them."""

from __future__ import annotations

import errno
import os
import stat

from layerfs_fuse.attributes import ATTRIBUTES, ENTRY, FOREVER
from layerfs_fuse.operations.files import Files
from layerfs_fuse.protocol import (
    BATCH_FORGET_IN,
    CREATE_IN,
    FORGET_IN,
    FORGET_ONE,
    HEADER,
    LINK_IN,
    MKDIR_IN,
    MKNOD_IN,
    READ_IN,
    RENAME2_IN,
    RENAME_IN,
    Opcode,
)
from layerfs_fuse.server import Handler, Header, Reply
from layerfs_fuse.session import Session
from layerfs_fuse.union import Caller, Union

_AFTER_HEADER = HEADER.size
_UNPACK_READ = READ_IN.unpack_from
_ABSENT = ENTRY.pack(0, 0, FOREVER, 0, 0, 0, bytes(ATTRIBUTES.size))
"""The entry of a name that is not there: node 0, valid for ever."""


class Names:
    """The handlers of one mount; ``body`` is the buffer of its channel."""

    def __init__(self, union: Union, files: Files, body: memoryview, session: Session) -> None:
        self._union = union
        self._files = files
        self._body = body
        self._opens = session.passthrough

    def handlers(self) -> dict[int, Handler]:
        """Return what answers each opcode."""
        return {
            Opcode.LOOKUP: self.lookup,
            Opcode.FORGET: self.forget,
            Opcode.BATCH_FORGET: self.batch_forget,
            Opcode.READDIR: self.read_directory,
            Opcode.READDIRPLUS: self.read_directory_plus,
            Opcode.READLINK: self.read_link,
            Opcode.MKNOD: self.make_node,
            Opcode.MKDIR: self.make_directory,
            Opcode.SYMLINK: self.make_symlink,
            Opcode.LINK: self.link,
            Opcode.UNLINK: self.unlink,
            Opcode.RMDIR: self.remove_directory,
            Opcode.RENAME: self.rename,
            Opcode.RENAME2: self.rename2,
            Opcode.CREATE: self.create,
            Opcode.TMPFILE: self.temporary,
        }

    # -- finding -------------------------------------------------------------------------------------------------------

    def lookup(self, header: Header) -> Reply:
        """Answer with the entry of a name, or with one that says for ever that there is none."""
        entry = self._union.lookup(header[3], self._body[_AFTER_HEADER : header[0] - 1].tobytes())
        return _ABSENT if entry is None else entry

    def forget(self, header: Header) -> Reply:
        """Take lookups of one node back."""
        self._forget(header[3], FORGET_IN.unpack_from(self._body, _AFTER_HEADER)[0])
        return None

    def batch_forget(self, header: Header) -> Reply:
        """Take lookups of many nodes back."""
        count, _ = BATCH_FORGET_IN.unpack_from(self._body, _AFTER_HEADER)
        start = _AFTER_HEADER + BATCH_FORGET_IN.size
        forget = self._forget
        for node, lookups in FORGET_ONE.iter_unpack(
            self._body[start : min(start + count * FORGET_ONE.size, header[0])]
        ):
            forget(node, lookups)
        return None

    def _forget(self, node: int, lookups: int) -> None:
        if self._union.is_last(node, lookups):
            self._files.forget(node)  # first, for the union lets go of an unlinked file when nothing has it open
        self._union.forget(node, lookups)

    def read_directory(self, header: Header) -> Reply:
        """List names."""
        offset, size = _UNPACK_READ(self._body, _AFTER_HEADER)
        return self._union.list(header[3], offset, size, plus=False)

    def read_directory_plus(self, header: Header) -> Reply:
        """List names with their entries, each of which counts as a lookup."""
        offset, size = _UNPACK_READ(self._body, _AFTER_HEADER)
        return self._union.list(header[3], offset, size, plus=True)

    def read_link(self, header: Header) -> Reply:
        """Tell where a symbolic link leads."""
        return self._union.read_link(header[3])

    # -- making --------------------------------------------------------------------------------------------------------

    def _names(self, header: Header, start: int) -> list[bytes]:
        """Split the NUL-terminated names that begin at ``start`` of the body."""
        return self._body[_AFTER_HEADER + start : header[0] - 1].tobytes().split(b"\0")

    def make_node(self, header: Header) -> Reply:
        """Make a file, FIFO, socket or device; without OPEN (`create`) a file is open for whoever made it."""
        mode, device, umask, _ = MKNOD_IN.unpack_from(self._body, _AFTER_HEADER)
        name = self._body[_AFTER_HEADER + MKNOD_IN.size : header[0] - 1].tobytes()
        if stat.S_ISREG(mode) and not self._opens:
            entry, handle = self._union.create(header[3], name, mode, os.O_RDWR, _caller(header, umask))
            self._files.adopt(entry, handle)
            return entry
        return self._union.make_node(header[3], name, mode, device, _caller(header, umask))

    def make_directory(self, header: Header) -> Reply:
        """Make a directory."""
        mode, umask = MKDIR_IN.unpack_from(self._body, _AFTER_HEADER)
        (name,) = self._names(header, MKDIR_IN.size)
        return self._union.make_directory(header[3], name, mode, _caller(header, umask))

    def make_symlink(self, header: Header) -> Reply:
        """Make a symbolic link."""
        name, target = self._names(header, 0)
        return self._union.make_symlink(header[3], name, target, _caller(header, 0))

    def link(self, header: Header) -> Reply:
        """Give a file one more name."""
        (node,) = LINK_IN.unpack_from(self._body, _AFTER_HEADER)
        (name,) = self._names(header, LINK_IN.size)
        return self._union.link(node, header[3], name)

    def create(self, header: Header) -> Reply:
        """Make a regular file and open it.

        Where there is no OPEN, ENOSYS sends the kernel to MKNOD, after which it has no RELEASE to ask for either.
        """
        if not self._opens:
            return -errno.ENOSYS
        _, mode, umask, _ = CREATE_IN.unpack_from(self._body, _AFTER_HEADER)
        name = self._body[_AFTER_HEADER + CREATE_IN.size : header[0] - 1].tobytes()
        entry, handle = self._union.create(header[3], name, mode, os.O_RDWR, _caller(header, umask))
        return entry, self._files.adopt(entry, handle)

    def temporary(self, header: Header) -> Reply:
        """Make a regular file without a name and open it (O_TMPFILE)."""
        _, mode, umask, _ = CREATE_IN.unpack_from(self._body, _AFTER_HEADER)
        entry, handle = self._union.temporary(header[3], mode, os.O_RDWR, _caller(header, umask))
        return entry, self._files.adopt(entry, handle)

    # -- moving and removing -------------------------------------------------------------------------------------------

    def unlink(self, header: Header) -> Reply:
        """Remove a name that is no directory's."""
        self._union.unlink(header[3], self._body[_AFTER_HEADER : header[0] - 1].tobytes())
        return 0

    def remove_directory(self, header: Header) -> Reply:
        """Remove an empty directory."""
        self._union.remove_directory(header[3], self._body[_AFTER_HEADER : header[0] - 1].tobytes())
        return 0

    def rename(self, header: Header) -> Reply:
        """Rename, and replace what has the new name."""
        (directory,) = RENAME_IN.unpack_from(self._body, _AFTER_HEADER)
        old, new = self._names(header, RENAME_IN.size)
        self._union.rename(header[3], old, directory, new)
        return 0

    def rename2(self, header: Header) -> Reply:
        """Rename with flags (renameat2(2))."""
        directory, flags, _ = RENAME2_IN.unpack_from(self._body, _AFTER_HEADER)
        names = self._names(header, RENAME2_IN.size)
        if len(names) != 2:  # noqa: PLR2004  the old and the new one
            return -errno.EINVAL
        self._union.rename(header[3], names[0], directory, names[1], flags)
        return 0


def _caller(header: Header, umask: int) -> Caller:
    return Caller(header[4], header[5], header[6], umask)
