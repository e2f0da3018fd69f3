"""Owners as they are on disk and as a mount shows them, where the two differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from layerfs.errors import InvalidArgument

OVERFLOW = 65534
"""What an id is shown as that the mapping has not (/proc/sys/kernel/overflowuid)."""


@dataclass(frozen=True, slots=True)
class Part:
    """``count`` ids that are ``disk`` and on in the layers and ``shown`` and on in the mount."""

    shown: int
    disk: int
    count: int


@dataclass(frozen=True, slots=True)
class IdShift:
    """How ids are shown: those of ``parts`` moved and others as `OVERFLOW`; all as ``squash``; or as they are."""

    parts: tuple[Part, ...] = ()
    squash: int | None = None

    @property
    def identity(self) -> bool:
        """Tell whether everything is shown as it is."""
        return not self.parts and self.squash is None

    def to_shown(self) -> Callable[[int], int]:
        """Return the function from an id on disk to the one that is shown."""
        if (squash := self.squash) is not None:
            return lambda _id: squash
        return _mapper([(part.disk, part.shown, part.count) for part in self.parts])

    def to_disk(self) -> Callable[[int], int]:
        """Return the function from an id that a client says to the one on disk; `OVERFLOW` for one without a place.

        With ``squash`` everything that is made belongs to who serves: -1, which chown(2) takes for "leave it".
        """
        if self.squash is not None:
            return lambda _id: -1
        return _mapper([(part.shown, part.disk, part.count) for part in self.parts])


AS_THEY_ARE: Final = IdShift()


def _mapper(ranges: list[tuple[int, int, int]]) -> Callable[[int], int]:
    if not ranges:
        return lambda number: number

    def mapped(number: int) -> int:
        for first, other, count in ranges:
            if first <= number < first + count:
                return number - first + other
        return OVERFLOW

    return mapped


def parse_shift(text: str) -> IdShift:
    """Read ``SHOWN:DISK:COUNT[:SHOWN:DISK:COUNT...]``, fuse-overlayfs's form; raise `InvalidArgument`."""
    numbers = text.split(":")
    if len(numbers) % 3 or not all(number.isdecimal() for number in numbers):
        raise InvalidArgument(f"{text!r} is no id mapping", hint="SHOWN:DISK:COUNT, repeated with ':' between")
    values = [int(number) for number in numbers]
    return IdShift(tuple(Part(*values[at : at + 3]) for at in range(0, len(values), 3)))
