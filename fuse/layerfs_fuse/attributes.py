"""The packed status of a file as the FUSE protocol has it, shared by the index, the union and the server.

*Attributes* are the 88 bytes of ``struct fuse_attr``, an *entry* the 128 bytes of ``struct fuse_entry_out`` that end
with them, and a *record* is an entry followed by the header of a directory entry and its padded name, so one element of
a READDIRPLUS reply (``struct fuse_direntplus``). Everything is in the byte order of the machine, as the kernel wants it
(include/uapi/linux/fuse.h).
"""

from __future__ import annotations

import os
import struct

FOREVER = 1 << 31
"""Seconds for which the kernel may keep names and attributes: only the one server changes them, and it says so."""
BLOCK_SIZE = 4096
"""The preferred size of reads and writes in bytes; the kernel wants a power of two, and takes a page best."""

ATTRIBUTES = struct.Struct("=QQQqqqIIIIIIIIII")
"""ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags."""
ENTRY = struct.Struct("=QQQQII88s")
"""nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec, attributes."""
DIRENT = struct.Struct("=QQII")
"""ino, off, namelen, type; the name follows, padded with zeros to a multiple of 8 bytes."""

ATTRIBUTES_SIZE = ATTRIBUTES.size
ENTRY_SIZE = ENTRY.size

# Where in the attributes a field starts, with the structures to patch it by.
INO, SIZE, BLOCKS, ATIME, MTIME, CTIME = 0, 8, 16, 24, 32, 40
ATIME_NSEC, MTIME_NSEC, CTIME_NSEC = 48, 52, 56
MODE, NLINK, UID, GID, RDEV, BLKSIZE, FLAGS = 60, 64, 68, 72, 76, 80, 84
U32 = struct.Struct("=I")
U64 = struct.Struct("=Q")

# Where in an entry a field starts.
NODEID, ENTRY_ATTRIBUTES = 0, 40
ATTRIBUTES_REPLY = 24
"""From here on an entry is a GETATTR reply of 104 bytes (``struct fuse_attr_out``): attr_valid comes first, and both
fields of nanoseconds are zero."""

# Where in a record a field starts.
RECORD_DIRENT = ENTRY_SIZE
RECORD_OFF = ENTRY_SIZE + 8
RECORD_NAMELEN = ENTRY_SIZE + 16
RECORD_TYPE = ENTRY_SIZE + 20
RECORD_NAME = ENTRY_SIZE + DIRENT.size

PADDING = tuple(b"\0" * (-length % 8) for length in range(8))
"""What pads a name of ``length & 7`` bytes."""

_RECORD = struct.Struct("=QQQQII QQQqqqIIIIIIIIII QQII")
_SECOND = 1_000_000_000
_RDEV = 0xFFFF_FFFF


def pack_attributes(status: os.stat_result, ino: int) -> bytes:
    """Pack a status into 88 bytes; ``ino`` is the inode number to show."""
    mode, _, _, nlink, uid, gid, size, atime, mtime, ctime = status
    # The lower half of the C library's device number is the kernel's 32-bit one (new_encode_dev).
    return ATTRIBUTES.pack(
        ino,
        size,
        status.st_blocks,
        atime,
        mtime,
        ctime,
        status.st_atime_ns % _SECOND,
        status.st_mtime_ns % _SECOND,
        status.st_ctime_ns % _SECOND,
        mode,
        nlink,
        uid,
        gid,
        status.st_rdev & _RDEV,
        BLOCK_SIZE,
        0,
    )


def patch_entry(entry: bytearray, status: os.stat_result, ino: int, nlink: int) -> None:
    """Write a status into an entry where it stands, as `pack_attributes` packs one."""
    mode, _, _, _, uid, gid, size, atime, mtime, ctime = status
    ATTRIBUTES.pack_into(
        entry,
        ENTRY_ATTRIBUTES,
        ino,
        size,
        status.st_blocks,
        atime,
        mtime,
        ctime,
        status.st_atime_ns % _SECOND,
        status.st_mtime_ns % _SECOND,
        status.st_ctime_ns % _SECOND,
        mode,
        nlink,
        uid,
        gid,
        status.st_rdev & _RDEV,
        BLOCK_SIZE,
        0,
    )


def pack_entry(node: int, attributes: bytes | bytearray | memoryview) -> bytes:
    """Pack a reply to LOOKUP of 128 bytes that the kernel may keep for ever."""
    return ENTRY.pack(node, 0, FOREVER, FOREVER, 0, 0, attributes)


def pack_dirent(ino: int, offset: int, kind: int, name: bytes) -> bytes:
    """Pack an element of a READDIR reply; ``kind`` is the file type as in a mode's upper bits (``st_mode >> 12``)."""
    return DIRENT.pack(ino, offset, len(name), kind) + name + PADDING[len(name) & 7]


def pack_record(node: int, ino: int, offset: int, name: bytes, status: os.stat_result, nlink: int) -> bytes:
    """Pack an element of a READDIRPLUS reply from a status, in one step: the index makes millions of them."""
    mode, _, _, _, uid, gid, size, atime, mtime, ctime = status
    length = len(name)
    return (
        _RECORD.pack(
            node,
            0,
            FOREVER,
            FOREVER,
            0,
            0,
            ino,
            size,
            status.st_blocks,
            atime,
            mtime,
            ctime,
            status.st_atime_ns % _SECOND,
            status.st_mtime_ns % _SECOND,
            status.st_ctime_ns % _SECOND,
            mode,
            nlink,
            uid,
            gid,
            status.st_rdev & _RDEV,
            BLOCK_SIZE,
            0,
            ino,
            offset,
            length,
            mode >> 12,
        )
        + name
        + PADDING[length & 7]
    )
