"""The maps of sparse files, in the four formats of GNU tar (GNU tar manual, "Storing Sparse Files").

Extents follow each other in the payload without padding, as Go's reader and libarchive have it.
"""

from __future__ import annotations

from collections.abc import Mapping

from layerfs.errors import Corrupt
from layerfs.layer.tar import BLOCK_SIZE, REGULAR, Header, PaxRecords, decimal, number, shown


def merge_sparse(header: Header, records: PaxRecords, last: Mapping[bytes, bytes]) -> None:
    """Understand GNU's sparse formats 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files")."""
    if header.type != REGULAR:
        raise Corrupt(f"the tar entry {shown(header.name)} is sparse and no regular file")
    if value := last.get(b"GNU.sparse.name"):
        header.name = value
    if value := last.get(b"GNU.sparse.realsize") or last.get(b"GNU.sparse.size"):
        header.real_size = decimal(value, b"GNU.sparse.size")
    version = (last.get(b"GNU.sparse.major"), last.get(b"GNU.sparse.minor"))
    if version == (b"1", b"0"):
        header.sparse_map_in_data = True
        header.extents = ()
    elif version not in ((None, None), (b"0", b"0"), (b"0", b"1")):
        raise Corrupt(f"the tar entry {shown(header.name)} has an unknown sparse format")
    elif b"GNU.sparse.map" in last:
        header.extents = _extents([decimal(part, b"GNU.sparse.map") for part in _listed(last[b"GNU.sparse.map"])])
    elif b"GNU.sparse.numblocks" in last:
        header.extents = _extents(_pairs_of_format_0_0(records))
    else:
        raise Corrupt(f"the tar entry {shown(header.name)} is sparse and has no map")


def _listed(value: bytes) -> list[bytes]:
    """Split a map of format 0.1; an empty one is a file that is all hole."""
    return value.split(b",") if value else []


def _pairs_of_format_0_0(records: PaxRecords) -> list[int]:
    """Collect the repeated keys of format 0.0, which must take turns."""
    numbers: list[int] = []
    for key, value in records:
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (key == b"GNU.sparse.numbytes") != (len(numbers) % 2 == 1):
                raise Corrupt("a sparse map has an offset without a length")
            numbers.append(decimal(value, key))
    return numbers


def _extents(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    """Pair offsets with lengths."""
    if len(numbers) % 2:
        raise Corrupt("a sparse map has an offset without a length")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def parse_sparse_map(text: bytes) -> tuple[tuple[tuple[int, int], ...], int] | None:
    """Read the map in front of the data of format 1.0: its extents and bytes; None where ``text`` must be longer."""
    end = text.find(b"\n")
    if end < 0:
        return None
    wanted = 2 * decimal(text[:end], b"sparse map")
    parts = text.split(b"\n", min(wanted + 1, len(text)))  # no split counts as far as the number may
    if len(parts) < wanted + 2:
        return None
    used = len(text) - len(parts[-1])
    return _extents([decimal(part, b"sparse map") for part in parts[1:-1]]), -(-used // BLOCK_SIZE) * BLOCK_SIZE


def parse_gnu_sparse(block: memoryview, *, first: bool) -> tuple[list[tuple[int, int]], bool]:
    """Read the map inside an old GNU header (4 extents) or an extension of it (21): extents, and if more follow."""
    start, count, flag = (386, 4, 482) if first else (0, 21, 504)
    extents: list[tuple[int, int]] = []
    for at in range(start, start + 24 * count, 24):
        if block[at] == 0 and block[at + 12] == 0:
            break
        extents.append((number(bytes(block[at : at + 12])), number(bytes(block[at + 12 : at + 24]))))
    return extents, block[flag] not in (0, 0x30)


def gnu_real_size(block: memoryview) -> int:
    """Read the length of a file in an old GNU sparse header."""
    return number(bytes(block[483:495]))


def check_extents(header: Header) -> None:
    """Refuse a sparse map that overlaps, runs backwards or beyond the end, or has not the length of the payload."""
    position = total = 0
    for offset, length in header.extents or ():
        if offset < position or length < 0:
            raise Corrupt(f"the sparse map of {shown(header.name)} overlaps or runs backwards")
        position = offset + length
        total += length
    if position > header.real_size:
        raise Corrupt(f"the sparse map of {shown(header.name)} reaches beyond the end of the file")
    if total != header.size:
        raise Corrupt(f"the sparse map of {shown(header.name)} does not fit its data: {total} and {header.size} bytes")
