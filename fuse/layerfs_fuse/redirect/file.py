"""An open redirected file: reading and writing over the lower file, the upper file and the map.

It behaves as a regular file does, with the names of calls that `layerfs_fuse.union.handle.Handle` has. One thread
changes it; `RedirectedFile.sync` and `RedirectedFile.read` may run in others meanwhile.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from threading import Lock

from layerfs.kernel import syscalls
from layerfs_fuse.redirect.blockmap import BlockMap
from layerfs_fuse.redirect.filling import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fill, seek
from layerfs_fuse.redirect.format import Header, State
from layerfs_fuse.redirect.marks import Marks

_log = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview

_KNOWN_MODES = KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE
_ZEROING = PUNCH_HOLE | ZERO_RANGE
_PIECE = 1 << 20
_MANY = 1 << 16
_LOWER, _PENDING, _UPPER = State.LOWER.value, State.PENDING.value, State.UPPER.value


class RedirectedFile:
    """A redirected file with its three descriptors, which it owns.

    ``volatile`` never waits for the disk and takes no checksums: after
    a crash anything may be lost.
    """

    def __init__(
        self,
        header: Header,
        lower: int,
        upper: int,
        map_fd: int,
        *,
        prefix: bytes,
        trusted: bool,
        volatile: bool = False,
    ) -> None:
        """Open the map; unless ``trusted``, compare pending blocks with their checksums, as after a crash."""
        self.header = header
        self.users = 0
        self.on_release: Callable[[RedirectedFile], None] = RedirectedFile.close
        self._marks = Marks(upper, header, prefix)
        self._lower, self._upper, self._map = lower, upper, map_fd
        self._shift = header.shift
        self._durable = False
        """Whether the names of both files are known to be on the disk."""
        self._volatile = volatile
        self._lock = Lock()
        self._cut_since_sync = False
        """Whether the header was changed, which fdatasync(2) need not write."""
        status = os.fstat(upper)
        self.ino = status.st_ino
        self._shown = min(header.shown, status.st_size)
        self._blocks = BlockMap(map_fd, self._end_block(self._shown))
        self._states = self._blocks.states
        if self._shown < header.shown:
            self._marks.owe(self._shown)
        if not trusted:
            self._check_pending()

    def _check_pending(self) -> None:
        lost = 0
        for first, last in self._blocks.pending():
            for block in range(first, last):
                start, end = self._span(block)
                lost += not self._blocks.check(block, os.pread(self._upper, end - start, start))
        if lost:
            _log.info("%d blocks that were written and not synced before a crash are as they were", lost)

    def seal(self) -> None:
        """Note what the lower file is known by wherever it lies; raise ``OSError``."""
        if not self.header.identity.sampled:
            self.header = replace(self.header, identity=self.header.identity.with_sample(self._lower))
            self._marks.rewrite(self.header)

    def release(self) -> None:
        """Say that one of those who use it does so no more."""
        self.users -= 1
        if not self.users:
            self.on_release(self)

    def close(self) -> None:
        """Let go of the descriptors; doing it twice is no error."""
        with self._lock:
            held = (self._lower, self._upper, self._map)
            self._lower = self._upper = self._map = -1
        for fd in held:
            if fd >= 0:
                os.close(fd)

    # -- what is known of it -------------------------------------------------------------------------------------------

    @property
    def shown(self) -> int:
        """Return how many bytes of the lower file may still show."""
        return self._shown

    @property
    def unsettled(self) -> bool:
        """Tell whether blocks are pending: only `sync` makes them sure."""
        return bool(self._blocks.pending())

    def status(self) -> os.stat_result:
        """Return the status of the upper file."""
        return os.fstat(self._upper)

    def _end_block(self, offset: int) -> int:
        """Return the first block that begins at or after ``offset``."""
        return -(-offset >> self._shift)

    def _span(self, block: int) -> tuple[int, int]:
        """Return where the shown part of a block starts and ends."""
        start = block << self._shift
        return start, min(start + (1 << self._shift), self._shown)

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``; fewer only at the end. Raise ``OSError`` (EIO)."""
        holder = self.holder(size, offset)
        if holder >= 0:
            return os.pread(holder, size, offset) if holder == self._upper else self._read_lower(size, offset)
        shown, end = self._shown, offset + size
        first, last = offset >> self._shift, self._end_block(min(end, shown))
        pieces = []
        for start, stop, upper in self._blocks.runs(first, last):
            place = max(offset, start << self._shift)
            count = min(end, shown, stop << self._shift) - place
            pieces.append(os.pread(self._upper, count, place) if upper else self._read_lower(count, place))
        if end > shown:
            pieces.append(os.pread(self._upper, end - shown, shown))
        return b"".join(pieces)

    def holder(self, size: int, offset: int) -> int:
        """Return the descriptor of the one file that has all of a range, or ends in it; -1 where there is none."""
        end = min(offset + size, self._shown)
        if offset >= end:
            return self._upper
        states = self._states[offset >> self._shift : self._end_block(end)]
        if _LOWER not in states:
            return self._upper
        return self._lower if offset + size <= end and states.count(_LOWER) == len(states) else -1

    def _read_lower(self, size: int, offset: int) -> bytes:
        data = os.pread(self._lower, size, offset)
        if len(data) != size:
            raise OSError(errno.EIO, "a lower file became shorter")
        return data

    def seek(self, offset: int, whence: int) -> int:
        """Return where the next data or hole is (``os.SEEK_DATA``, ``os.SEEK_HOLE``); raise ``OSError`` (ENXIO)."""
        size = os.fstat(self._upper).st_size
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if not 0 <= offset < size:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        last = self._end_block(self._shown)
        for start, stop, upper in self._blocks.runs(min(offset >> self._shift, last), last):
            begin, end = max(offset, start << self._shift), min(stop << self._shift, self._shown)
            found = seek(self._upper if upper else self._lower, begin, whence) if begin < end else end
            if found < end:
                return found
        found = seek(self._upper, max(offset, self._shown), whence)
        if found < size:
            return found
        if whence == os.SEEK_HOLE:
            return size
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    def fill(self) -> None:
        """Copy what shows of the lower file into the upper one, hidden still; raise ``OSError`` (ENOSPC, EIO)."""
        for start, stop, upper in self._blocks.runs(0, self._end_block(self._shown)):
            if not upper:
                fill(self._lower, self._upper, start << self._shift, min(stop << self._shift, self._shown))

    # -- writing -------------------------------------------------------------------------------------------------------

    def write(self, data: Buffer, offset: int) -> int:
        """Write at ``offset`` and return the number of bytes; raise ``OSError`` (ENOSPC) where nothing was written."""
        self._marks.settle()
        end = offset + len(data)
        if offset < self._shown and data:
            first, last = offset >> self._shift, self._end_block(min(end, self._shown))
            if self._states[first:last].count(_UPPER) != last - first:
                with self._lock:
                    return self._redirect(data, offset, first, last)
        done = _write_all(self._upper, data, offset)
        if not done and data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return done

    def _redirect(self, data: Buffer, offset: int, first: int, last: int) -> int:
        """Write where some of the blocks ``first`` to before ``last`` are not upper: each of those as a whole."""
        end, (start, _), (_, stop) = offset + len(data), self._span(first), self._span(last - 1)
        head = tail = b""
        if start < offset and self._states[first] != _UPPER:
            head = self.read(offset - start, start)
        if end < stop and self._states[last - 1] != _UPPER:
            tail = self.read(stop - end, end)
        whole = memoryview(b"".join((head, data, tail)) if head or tail else data)
        place = offset - len(head)
        done = place + _write_all(self._upper, whole, place)
        if done < place + len(whole):
            # Full. What is whole counts; of a block that is not, nothing is to be seen.
            last = min(done >> self._shift, last)
            done = min(done, last << self._shift)
            if done <= offset or last <= first:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._note(first, last, whole, place)
        return min(done, end) - offset

    def _note(self, first: int, last: int, whole: memoryview, place: int) -> None:
        """Note blocks that were written, from what lies in ``whole``, which begins at ``place`` of the file."""
        if self._volatile:
            self._blocks.settle([(first, last)])
            return
        size, start, stop = 1 << self._shift, (first << self._shift) - place, self._shown - place
        bounds = range(start, start + (last - first << self._shift), size)
        # A start before the buffer belongs to an upper block, of which no checksum is taken.
        self._blocks.note(first, [whole[max(at, 0) : min(at + size, stop)] for at in bounds])

    def truncate(self, size: int) -> None:
        """Make the file ``size`` bytes long; what is new is zeros."""
        self._marks.settle()
        os.ftruncate(self._upper, size)
        if size >= self._shown:
            return
        with self._lock:
            self._shown = size
            self._blocks.cut(self._end_block(size))
            self._cut_since_sync = True
            self._marks.owe(size)
            block = size >> self._shift
            if size & (1 << self._shift) - 1 and self._states[block] == _PENDING:
                start = block << self._shift
                self._blocks.note(block, [os.pread(self._upper, size - start, start)])
        self._marks.settle()

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """Change the space of a range, as fallocate(2) says of ``mode``; raise ``OSError`` (EOPNOTSUPP)."""
        if mode & ~_KNOWN_MODES:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        self._marks.settle()
        syscalls.fallocate(self._upper, mode, offset, length)
        if mode & _ZEROING and offset < self._shown:
            with self._lock:
                self._zero(offset, min(offset + length, self._shown))

    def _zero(self, start: int, stop: int) -> None:
        """Make zeros of a part of what is shown, where the upper file has zeros already."""
        first = self._end_block(start)
        last = self._end_block(stop) if stop == self._shown else stop >> self._shift
        if first >= last:
            self._zero_part(start, min(stop, first << self._shift))
            self._zero_part(min(stop, first << self._shift), stop)
            return
        self._zero_part(start, first << self._shift)
        self._zero_part(last << self._shift, stop)
        zeros = bytes(1 << self._shift)
        for at in range(first, last, _MANY):
            until = min(at + _MANY, last)
            if self._volatile:
                self._blocks.settle([(at, until)])
            else:
                begin, end = self._span(until - 1)
                self._blocks.note(at, [zeros] * (until - at - 1) + [zeros[: end - begin]])

    def _zero_part(self, start: int, stop: int) -> None:
        """Make zeros of a part of one block, unless it is upper, and so done."""
        block = start >> self._shift
        if start < stop and self._states[block] != _UPPER:
            self._redirect(bytes(stop - start), start, block, block + 1)

    # -- syncing -------------------------------------------------------------------------------------------------------

    def sync(self, *, datasync: bool = False) -> None:
        """Wait until the data is on the disk; ``datasync`` leaves out times (fdatasync(2))."""
        if self._volatile:
            return
        with self._lock:
            if self._upper < 0:
                return  # which synced it, unless its last name was gone
            # Of their own, for it may be closed meanwhile.
            upper, map_fd = os.dup(self._upper), os.dup(self._map)
        try:
            self._sync(upper, map_fd, datasync=datasync)
        finally:
            os.close(upper)
            os.close(map_fd)

    def _sync(self, upper: int, map_fd: int, *, datasync: bool) -> None:
        if not self._durable:
            os.fsync(map_fd)
        with self._lock:
            runs = self._blocks.pending()
            whole, self._cut_since_sync = self._cut_since_sync or not (datasync and self._durable), False
        try:
            (os.fsync if whole else os.fdatasync)(upper)
        except OSError:
            self._cut_since_sync = whole
            raise
        self._durable = True
        if runs:
            self._settle(runs, map_fd)

    def _settle(self, runs: list[tuple[int, int]], map_fd: int) -> None:
        """Say on the disk that blocks are upper whose data is there."""
        with self._lock:
            if self._upper < 0:
                return
            self._blocks.settle(runs)
        try:
            os.fdatasync(map_fd)
        except OSError:
            # The kernel tells of a failure once; next time these must be written again.
            with self._lock:
                self._blocks.unsettle(runs)
            raise


def _write_all(fd: int, data: Buffer, offset: int) -> int:
    """Write and return the number of bytes, fewer where the disk is full; raise ``OSError`` where there are none."""
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        try:
            more = os.pwrite(fd, memoryview(data)[done:], offset + done)
        except OSError:
            break
        if not more:
            break
        done += more
    return done
