"""The map of a redirected file: one state for each block, in memory and, one step behind what is known, on disk.

`layerfs_fuse.redirect.format` says what is stored and why in this order.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import re
import struct
from collections.abc import Iterator, Sequence

from isal.isal_zlib import crc32

from layerfs_fuse.redirect.format import ENTRY_SIZE, SECOND_HALF, UPPER_ENTRY, State

_log = logging.getLogger(__name__)

_PENDING_ENTRY = struct.Struct("<I4s")
_PENDING_MARK = SECOND_HALF + b"\1"
_RUN = re.compile(rb"\x00+|[^\x00]+")
_PENDING_RUN = re.compile(rb"\x01+")
_LATER = bytes(range(256)).replace(b"\0\1", b"\1\1", 1)
"""For ``translate``: lower becomes pending."""
_PAGE = 4096
_WINDOW = 1 << 16
_PIECE = 1 << 20
_LOWER, _PENDING, _UPPER = State.LOWER.value, State.PENDING.value, State.UPPER.value
_MARKS = tuple(bytes([0, byte, byte]) + b"\xff" * 253 for byte in SECOND_HALF)
"""For ``translate``: what the fifth, sixth and seventh byte of an entry must be for a state."""


class BlockMap:
    """The states of the blocks; ``states`` has a byte for each (`State`) and is to be read by everybody.

    It is memory that is there once something is written into it: most of a big file is never changed.
    """

    __slots__ = ("_count", "_fd", "_first", "_last", "states")

    def __init__(self, fd: int, blocks: int) -> None:
        """Read the map of a file of ``blocks`` blocks from a descriptor, which is borrowed."""
        self._fd = fd
        self._count = blocks
        self._first, self._last = 0, 0
        """All pending blocks are among these."""
        self.states = mmap.mmap(-1, max(blocks, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        end = min(blocks * ENTRY_SIZE, os.fstat(fd).st_size)
        at = _next_data(fd, 0) if end else 0
        while at < end:
            piece = os.pread(fd, min(_PIECE, end - at), at)
            piece = piece[: len(piece) // ENTRY_SIZE * ENTRY_SIZE]
            if not piece:
                break
            self._last = (at + len(piece)) // ENTRY_SIZE
            self.states[at // ENTRY_SIZE : self._last] = _states(piece)
            at = _next_data(fd, at + len(piece)) if len(piece) == _PIECE else end

    def runs(self, first: int, last: int) -> Iterator[tuple[int, int, bool]]:
        """Yield runs of blocks from ``first`` to before ``last``: where one starts, ends, and whether it is not lower.

        Long runs come in several.
        """
        for base in range(first, last, _WINDOW):
            window = self.states[base : min(base + _WINDOW, last)]
            for run in _RUN.finditer(window):
                start, end = run.span()
                yield base + start, base + end, window[start] != _LOWER

    def pending(self) -> list[tuple[int, int]]:
        """Return the runs of pending blocks."""
        first, last = self._first, min(self._last, self._count)
        found = _PENDING_RUN.finditer(self.states[first:last])
        return [(first + run.start(), first + run.end()) for run in found]

    def cut(self, blocks: int) -> None:
        """Forget the blocks from ``blocks`` on."""
        self._count = min(self._count, blocks)

    def note(self, first: int, pieces: Sequence[memoryview | bytes]) -> None:
        """Note that the upper file has the blocks from ``first`` on, with ``pieces`` as contents: they become pending.

        Those that are upper stay so. Raise ``OSError`` (ENOSPC); then all stay what they were.
        """
        last = first + len(pieces)
        states = self.states[first:last]
        pack, mark = _PENDING_ENTRY.pack, _PENDING_MARK
        entries = b"".join(
            [
                UPPER_ENTRY if state == _UPPER else pack(crc32(piece), mark)
                for state, piece in zip(states, pieces, strict=True)
            ]
        )
        self._write(first, entries)
        self.states[first:last] = states.translate(_LATER)
        self._widen(first, last)

    def settle(self, runs: list[tuple[int, int]]) -> None:
        """Say of runs whose data is on the disk that they are upper, and write that; the caller syncs the map."""
        for first, end in runs:
            last = min(end, self._count)
            if first < last:
                self._write(first, UPPER_ENTRY * (last - first))
                self.states[first:last] = bytes([_UPPER]) * (last - first)
        if not self.pending():
            self._first = self._last = 0

    def unsettle(self, runs: list[tuple[int, int]]) -> None:
        """Take `settle` back in memory, after the map could not be synced."""
        for first, last in runs:
            self.states[first:last] = bytes([_PENDING]) * (last - first)
            self._widen(first, last)

    def _widen(self, first: int, last: int) -> None:
        """Note that pending blocks are there."""
        self._first = min(self._first, first) if self._last else first
        self._last = max(self._last, last)

    def check(self, block: int, content: bytes | memoryview) -> bool:
        """Tell whether a pending block's content is the one that was noted; if not, it is lower again."""
        (noted,) = struct.unpack("<I", os.pread(self._fd, 4, block * ENTRY_SIZE))
        if crc32(content) == noted:
            return True
        self.states[block] = _LOWER
        return False

    def _write(self, first: int, entries: bytes) -> None:
        at, done = first * ENTRY_SIZE, 0
        while done < len(entries):
            done += os.pwrite(self._fd, memoryview(entries)[done:], at + done)


def _next_data(fd: int, offset: int) -> int:
    """Return where a page with data starts, at or after the start of a page; far away where none does."""
    try:
        return max(offset, os.lseek(fd, offset, os.SEEK_DATA) // _PAGE * _PAGE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return 1 << 62
        raise


def _states(entries: bytes) -> bytes:
    """Return the states that entries hold; pages with a malformed one count as zeros."""
    states = entries[ENTRY_SIZE - 1 :: ENTRY_SIZE]
    if all(entries[4 + at :: ENTRY_SIZE] == states.translate(mark) for at, mark in enumerate(_MARKS)):
        return states
    if len(entries) <= _PAGE:
        _log.warning("a page of the map of a redirected file was not written whole, so it was never synced")
        return bytes(len(states))
    return b"".join(_states(entries[at : at + _PAGE]) for at in range(0, len(entries), _PAGE))
