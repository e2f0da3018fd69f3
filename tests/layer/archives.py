"""Tar streams for tests, byte by byte, so that they can also be what no sound program would write."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path

from layerfs.contract import LayerRoot, Whiteouts
from layerfs.layer.apply import Applied, OwnerPolicy, apply
from layerfs.layer.limits import Limits

END = bytes(1024)
GNU = b"ustar  \0"
USTAR = b"ustar\x0000"


def header(
    name: bytes,
    flag: bytes = b"0",
    *,
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 1_600_000_000,
    link: bytes = b"",
    magic: bytes = USTAR,
    major: int = 0,
    minor: int = 0,
    prefix: bytes = b"",
    checksum: int | None = None,
) -> bytes:
    """Pack one header block; numbers may be given as the raw bytes of their field."""

    def octal(value: int | bytes, width: int) -> bytes:
        return value if isinstance(value, bytes) else b"%0*o" % (width - 1, value)

    block = struct.pack(
        "100s8s8s8s12s12s8sc100s8s32s32s8s8s167s",
        name,
        octal(mode, 8),
        octal(uid, 8),
        octal(gid, 8),
        octal(size, 12),
        octal(mtime, 12),
        b" " * 8,
        flag,
        link,
        magic,
        b"",
        b"",
        octal(major, 8),
        octal(minor, 8),
        prefix,
    )
    stored = sum(block) if checksum is None else checksum
    return block[:148] + b"%06o\0 " % stored + block[156:]


def pad(data: bytes) -> bytes:
    """Fill up to whole blocks."""
    return data + bytes(-len(data) % 512)


def file(name: bytes, content: bytes = b"", **fields: int | bytes) -> bytes:
    """Pack a regular file."""
    return header(name, size=len(content), **fields) + pad(content)  # type: ignore[arg-type]  # each field has its own


def directory(name: bytes, mode: int = 0o755, **fields: int | bytes) -> bytes:
    """Pack a directory."""
    return header(name, b"5", mode=mode, **fields)  # type: ignore[arg-type]  # each field has its own


def symlink(name: bytes, target: bytes) -> bytes:
    """Pack a symbolic link."""
    return header(name, b"2", link=target, mode=0o777)


def hard_link(name: bytes, target: bytes) -> bytes:
    """Pack a hard link."""
    return header(name, b"1", link=target)


def extension(flag: bytes, data: bytes, *, size: int | None = None) -> bytes:
    """Pack an extension header (x, g, L, K) of which the size may lie."""
    return header(b"extension", flag, size=len(data) if size is None else size) + pad(data)


def record(key: bytes, value: bytes) -> bytes:
    """Pack one PAX record."""
    bare = len(key) + len(value) + 3
    length = bare + len(str(bare))
    length = bare + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def pax(records: Mapping[bytes, bytes], flag: bytes = b"x") -> bytes:
    """Pack a PAX header."""
    return extension(flag, b"".join(record(key, value) for key, value in records.items()))


def unpack(
    root: Path,
    *entries: bytes,
    end: bytes = END,
    whiteouts: Whiteouts = Whiteouts.REMOVE,
    lower: Path | None = None,
    base: bool = False,
    limits: Limits | None = None,
    owner: OwnerPolicy = OwnerPolicy.KEEP,
) -> Applied:
    """Apply a layer made of entries."""
    root.mkdir(exist_ok=True)
    stream = io.BytesIO(b"".join(entries) + end)
    return apply(stream, LayerRoot(root, whiteouts), lower=lower, base=base, limits=limits or Limits(), owner=owner)
