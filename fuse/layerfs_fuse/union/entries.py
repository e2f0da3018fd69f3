"""Read single fields of a packed entry."""

from __future__ import annotations

from layerfs_fuse.attributes import ATTRIBUTES, ENTRY_ATTRIBUTES

_SECOND = 1_000_000_000
_ATIME, _MTIME, _ATIME_NSEC, _MTIME_NSEC = 3, 4, 6, 7
_LINKS, _UID, _GID, _DEVICE = 10, 11, 12, 13


def owner_of(entry: bytes | bytearray) -> tuple[int, int]:
    """Return user and group."""
    fields = ATTRIBUTES.unpack_from(entry, ENTRY_ATTRIBUTES)
    return fields[_UID], fields[_GID]


def links_of(entry: bytes | bytearray) -> int:
    """Return the number of names."""
    return int(ATTRIBUTES.unpack_from(entry, ENTRY_ATTRIBUTES)[_LINKS])


def device_of(entry: bytes | bytearray) -> int:
    """Return the number of a device as the kernel's 32 bits, which the C library takes too."""
    return int(ATTRIBUTES.unpack_from(entry, ENTRY_ATTRIBUTES)[_DEVICE])


def times_of(entry: bytes | bytearray) -> tuple[int, int]:
    """Return the times of the last access and of the last change of the data, in nanoseconds."""
    return times_in(ATTRIBUTES.unpack_from(entry, ENTRY_ATTRIBUTES))


def times_in(fields: tuple[int, ...]) -> tuple[int, int]:
    """Return the same of unpacked attributes."""
    return fields[_ATIME] * _SECOND + fields[_ATIME_NSEC], fields[_MTIME] * _SECOND + fields[_MTIME_NSEC]
