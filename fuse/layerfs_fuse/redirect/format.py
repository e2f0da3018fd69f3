"""The format of redirected files on disk. This module is its reference.

A *redirected file* is a regular file of an upper directory that stands on a file of a lower layer: it holds the
blocks that were changed, and the others *show* from below. It consists of two files on the upper's file system.

The upper file
    lies at its name, as any copied-up file does: owner, mode, times, attributes and length (``st_size``) are its own.
    Its data is sparse: true where the map says so and from `Header.shown` on, and meaningless elsewhere.

The map
    is ``<workdir>/redirect/<id>``, where neither an overlay's mount nor the clearing of ``<workdir>/work`` touches
    it. The id is 16 random bytes in hexadecimal, so no name is ever used twice, and renames and hard links of the
    upper file do not matter to it.

Marks are extended attributes of the upper file below ``trusted.overlay.`` or ``user.overlay.``, which an overlay
hides and a commit strips:

=====================  =================================================================================================
``layerfs.redirect``   `Header`: the id of the map, the lower file, the block size, how much of the lower file shows
``metacopy``           empty: "the data is elsewhere". The kernel's overlay refuses the file with EPERM rather than show
                       holes as zeros, and `layerfs.layer.changes` refuses to make a layer of it
``redirect``           a path that is in no layer: with ``metacopy=on`` the kernel would show the lower file, none of
                       the changes; now it fails with EIO
``layerfs.flattening`` `Kept`: what filling in the blocks would spoil, there while `flatten` is at work
=====================  =================================================================================================

The root of the upper directory has ``layerfs.redirects`` (a format number) from before the first redirected file until
`flatten_tree` has made the last one whole. So one look tells, even when the working directory was lost.

The header (little-endian)
--------------------------
======  =====  ===============================================================================
offset  bytes
======  =====  ===============================================================================
0       1      format, 1
1       1      base-2 logarithm of the block size
2       2      layer of the lower file, 0 the lowest; a hint, for a stack may be put together anew
4       4      zero
8       8      length of the lower file
16      8      its modification time, nanoseconds since 1970, signed
24      8      its inode number
32      8      BLAKE2b of its first, middle and last 4,096 bytes (all of a file of up to 12,288); zeros at first
40      8      *shown*: bytes of it that may still show; truncation makes it less, nothing more
48      16     id of the map
64      rest   path of the lower file in its layer
======  =====  ===============================================================================

The lower file is looked for at its path in its layer, then in the others from the top. Length, modification time and
the sample are its identity: they survive a copy of the layer, which inode numbers do not. The sample is taken when
the file is closed, since it may have to be read from a disk; until then the inode number stands for it.

The map (little-endian)
-----------------------
An array of 8 bytes for each block of the shown part, at 8 times the number of the block; what is a hole or beyond the
end of the map is zero.

======  =====  ===============================================================================
offset  bytes
======  =====  ===============================================================================
0       4      pending: CRC-32 of the block, of its shown part only; else zero
4       3      ``4c 46 53`` ("LFS"), for lower zero
7       1      state: 0 *lower*, 1 *pending*, 2 *upper*
======  =====  ===============================================================================

*lower*: the lower file shows. *upper*: the upper file has the block. *pending*: the upper file has it if its bytes
have this checksum, else the lower file shows. Entries lie within a sector, so none is ever half written; a page of
512 entries in which one is malformed was never synced, and counts as zero.

Why no crash shows zeros or garbage, and none loses what fsync confirmed
------------------------------------------------------------------------
A block is changed for the first time by writing the whole of it, completed from below, to the upper file, and then its
checksum, pending, to the map. Nothing waits for the disk.

- *The server is killed*: what it wrote is in the kernel's hands in the order of the calls. Killed before the entry is
  written, the old bytes show; after, the new ones.
- *The power fails*: data and entry reach the disk in any order. Whichever is missing, the checksum is wrong or the
  entry is zero, and the old bytes show; with both, the new ones do. So what was written long ago, and never synced,
  is there once the kernel has written both.
- *A pending block is written again*: data in place, then the new checksum. A crash between shows what was there at the
  last fsync, the lower file's.
- *fsync*: the map's name (once), the data, then the state *upper* for what was pending, then the map. When it
  returns, the block is upper. Not before the data is down may the map say so, for it is believed without a checksum.
- *An upper block is written again*: in place, as in any file.
- The block in which *shown* ends is completed up to there only, and what follows is upper from the start. A write
  across that byte which was not synced may be there behind it and not before it.

Blocks only ever go from lower to pending to upper, and *shown* only shrinks, so replaying or losing a part of what was
not synced is one of the states between.

- *Cut below shown*: the upper file's length first, then the header. Both belong to one inode, whose changes journaling
  file systems keep in order. A crash between leaves the length, and shown is never more than that. Growing again comes
  after the header, so the new part is zeros.
- *A file becomes redirected*: map, length, marks, then the union puts it at its name. All of these change names,
  inodes and attributes, not data, and ext4 and xfs keep the order of those; so nothing is synced. On other file
  systems the map's name is, since btrfs and f2fs write single files ahead of the rest. An empty map is right: nothing
  was changed yet.
- *A file becomes whole*: shown blocks are filled in where the header still hides them, the data is synced, and the
  removal of the header makes it whole in one step. The map goes after that.

ext4 without a journal gives no order at all: there only a sync of everything, as at unmount, protects a new file,
redirected or not.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Self

HEADER = b"layerfs.redirect"
METACOPY = b"metacopy"
ELSEWHERE = b"redirect"
NOWHERE = b"/.layerfs-must-flatten-this"
"""Value of ``redirect``: absolute, so looked for from the root of every layer."""
KEPT = b"layerfs.flattening"
ROOT_MARK = b"layerfs.redirects"
FORMAT = 1
DIRECTORY = b"redirect"
"""Name of the directory of the maps in the working directory."""

PREFIXES = (b"trusted.overlay.", b"user.overlay.")
ENTRY_SIZE = 8
SECOND_HALF = b"LFS"
UPPER_ENTRY = b"\0\0\0\0" + SECOND_HALF + b"\2"

_HEADER = struct.Struct("<BBHIQqQ8sQ16s")
_NO_SAMPLE = bytes(8)
_KEPT = struct.Struct("<qqI")
_SAMPLE = 4096
_SMALLEST_SHIFT = 12
_MOST_BLOCKS = 24
"""Base-2 logarithm of the most blocks: the state of each takes a byte of memory, so 16 MiB for 64 GiB and above."""
_LARGEST_SHIFT = 63 - _MOST_BLOCKS


class State(IntEnum):
    """Where the bytes of a block are."""

    LOWER = 0
    PENDING = 1
    UPPER = 2


@dataclass(frozen=True, slots=True)
class Identity:
    """What a lower file is known by: length, modification time, and a sample of its bytes, or before that its inode."""

    size: int
    mtime_ns: int
    ino: int
    sample: bytes = _NO_SAMPLE

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Take it from a status, without a sample."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)

    @property
    def sampled(self) -> bool:
        """Tell whether there is a sample."""
        return self.sample != _NO_SAMPLE

    def with_sample(self, fd: int) -> Self:
        """Return it with a sample of the file, which is open to read."""
        return replace(self, sample=_sample(fd, self.size))

    def is_of(self, fd: int) -> bool:
        """Tell whether it is that of a file that is open to read."""
        status = os.fstat(fd)
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            return False
        return _sample(fd, self.size) == self.sample if self.sampled else status.st_ino == self.ino


def _sample(fd: int, size: int) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    if size <= 3 * _SAMPLE:
        digest.update(os.pread(fd, size, 0))
    else:
        for offset in (0, size // 2, size - _SAMPLE):
            digest.update(os.pread(fd, _SAMPLE, offset))
    return digest.digest()


def block_shift(size: int) -> int:
    """Return the base-2 logarithm of the block size for a lower file of ``size`` bytes: 4 KiB up to 64 GiB."""
    return max(_SMALLEST_SHIFT, (size - 1).bit_length() - _MOST_BLOCKS)


@dataclass(frozen=True, slots=True)
class Header:
    """What the mark ``layerfs.redirect`` says."""

    shift: int
    layer: int
    identity: Identity
    shown: int
    id: bytes
    path: bytes

    @property
    def map_name(self) -> bytes:
        """Return the name of the map."""
        return self.id.hex().encode()

    def pack(self, shown: int) -> bytes:
        """Return the value of the mark, with another length that shows."""
        one = self.identity
        known = (one.size, one.mtime_ns, one.ino, one.sample)
        return _HEADER.pack(FORMAT, self.shift, self.layer, 0, *known, shown, self.id) + self.path

    @classmethod
    def parse(cls, value: bytes) -> Self:
        """Read the value of the mark; raise ``ValueError`` where it is none of this format."""
        if len(value) <= _HEADER.size or value[0] != FORMAT:
            raise ValueError("a redirect of another format")
        _, shift, layer, _, size, mtime, ino, sample, shown, number = _HEADER.unpack_from(value)
        if shown > size or not _SMALLEST_SHIFT <= shift <= _LARGEST_SHIFT:
            raise ValueError("a redirect that contradicts itself")
        return cls(shift, layer, Identity(size, mtime, ino, sample), shown, number, value[_HEADER.size :])


@dataclass(frozen=True, slots=True)
class Kept:
    """What the mark ``layerfs.flattening`` keeps: times, mode and file capability, which writing data changes."""

    atime_ns: int
    mtime_ns: int
    mode: int
    capability: bytes

    def pack(self) -> bytes:
        """Return the value of the mark."""
        return _KEPT.pack(self.atime_ns, self.mtime_ns, self.mode) + self.capability

    @classmethod
    def parse(cls, value: bytes) -> Self:
        """Read the value of the mark; raise ``ValueError`` where it is too short."""
        if len(value) < _KEPT.size:
            raise ValueError("a note of attributes that is too short")
        atime, mtime, mode = _KEPT.unpack_from(value)
        return cls(atime, mtime, mode, value[_KEPT.size :])
