"""The *content* of a file as one digest, which neither depends on holes nor takes time for them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from errno import ENXIO

from layerfs.layer.links import Inode, inode
from layerfs.layer.tar import Header

_PIECE = 1 << 16
"""Bytes that are hashed together with their place, unless all of them are zero."""
_READ = 1 << 20
_ZEROS = bytes(_PIECE)
_ZEROS_SEEN = memoryview(_ZEROS)


class Content:
    """The digest of what a file holds: of every piece that is not all zeros, and where it is."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._at = 0
        self._waiting = bytearray()

    def skip_to(self, offset: int) -> None:
        """Go on at an offset; what is between is zeros."""
        while self._waiting and self._at + len(self._waiting) < offset:
            missing = min(_PIECE - len(self._waiting), offset - self._at - len(self._waiting))
            self.update(_ZEROS[:missing])
        if not self._waiting and offset > self._at:
            self._at = offset - offset % _PIECE
            self._waiting += _ZEROS[: offset % _PIECE]

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        if self._waiting:
            missing = _PIECE - len(self._waiting)
            self._waiting += view[:missing]
            view = view[missing:]
            if len(self._waiting) < _PIECE:
                return
            self._take(memoryview(self._waiting))
            self._waiting = bytearray()
        whole = len(view) - len(view) % _PIECE
        for start in range(0, whole, _PIECE):
            self._take(view[start : start + _PIECE])
        self._waiting += view[whole:]

    def digest(self) -> str:
        """Return the digest in hexadecimal; nothing more may follow."""
        if self._waiting:
            self._take(memoryview(self._waiting))
            self._waiting = bytearray()
        return self._hash.hexdigest()

    def _take(self, piece: memoryview) -> None:
        if piece != _ZEROS_SEEN[: len(piece)]:
            self._hash.update(self._at.to_bytes(8, "little"))
            self._hash.update(piece)
        self._at += len(piece)


NOTHING = Content().digest()
"""The digest of a file of zeros, or of none at all."""


def read(fd: int) -> str:
    """Return the digest of an open regular file."""
    content = Content()
    position = 0
    while True:
        try:
            position = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != ENXIO:
                raise
            return content.digest()
        end = os.lseek(fd, position, os.SEEK_HOLE)
        content.skip_to(position)
        while position < end:
            data = os.pread(fd, min(_READ, end - position), position)
            if not data:
                return content.digest()
            content.update(data)
            position += len(data)


class HollowFiles:
    """Regular files that are made of holes, so that they take no space, and the digests of what they should hold."""

    def __init__(self) -> None:
        self._digests: dict[Inode, str] = {}

    def fill(self, fd: int, header: Header, pieces: Iterable[memoryview]) -> None:
        """Give a file its length, and remember what the data are (`layerfs.layer.entries.Fill`)."""
        content = Content()
        if header.extents is None:
            for piece in pieces:
                content.update(piece)
        else:
            _spread(content, header.extents, pieces)
        os.ftruncate(fd, header.real_size)
        self._digests[inode(os.fstat(fd))] = content.digest()

    def content(self, fd: int, status: os.stat_result) -> str:
        """Return the digest of what an open file should hold, or holds if it was not made hollow.

        A number may be another file's meanwhile: one that holds something.
        """
        found = read(fd)
        return self._digests.get(inode(status), found) if found == NOTHING else found


def _spread(content: Content, extents: Iterable[tuple[int, int]], pieces: Iterable[memoryview]) -> None:
    """Take the data of a sparse file where they belong."""
    left = iter(pieces)
    piece = memoryview(b"")
    for offset, length in extents:
        content.skip_to(offset)
        missing = length
        while missing:
            piece = piece or next(left)
            part = piece[:missing]
            content.update(part)
            missing -= len(part)
            piece = piece[len(part) :]
