"""Limits against layers that are made to exhaust memory, disk or patience."""

from __future__ import annotations

from dataclasses import dataclass

from layerfs.errors import LayerfsError

_KIB = 1024
_MIB = 1024 * _KIB
_GIB = 1024 * _MIB


class LimitExceeded(LayerfsError):
    """Report a layer that goes beyond a setting of `Limits`; the message names it."""

    exit_status = 7
    grpc_code = "RESOURCE_EXHAUSTED"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a layer may cost; the defaults are far above any sound image, and far below what hurts a machine for good.

    Sizes are in bytes. ``ratio`` is uncompressed to compressed bytes, and counts only beyond ``ratio_free``
    uncompressed bytes: a small layer of zeros is no bomb.
    """

    stream_bytes: int = 512 * _GIB
    """Uncompressed bytes of the whole stream."""
    file_bytes: int = 1024 * _GIB
    """Length of one file; a sparse one may be longer than its data."""
    entries: int = 10_000_000
    """Entries, extension headers included."""
    header_bytes: int = _MIB
    """One extension header (PAX records, GNU long name) or sparse map."""
    global_bytes: int = 4096
    """Records of global PAX headers, which every entry after them is given: they cost time for each."""
    path_bytes: int = 4096
    """One path or link target (``PATH_MAX``)."""
    depth: int = 1000
    """Components of one path."""
    ratio: int = 500
    """gzip reaches 1,030 at most, zstd 30,000."""
    ratio_free: int = 2 * _GIB
    """Uncompressed bytes that ``ratio`` does not look at."""


_MOST = 1 << 62
UNLIMITED = Limits(
    stream_bytes=_MOST,
    file_bytes=_MOST,
    entries=_MOST,
    header_bytes=1 << 30,
    global_bytes=1 << 30,
    depth=1 << 20,
    ratio=_MOST,
)
"""For layers that were taken in once, with whatever limits: their digests tell that they are still the same."""


def check(limits: Limits, name: str, value: int, what: str) -> None:
    """Raise `LimitExceeded` where ``value`` is beyond the setting ``name``."""
    allowed: int = getattr(limits, name)
    if value > allowed:
        raise LimitExceeded(
            f"{what} is beyond the limit {name}={allowed}: {value}",
            hint=f"if you trust the layer, raise it: `layerfs image import --limit {name}=...`, or Limits({name}=...)",
        )
