"""Hostile layers out of plain bytes: each byte is a decision, so a fuzzer that only knows bytes reaches every field.

The bytes decide on headers, extension headers, sparse maps and payloads that are mostly sound, then on damage to the
stream, then on the compression and on damage to that. `survive` holds what must be true of every layer.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import zstandard

from layerfs.contract import LayerRoot, Whiteouts
from layerfs.errors import LayerfsError
from layerfs.layer.apply import OwnerPolicy, apply
from layerfs.layer.limits import Limits
from layerfs.layer.reader import TarReader
from tests.layer import archives, trees
from tests.layer.trees import Node

LIMITS = Limits(
    stream_bytes=4 << 20, file_bytes=1 << 20, entries=200, header_bytes=1 << 14, depth=60, ratio=200, ratio_free=1 << 20
)
"""Small, so that a case takes no time, and so that they are met."""

T = TypeVar("T")

_NAMES = (
    *(
        b"a",
        b"a/b",
        b"a/b/c",
        b"d",
        b"d/e",
        b"l",
        b"l/x",
        b"./",
        b".",
        b"/",
        b"..",
        b"../canary/f",
        b"a/../../canary/f",
    ),
    *(b"/etc/passwd", b"a/", b"a//b", b"", b"x" * 99, b"x" * 100, b"\xff\n", b"l/../../canary", b"low/f", b"low/sub/f"),
    *(b".wh.a", b"a/.wh.b", b".wh..wh..opq", b"a/.wh..wh..opq", b"low/.wh.f", b".wh.", b".wh...", b".wh..wh.plnk/1"),
)
_TARGETS = (*_NAMES, b"../canary", b"../../canary/f", b"/", b"l", b"low", b"x" * 300)
_FLAGS = tuple(bytes([flag]) for flag in b"0123456757SLKxg\0XZ")
_NUMBERS = (0, 1, 7, 511, 512, 513, 0o644, 0o4755, 65534, 1 << 21, (1 << 33) - 1)
_RAW = (
    b"\xff" * 8,
    b"\x80" + b"\0" * 6 + b"\1",
    b"       \0",
    b"\0" * 8,
    b"9999999\0",
    b"-0000001",
    b"\x80" + b"\xff" * 7,
)
_SIZES: tuple[int | bytes, ...] = (0, 1, 1 << 20, b"\x80" + b"\xff" * 11, b"\xff" * 12)
_TIMES: tuple[int | bytes, ...] = (0, 1, 1_700_000_000, b"\xff" * 12, b"\x80" + b"\0" * 10 + b"\1")
_KEYS = (
    *(b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"atime", b"hdrcharset", b"comment"),
    *(b"SCHILY.xattr.user.k", b"SCHILY.xattr.trusted.overlay.opaque", b"SCHILY.xattr.trusted.overlay.redirect"),
    *(b"SCHILY.xattr.system.posix_acl_access", b"SCHILY.xattr.security.capability", b"LIBARCHIVE.xattr.user.k"),
    *(b"GNU.sparse.map", b"GNU.sparse.size", b"GNU.sparse.realsize", b"GNU.sparse.major", b"GNU.sparse.minor"),
    *(b"GNU.sparse.name", b"GNU.sparse.numblocks", b"GNU.sparse.offset", b"GNU.sparse.numbytes", b"", b"=", b"\0"),
)
_VALUES = (
    *(b"", b"0", b"1", b"5", b"512", b"-1", b"1e9", b"99999999999999999999", b"0.5", b"-1.25", b"1.9999999999"),
    *(b"0,1", b"0,5,10,5", b"5,5,0,5", b"0,5,3,5", b"1,0", b"0", b"y", b"Zm9v", b"\xff\0=\n", b"a" * 300),
)


class Choices:
    """Decisions read from bytes; where these end, the first of everything is taken."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Tell whether bytes are left."""
        return self._at < len(self._data)

    def below(self, end: int) -> int:
        """Return a number from 0 to ``end`` - 1."""
        size = 1 if end <= 256 else 4
        piece = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(piece, "big") % end

    def one(self, choices: Sequence[T]) -> T:
        """Return one of them."""
        return choices[self.below(len(choices))]

    def maybe(self, one_in: int) -> bool:
        """Say yes once in so many times."""
        return self.below(one_in) == one_in - 1


def layer(choices: Choices) -> bytes:
    """Build a layer."""
    entries: list[bytes] = []
    while choices and len(entries) < 40:
        entries.append(_entry(choices))
    stream = b"".join(entries) + choices.one((archives.END, b"", bytes(512), archives.END + b"rest"))
    return _damaged(choices, _compressed(choices, _damaged(choices, stream)))


def _entry(choices: Choices) -> bytes:
    """Build an entry with what belongs before and behind it."""
    content = bytes(choices.one((0, 0, 1, 5, 511, 512, 513, 3000)))
    before = b""
    match choices.below(8):
        case 5:
            before = archives.pax({choices.one(_KEYS): choices.one(_VALUES) for _ in range(1 + choices.below(4))})
        case 6:
            flag = choices.one((b"x", b"g", b"L", b"K"))
            data = choices.one((*_NAMES, b"99 path=a\n", b"0 a=b\n", b"11 path=a/b\n"))
            before = archives.extension(flag, data, size=choices.one((None, None, 0, 1 << 13, 1 << 40)))
        case 7:
            before, content = _sparse(choices, content)
        case _:
            pass
    return before + _header(choices, len(content)) + archives.pad(content)


def _header(choices: Choices, length: int) -> bytes:
    def number(*usual: int) -> int | bytes:
        return choices.one(_RAW) if choices.maybe(40) else choices.one((*usual, *usual, *usual, *_NUMBERS[:-2]))

    flag = choices.one(_FLAGS)
    return archives.header(
        choices.one(_NAMES)[:100],
        flag,
        size=choices.one(_SIZES) if choices.maybe(20) else length,
        mode=number(0o644, 0o755),
        uid=number(0),
        gid=number(0),
        mtime=choices.one(_TIMES),
        link=choices.one(_TARGETS)[:100],
        magic=choices.one((archives.USTAR, archives.USTAR, archives.GNU, bytes(8))),
        major=choices.one((0, 1, 5, 4096)),
        minor=choices.one((0, 3, 1 << 20)),
        prefix=choices.one((b"", b"", b"", b"../..", b"low", b"p" * 155)),
        checksum=0 if choices.maybe(60) else None,
    )


def _sparse(choices: Choices, content: bytes) -> tuple[bytes, bytes]:
    """Build the records of a sparse file, and its payload with the map in front where the format has it there."""
    numbers = [choices.below(1200) for _ in range(2 * choices.below(4))]
    real = choices.one((2000, len(content), 0, 1 << 21))
    if choices.maybe(2):
        pairs = choices.one((*[len(numbers) // 2] * 6, 1 << 20, 10**29))
        text = b"%d\n" % pairs + b"".join(b"%d\n" % one for one in numbers)
        records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"%d" % real}
        return archives.pax(records), archives.pad(text) + content
    listed = b",".join(b"%d" % one for one in numbers)
    return archives.pax({b"GNU.sparse.size": b"%d" % real, b"GNU.sparse.map": listed}), content


def _compressed(choices: Choices, stream: bytes) -> bytes:
    """Compress a stream, in up to three members or frames."""
    kind = choices.below(4)
    if kind < 2:
        return stream
    cuts = sorted({0, len(stream), *(choices.below(len(stream) + 1) for _ in range(choices.below(3)))})
    pieces = [stream[start:end] for start, end in pairwise(cuts)] or [stream]
    if kind == 2:
        return b"".join(gzip.compress(piece, 1, mtime=0) for piece in pieces) + bytes(choices.one((0, 0, 512)))
    checked = zstandard.ZstdCompressor(level=1, write_checksum=True)
    return choices.one((b"", b"\x5a\x2a\x4d\x18\1\0\0\0x")).join(checked.compress(piece) for piece in pieces)


def _damaged(choices: Choices, data: bytes) -> bytes:
    """Leave a stream whole more often than not; else change, cut, repeat or move some of it."""
    if not data or choices.below(8) < 5:
        return data
    at = choices.below(len(data))
    match choices.below(5):
        case 0:
            return data[:at] + bytes([choices.below(256)]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + data[max(0, at - 512) :]
        case 3:
            return data[: at - at % 512] + bytes(512) + data[at - at % 512 :]
        case _:
            return data[:at] + data[at + choices.below(600) :]


def survive(place: Path, data: bytes) -> bool:
    """Read and apply a layer in a directory that is cleared before; return whether it was taken.

    Nothing but a `LayerfsError` may come of it, nothing beside the root may change, and no thread and no descriptor may
    stay; what is taken must have the digest of its bytes, and be taken the same way again.
    """
    for name in os.listdir(place):
        shutil.rmtree(place / name)  # what the case before left when it failed
    choices = Choices(hashlib.sha256(data).digest())
    whiteouts = choices.one(list(Whiteouts))
    canary = trees.make(place / "canary", {b"f": Node("file", content=b"secret", mode=0o600)})
    lower = trees.make(place / "lower", _LOWER)
    before = trees.describe(canary), trees.describe(lower)
    held = threading.active_count(), len(os.listdir("/proc/self/fd"))
    _read(data)
    taken = [_apply(place / name, lower, data, whiteouts, Choices(hashlib.sha256(data).digest())) for name in "rs"]
    assert (trees.describe(canary), trees.describe(lower)) == before
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == held
    assert sorted(os.listdir(place)) == ["canary", "lower", "r", "s"]
    assert taken[0] == taken[1]
    if taken[0]:
        one, other = (_timeless(trees.describe(place / name)) for name in "rs")
        assert not trees.difference(one, other)
    return taken[0] is not None


_LOWER = {
    b"low": Node("dir", mode=0o751, uid=5),
    b"low/f": Node("file", content=b"lower"),
    b"low/sub": Node("dir"),
    b"l": Node("link", target=b"low"),
    b"a": Node("link", target=b"../canary"),
}


def _timeless(seen: dict[bytes, trees.Seen]) -> dict[bytes, trees.Seen]:
    """Take away the time of whiteouts, and of a root that no entry speaks of: they are those of the test."""
    return {name: one for name, one in seen.items() if one.kind != "char" and name != b"."}


def _read(data: bytes) -> None:
    """Give the bytes to the reader alone, as if they were not compressed, in pieces of odd sizes."""
    pieces = (data[start : start + 700] for start in range(0, len(data), 700))
    reader = TarReader(pieces, LIMITS)
    try:
        for header in reader:
            assert sum(map(len, reader.payload())) == header.size
    except LayerfsError:
        pass


def _apply(root: Path, lower: Path, data: bytes, whiteouts: Whiteouts, choices: Choices) -> str | None:
    """Apply to a new root; return the digest, or None where the layer was refused."""
    if whiteouts is Whiteouts.REMOVE:
        shutil.copytree(lower, root, symlinks=True)
    else:
        root.mkdir()
    try:
        applied = apply(
            io.BytesIO(data),
            LayerRoot(root, whiteouts),
            lower=lower if choices.maybe(2) else None,
            base=whiteouts is not Whiteouts.REMOVE and choices.maybe(3),
            owner=choices.one(list(OwnerPolicy)),
            limits=LIMITS,
        )
    except LayerfsError:
        return None
    assert applied.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert applied.compressed_size == len(data)
    return str(applied.diff_id)
