"""Read the entries of an uncompressed tar stream that may be hostile, in one pass and without copying payloads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from layerfs.errors import Corrupt
from layerfs.layer import pax, sparse, tar
from layerfs.layer.limits import Limits, check
from layerfs.layer.tar import BLOCK_SIZE, Header, PaxRecords


class TarReader:
    """Iterate over the headers of a stream of blocks; `payload` gives the data of the one returned last.

    What was not read of a payload is skipped. After the end of the archive the rest of the stream is left in the
    iterator for the caller, who must drain it: the DiffID covers it.
    """

    def __init__(self, blocks: Iterator[bytes], limits: Limits) -> None:
        self._blocks = blocks
        self._limits = limits
        self._block = memoryview(b"")
        self._position = 0
        self._unread = 0
        self._padding = 0
        self._global: PaxRecords = []
        self.entries = 0
        """Headers read so far, extension headers included."""

    def __iter__(self) -> Iterator[Header]:
        """Yield each entry, its extension headers merged into it."""
        while (header := self._next()) is not None:
            yield header

    def payload(self) -> Iterable[memoryview]:
        """Give the data of the entry returned last, in slices of the stream's blocks."""
        end = self._position + self._unread
        if not 0 < self._unread <= len(self._block) - self._position:
            return self._pieces()
        piece = self._block[self._position : end]
        self._position = end
        self._unread = 0
        return (piece,)

    def _pieces(self) -> Iterator[memoryview]:
        while self._unread:
            piece = self._some(self._unread)
            self._unread -= len(piece)
            yield piece

    # -- entries -------------------------------------------------------------------------------------------------------

    def _next(self) -> Header | None:
        """Return the next entry of a file; None at the end of the archive."""
        long_name: bytes | None = None
        long_link: bytes | None = None
        local: PaxRecords = []
        while (block := self._header_block()) is not None:
            header = tar.parse_header(block)
            if header.type not in tar.EXTENSIONS:
                pax.check_names(local, long_name, long_link)
                header.name = long_name or header.name
                header.link = long_link or header.link
                return self._finish(header, block, local)
            match header.type:
                case tar.PAX_LOCAL:
                    local = pax.parse_pax(self._extension(header))
                case tar.PAX_GLOBAL:
                    self._add_global(pax.parse_pax(self._extension(header)))
                case tar.GNU_LONG_NAME:
                    long_name = self._extension(header).partition(b"\0")[0]
                case _:
                    long_link = self._extension(header).partition(b"\0")[0]
        if long_name or long_link or local:
            raise Corrupt("the tar stream ends after an extension header")
        return None

    def _add_global(self, records: PaxRecords) -> None:
        """Remember the global records that mean something, as each entry has to be given them.

        The later ones of a key replace the earlier.
        """
        pax.check_global(records)
        merged = dict(self._global)
        merged.update(pax.meaningful(records))
        self._global = list(merged.items())
        length = sum(len(key) + len(value) for key, value in merged.items())
        check(self._limits, "global_bytes", length, "what PAX headers say of all entries")

    def _finish(self, header: Header, block: memoryview, local: PaxRecords) -> Header:
        """Merge the extensions into an entry, check it, and set the reader on its payload."""
        if local or self._global:
            pax.merge_pax(header, self._global + local)
        # Unix V7 has no type for directories. Only now: the name that an extension replaces is cut anywhere.
        if header.type == tar.REGULAR and header.name.endswith(b"/") and header.extents is None:
            tar.check_v7_directory(header, block)
            header.type = tar.DIRECTORY
        if header.type == tar.GNU_SPARSE:
            self._read_gnu_sparse(header, block)
        if header.type in tar.WITHOUT_DATA:
            header.size = 0
        if header.extents is None:
            header.real_size = header.size
        tar.check_header(header)
        self._unread = header.size
        self._padding = -header.size % BLOCK_SIZE
        if header.extents is not None:
            if header.sparse_map_in_data:
                self._read_sparse_map(header)
            sparse.check_extents(header)
        limits = self._limits
        if header.real_size > limits.file_bytes:
            check(limits, "file_bytes", header.real_size, f"the length of {tar.shown(header.name)}")
        if len(header.name) > limits.path_bytes or len(header.link) > limits.path_bytes:
            longest = max(len(header.name), len(header.link))
            check(limits, "path_bytes", longest, f"the path or target of {tar.shown(header.name)}")
        return header

    def _read_gnu_sparse(self, header: Header, block: memoryview) -> None:
        """Read the map of an old GNU sparse file, which goes on in blocks of its own."""
        header.type = tar.REGULAR
        if header.extents is not None:
            raise Corrupt(f"the tar entry {tar.shown(header.name)} is sparse in two formats")
        header.real_size = sparse.gnu_real_size(block)
        extents, more = sparse.parse_gnu_sparse(block, first=True)
        read = BLOCK_SIZE
        while more:
            read += BLOCK_SIZE
            check(self._limits, "header_bytes", read, f"the sparse map of {tar.shown(header.name)}")
            found, more = sparse.parse_gnu_sparse(memoryview(self._exactly(BLOCK_SIZE)), first=False)
            extents += found
        header.extents = tuple(extents)

    def _read_sparse_map(self, header: Header) -> None:
        """Read the map of format 1.0 from the front of the payload."""
        text = b""
        while (parsed := sparse.parse_sparse_map(text)) is None:
            step = min(self._unread, max(BLOCK_SIZE, len(text)))  # doubling keeps the work linear
            step -= step % BLOCK_SIZE
            if not step:
                raise Corrupt(f"the sparse map of {tar.shown(header.name)} is truncated")
            check(self._limits, "header_bytes", len(text) + step, f"the sparse map of {tar.shown(header.name)}")
            text += self._exactly(step)
            self._unread -= step
        header.extents, used = parsed
        header.size -= used
        if used < len(text):
            self._unread += len(text) - used
            self._put_back(text[used:])

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def _header_block(self) -> memoryview | None:
        """Return the next header block; None at the end: two zero blocks, or one at the end of the stream, or none."""
        if self._unread:
            self._skip(self._unread)
            self._unread = 0
        if self._padding:
            self._skip_padding()
        self.entries += 1
        if self.entries > self._limits.entries:
            check(self._limits, "entries", self.entries, "the number of entries")
        block = self._block_or_end()
        if block is not None and (block[0] or block != tar.ZERO_BLOCK):
            return block
        self.entries -= 1
        if block is None:
            return None
        following = self._block_or_end()
        if following is not None and following != tar.ZERO_BLOCK:
            raise Corrupt("the tar stream goes on after a lone block of zeros")
        return None

    def _block_or_end(self) -> memoryview | None:
        """Return 512 bytes; None where the stream has ended."""
        position = self._position
        if position + BLOCK_SIZE <= len(self._block):
            self._position = position + BLOCK_SIZE
            return self._block[position : position + BLOCK_SIZE]
        if position == len(self._block) and not self._load():
            return None
        return memoryview(self._exactly(BLOCK_SIZE))

    def _extension(self, header: Header) -> bytes:
        """Return the data of an extension header."""
        if header.size < 0:
            raise Corrupt("a tar extension header has a negative size")
        check(self._limits, "header_bytes", header.size, "a tar extension header")
        data = self._exactly(header.size)
        self._skip(-header.size % BLOCK_SIZE)
        return data

    def _load(self) -> bool:
        """Go to the next block that is not empty; False at the end of the stream."""
        for block in self._blocks:
            if block:
                self._block = memoryview(block)
                self._position = 0
                return True
        self._block = memoryview(b"")
        self._position = 0
        return False

    def _some(self, most: int) -> memoryview:
        """Return at least one byte, and not more than ``most``."""
        if self._position == len(self._block) and not self._load():
            raise Corrupt("the tar stream is truncated")
        piece = self._block[self._position : self._position + most]
        self._position += len(piece)
        return piece

    def _exactly(self, length: int) -> bytes:
        """Return ``length`` bytes, copied together from as many blocks as it takes."""
        parts: list[memoryview] = []
        while length:
            piece = self._some(length)
            parts.append(piece)
            length -= len(piece)
        return b"".join(parts)

    def _skip(self, length: int) -> None:
        """Pass over ``length`` bytes."""
        while length:
            length -= len(self._some(length))

    def _skip_padding(self) -> None:
        """Pass over what fills up the last block of a payload.

        It may be missing at the end of the stream: `umoci insert` (0.4) does not close its archives, and Go's reader,
        which is that of the other tools, takes it so. Nothing of the file is missing, which the DiffID proves.
        """
        end = self._position + self._padding
        if end <= len(self._block):
            self._position = end
        else:
            while self._padding and (self._position < len(self._block) or self._load()):
                self._padding -= len(self._some(self._padding))
        self._padding = 0

    def _put_back(self, data: bytes) -> None:
        """Return bytes to the front of the stream."""
        self._block = memoryview(data + bytes(self._block[self._position :]))
        self._position = 0
