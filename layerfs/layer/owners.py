"""Owners in a store with an *id map*: a layer says the ids inside a user namespace, the disk has those outside.

Mapped are the owner and the group of every entry, the users and groups that its access control lists name, and the root
of the namespace for which a file capability holds. What the map does not have cannot be said on the other side, and is
an error there: no id is ever replaced by another one that stands for "somebody".

Sources: user_namespaces(7), ``include/uapi/linux/posix_acl_xattr.h``, and capabilities(7), "File capability extended
attribute versioning".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

from layerfs.errors import FailedPrecondition, InvalidArgument, Unsupported
from layerfs.kernel.userns import IdMap, IdRange
from layerfs.layer import attributes
from layerfs.layer.tar import Header, shown

_RANGE = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})")
_END = (1 << 32) - 1
"""The highest id is (uid_t) -1, which chown(2) takes for "leave it"."""

_ACL_VERSION = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_USER, _ACL_GROUP = 0x02, 0x08
_ACL_NAMES = (attributes.ACCESS_ACL, attributes.DEFAULT_ACL)
_CAPABILITY_REVISION = 0xFF000000
_CAPABILITY_3 = 0x03000000
_CAPABILITY_3_BYTES = 24
_ROOT_ID = struct.Struct("<I")
_ROOT_ID_OFFSET = 20


def parse_ranges(texts: Iterable[str]) -> tuple[IdRange, ...]:
    """Read ranges ``INSIDE:OUTSIDE:COUNT``; raise `InvalidArgument` for anything else and for those that overlap."""
    found = tuple(map(_parse_range, texts))
    for side in ("inside", "outside"):
        starts = sorted((getattr(part, side), part.count) for part in found)
        for (start, count), (following, _) in pairwise(starts):
            if start + count > following:
                raise InvalidArgument(f"two ranges of the id map have the id {following} {side}")
    return found


def _parse_range(text: str) -> IdRange:
    match = _RANGE.fullmatch(text)
    part = IdRange(*map(int, match.groups())) if match else IdRange(0, 0, 0)
    if not part.count or max(part.inside, part.outside) + part.count > _END:
        raise InvalidArgument(
            f"{text!r} is no range of ids",
            hint="write INSIDE:OUTSIDE:COUNT, such as 0:100000:65536; ids end at 2**32-2",
        )
    return part


def format_ranges(ranges: Iterable[IdRange]) -> str:
    """Write ranges in one line, which `parse_ranges` reads after a split at its blanks."""
    return " ".join(f"{part.inside}:{part.outside}:{part.count}" for part in ranges)


class Owners:
    """The translation between a layer and the disk under one id map, which must have the root user and group."""

    def __init__(self, id_map: IdMap) -> None:
        self.id_map = id_map
        self._to_disk = _Side(id_map, outside=True)
        self._to_layer = _Side(id_map, outside=False)
        root = self._to_disk.user(0), self._to_disk.group(0)
        if root[0] is None or root[1] is None:
            raise InvalidArgument(
                "the id map has no root, to whom directories belong that no layer lists", hint="map 0 for both kinds"
            )
        self.root: tuple[int, int] = (root[0], root[1])
        """User and group on disk of what belongs to root in a layer."""

    def unpacked(self, headers: Iterable[Header]) -> Iterator[Header]:
        """Give entries of a layer the owners that they are to have on disk; raise `Unsupported` for unmapped ones."""
        for header in headers:
            missing = self._to_disk.change(header)
            if missing is not None:
                raise Unsupported(
                    f"the tar entry {shown(header.name)} needs the {missing}, which the store's id map does not have",
                    hint="make a store with a larger map: layerfs store create --uidmap INSIDE:OUTSIDE:COUNT",
                )
            yield header

    def packed(self, header: Header) -> Header:
        """Give an entry from disk the owners of a layer; raise `FailedPrecondition` for unmapped ones."""
        missing = self._to_layer.change(header)
        if missing is not None:
            raise FailedPrecondition(
                f"{shown(header.name)} has the {missing}, which the store's id map does not have",
                hint="programs in such a clone run in a user namespace of that map; or change the owner",
            )
        return header


class _Side:
    """One direction of the translation."""

    def __init__(self, id_map: IdMap, *, outside: bool) -> None:
        # The ids of a layer are few and repeat.
        self.user = lru_cache(maxsize=1024)(_Lookup(id_map.users, outside=outside))
        self.group = lru_cache(maxsize=1024)(_Lookup(id_map.groups, outside=outside))

    def change(self, header: Header) -> str | None:
        """Translate an entry in place; return what the map lacks."""
        uid, gid = self.user(header.uid), self.group(header.gid)
        if uid is None:
            return f"user id {header.uid}"
        if gid is None:
            return f"group id {header.gid}"
        header.uid, header.gid = uid, gid
        if header.xattrs:
            try:
                header.xattrs = {name: self._attribute(name, value) for name, value in header.xattrs.items()}
            except _UnmappedError as error:
                return str(error)
        return None

    def _attribute(self, name: bytes, value: bytes) -> bytes:
        if name in _ACL_NAMES:
            return self._acl(value)
        if name == attributes.CAPABILITY and len(value) == _CAPABILITY_3_BYTES:
            (magic,) = _ROOT_ID.unpack_from(value)
            if magic & _CAPABILITY_REVISION == _CAPABILITY_3:
                (root,) = _ROOT_ID.unpack_from(value, _ROOT_ID_OFFSET)
                return value[:_ROOT_ID_OFFSET] + _ROOT_ID.pack(_mapped(self.user(root), f"user id {root}"))
        return value

    def _acl(self, value: bytes) -> bytes:
        """Translate an access control list; one that is none is left to the kernel, which refuses it."""
        if len(value) % _ACL_ENTRY.size != _ACL_VERSION.size:
            return value
        parts = [value[: _ACL_VERSION.size]]
        for tag, permissions, number in _ACL_ENTRY.iter_unpack(value[_ACL_VERSION.size :]):
            mapped = number
            if tag == _ACL_USER:
                mapped = _mapped(self.user(number), f"user id {number} of an access control list")
            elif tag == _ACL_GROUP:
                mapped = _mapped(self.group(number), f"group id {number} of an access control list")
            parts.append(_ACL_ENTRY.pack(tag, permissions, mapped))
        return b"".join(parts)


class _UnmappedError(Exception):
    """Say which id inside an attribute has no counterpart."""


def _mapped(number: int | None, what: str) -> int:
    if number is None:
        raise _UnmappedError(what)
    return number


class _Lookup:
    """Find the counterpart of an id."""

    def __init__(self, ranges: Sequence[IdRange], *, outside: bool) -> None:
        self._ranges: Mapping[int, tuple[int, int]] = {
            (part.inside if outside else part.outside): (part.count, part.outside if outside else part.inside)
            for part in ranges
        }

    def __call__(self, number: int) -> int | None:
        for start, (count, other) in self._ranges.items():
            if start <= number < start + count:
                return other + number - start
        return None
