"""The symbolic links of an index while it is being built: where each row's points to."""

from __future__ import annotations

from array import array
from bisect import bisect_left

from layerfs_fuse.index.format import ROW_MASK


class Targets:
    """The sections TARGETS, sorted by row, and STRINGS. What belongs to dead rows stays, for nobody asks for it."""

    def __init__(self, places: array[int] | None = None, strings: bytearray | None = None) -> None:
        """Go on with the sections of an index, or start without any."""
        self.places = array("Q") if places is None else places
        self.strings = bytearray() if strings is None else strings

    def set(self, row: int, target: bytes) -> None:
        """Make a row a symbolic link, or give it another target."""
        value = row << 32 | len(self.strings)
        self.strings += len(target).to_bytes(2, "little") + target
        place = bisect_left(self.places, row << 32)
        if self._is_at(place, row):
            self.places[place] = value
        else:
            self.places.insert(place, value)

    def move(self, old: int, new: int) -> None:
        """Give the target of a row, if it has one, to a row behind all others."""
        place = bisect_left(self.places, old << 32)
        if self._is_at(place, old):
            self.places.append(new << 32 | self.places[place] & ROW_MASK)

    def _is_at(self, place: int, row: int) -> bool:
        return place < len(self.places) and self.places[place] >> 32 == row
