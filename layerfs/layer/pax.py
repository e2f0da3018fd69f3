"""The records of PAX headers: read strictly, and merged into the entry that they are about.

The rules are those of POSIX.1-2008 pax(1), "pax Extended Header", of star (``SCHILY.xattr.``) and of libarchive
(``LIBARCHIVE.xattr.``).
"""

from __future__ import annotations

import binascii
import re
import urllib.parse
from collections.abc import Mapping

from layerfs.errors import Corrupt
from layerfs.layer.sparse import merge_sparse
from layerfs.layer.tar import NANO, Header, PaxRecords, decimal, shown

_DECIMAL = re.compile(rb"(-?)([0-9]{1,30})(?:\.([0-9]*))?")
_ONLY_LOCAL = (b"path", b"linkpath", b"size")
_GLOBAL = frozenset({b"uid", b"gid", b"mtime", b"atime"})
_STAR_XATTR, _LIBARCHIVE_XATTR = b"SCHILY.xattr.", b"LIBARCHIVE.xattr."
_XATTR_KEYS = (_STAR_XATTR, _LIBARCHIVE_XATTR)
_MOST_OF_XATTRS = 1 << 16
"""Bytes of an attribute's value, and of the names of all of a file's (xattr(7), "Limits")."""


def parse_pax(data: bytes) -> PaxRecords:
    """Read the records of an extended header, each ``<length> <key>=<value>`` and a line feed."""
    records: PaxRecords = []
    position = 0
    while position < len(data):
        blank = data.find(b" ", position, position + 20)
        digits = data[position:blank]
        if blank < 0 or not digits.isdigit():
            raise Corrupt("a PAX header holds a record without a length")
        end = position + int(digits)
        equals = data.find(b"=", blank + 1, end)
        if end > len(data) or equals < 0 or data[end - 1 : end] != b"\n" or equals == blank + 1:
            raise Corrupt("a PAX header holds a record that is no key=value of its length")
        records.append((data[blank + 1 : equals], data[equals + 1 : end - 1]))
        position = end
    return records


def check_global(records: PaxRecords) -> None:
    """Refuse a global header that would give every file the same name, target or size."""
    for key, _ in records:
        if key in _ONLY_LOCAL or key.startswith(b"GNU.sparse."):
            raise Corrupt(f"a global PAX header sets {shown(key)}, which can only be right for one file")


def meaningful(records: PaxRecords) -> PaxRecords:
    """Return the records that `merge_pax` understands, of those that may be global."""
    return [(key, value) for key, value in records if key in _GLOBAL or key.startswith(_XATTR_KEYS)]


def check_names(local: PaxRecords, long_name: bytes | None, long_link: bytes | None) -> None:
    """Refuse an entry that GNU's and POSIX's extensions name differently: GNU tar takes the one, Go the other."""
    if long_name is None and long_link is None:
        return
    last = dict(local)
    for key, text in ((b"path", long_name), (b"linkpath", long_link)):
        if text is not None and last.get(key, text) not in (b"", text):
            raise Corrupt(f"a tar entry has two long names or targets, {shown(text)} and {shown(last[key])}")


def merge_pax(header: Header, records: PaxRecords) -> None:
    """Give the entry what its records say, the later over the earlier; an empty value takes an earlier one back."""
    last = dict(records)
    if value := last.get(b"path"):
        header.name = value
    if value := last.get(b"linkpath"):
        header.link = value
    if value := last.get(b"size"):
        header.size = decimal(value, b"size")
    if value := last.get(b"uid"):
        header.uid = decimal(value, b"uid")
    if value := last.get(b"gid"):
        header.gid = decimal(value, b"gid")
    if value := last.get(b"mtime"):
        header.mtime = _nanoseconds(value)
    if value := last.get(b"atime"):
        header.atime = _nanoseconds(value)
    header.xattrs = _xattrs(last)
    if any(key.startswith(b"GNU.sparse.") for key in last):
        merge_sparse(header, records, last)


def _nanoseconds(value: bytes) -> int:
    """Read decimal seconds; digits beyond the ninth are cut off towards the past, as a file system does."""
    match = _DECIMAL.fullmatch(value)
    if match is None:
        raise Corrupt(f"a PAX record holds {value[:40]!r}, which is no time")
    digits = match[3] or b""
    fraction = int(digits[:9].ljust(9, b"0"))
    whole = int(match[2]) * NANO
    if not match[1]:
        return whole + fraction
    return -whole - fraction - (1 if digits[9:].strip(b"0") else 0)


def _xattrs(records: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Collect extended attributes: those of star (as they are), over those of libarchive (URL and base64 encoded)."""
    found: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key.startswith(_LIBARCHIVE_XATTR):
            try:
                found[urllib.parse.unquote_to_bytes(key[len(_LIBARCHIVE_XATTR) :])] = binascii.a2b_base64(value + b"==")
            except binascii.Error as error:
                raise Corrupt(f"the PAX record {shown(key)} is no base64") from error
    for key, value in records.items():
        if key.startswith(_STAR_XATTR):
            found[key[len(_STAR_XATTR) :]] = value
    if any(not name or b"\0" in name for name in found):
        raise Corrupt("an extended attribute has an empty name or a NUL in it")
    if sum(len(name) + 1 for name in found) > _MOST_OF_XATTRS or any(
        len(value) > _MOST_OF_XATTRS for value in found.values()
    ):
        raise Corrupt("a tar entry has longer extended attributes than a file can have")
    return found
