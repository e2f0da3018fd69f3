"""Pack tar headers: ustar, and a PAX header before it for what does not fit; `layerfs.layer.tar` reads them.

User and group names stay empty, so that the bytes depend on nothing but the file.
"""

from __future__ import annotations

import binascii
import struct
import urllib.parse
import zlib

from layerfs.layer.tar import BLOCK_SIZE, CHECKSUM, NANO, PAX_LOCAL, Header

_OCTAL_8 = 0o7777777
_OCTAL_12 = 0o77777777777
_NAME_BYTES = 100


def pack(header: Header) -> bytes:
    """Return the header blocks of an entry."""
    records = _needed_records(header)
    extended = b""
    if records:
        data = b"".join(_record(key, value) for key, value in sorted(records.items()))
        extended = _ustar(b"PaxHeaders/" + header.name[-80:].replace(b"/", b"_"), PAX_LOCAL, len(data)) + padded(data)
    seconds = header.mtime // NANO
    return extended + _ustar(
        header.name[:_NAME_BYTES] if b"path" in records else header.name,
        header.type,
        header.size if header.size <= _OCTAL_12 else 0,
        mode=header.mode,
        uid=header.uid if header.uid <= _OCTAL_8 else 0,
        gid=header.gid if header.gid <= _OCTAL_8 else 0,
        mtime=seconds if 0 <= seconds <= _OCTAL_12 else 0,
        link=header.link[:_NAME_BYTES] if b"linkpath" in records else header.link,
        device=(header.major, header.minor),
    )


def padded(data: bytes) -> bytes:
    """Fill up to whole blocks."""
    return data + bytes(-len(data) % BLOCK_SIZE)


def _needed_records(header: Header) -> dict[bytes, bytes]:
    """Collect what a ustar header can not say."""
    records = dict(_xattr_record(name, value) for name, value in header.xattrs.items())
    if len(header.name) > _NAME_BYTES:
        records[b"path"] = header.name
    if len(header.link) > _NAME_BYTES:
        records[b"linkpath"] = header.link
    if header.mtime % NANO or not 0 <= header.mtime <= _OCTAL_12 * NANO:
        records[b"mtime"] = _seconds(header.mtime)
    if header.size > _OCTAL_12:
        records[b"size"] = b"%d" % header.size
    if header.uid > _OCTAL_8:
        records[b"uid"] = b"%d" % header.uid
    if header.gid > _OCTAL_8:
        records[b"gid"] = b"%d" % header.gid
    return records


def _xattr_record(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return the record of an extended attribute; libarchive's form can have a name with ``=`` in it, star's cannot."""
    if b"=" not in name:
        return b"SCHILY.xattr." + name, value
    quoted = urllib.parse.quote_from_bytes(name).encode()
    return b"LIBARCHIVE.xattr." + quoted, binascii.b2a_base64(value, newline=False)


def _seconds(time: int) -> bytes:
    """Write nanoseconds as decimal seconds, without needless zeros."""
    whole, fraction = divmod(abs(time), NANO)
    digits = b".%09d" % fraction if fraction else b""
    return (b"-" if time < 0 else b"") + b"%d" % whole + digits.rstrip(b"0")


def _record(key: bytes, value: bytes) -> bytes:
    """Write one PAX record, whose length counts its own digits."""
    bare = len(key) + len(value) + 3
    length = bare + len(str(bare))
    length = bare + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _ustar(
    name: bytes,
    kind: bytes,
    size: int,
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """Pack one header block and its checksum."""
    block = struct.pack(
        "100s8s8s8s12s12s8sc100s8s64s8s8s167x",
        name,
        b"%07o" % mode,
        b"%07o" % uid,
        b"%07o" % gid,
        b"%011o" % size,
        b"%011o" % mtime,
        b" " * 8,
        kind,
        link,
        b"ustar\x0000",
        b"",
        b"%07o" % device[0],
        b"%07o" % device[1],
    )
    # The low half of Adler-32 is the sum of the bytes, and 1, modulo 65,521, which two names of 100 bytes and numbers
    # stay below; it takes a tenth of the time.
    checksum = (zlib.adler32(block) & 0xFFFF) - 1
    return block[: CHECKSUM.start] + b"%06o\0 " % checksum + block[CHECKSUM.stop :]
