"""Figures as people read and write them: sizes in IEC units (IEC 80000-13: 1 KiB is 1024 bytes), times, short ids."""

from __future__ import annotations

import re
from datetime import datetime

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_STEP = 1024
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGTPE])(?:i?B)?|B)?", re.IGNORECASE)
_TIME = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_THREE_FIGURES = 99.95
"""From here on a size is shown without a decimal."""

SHORT = 12
"""Characters of an id that lists show, as other image tools do; any unique prefix of it is accepted."""


def size(count: int) -> str:
    """Write a number of bytes with three or four figures: "512 B", "1.5 KiB", "23.4 MiB", "780 GiB"."""
    value, unit = float(count), 0
    while abs(value) >= _STEP - 0.5 and unit < len(_UNITS) - 1:
        value, unit = value / _STEP, unit + 1
    if unit == 0 or abs(value) >= _THREE_FIGURES:
        return f"{value:.0f} {_UNITS[unit]}"
    return f"{value:.1f} {_UNITS[unit]}"


def parse_size(text: str) -> int:
    """Read "10G", "10 GiB", "1.5m" or "4096" as bytes; the units are powers of 1024. Raise ``ValueError`` otherwise."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size: write a number with K, M, G or T behind it, such as 10G")
    power = " KMGTPE".index(match[2].upper()) if match[2] else 0
    return int(float(match[1]) * _STEP**power)


def parse_time(text: str) -> float:
    """Read "90", "90s", "5m", "1.5h" or "2w" as seconds; raise ``ValueError`` otherwise and for no time at all."""
    found = _TIME.fullmatch(text.strip())
    if not found or not float(found[1]):
        raise ValueError(f"{text!r} is no time: give 90s, 5m, 1.5h, 7d or 2w")
    return float(found[1]) * _SECONDS[found[2]]


def moment(time: datetime) -> str:
    """Write a time in the local zone, to the minute."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M")


def short(digest: str) -> str:
    """Shorten a digest to what lists show: without the algorithm, twelve characters."""
    return digest.rpartition(":")[2][:SHORT]
