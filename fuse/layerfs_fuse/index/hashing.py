"""The hash table of an index while it is being built: from a directory and a name to a row (`format`, SLOTS)."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable

from layerfs_fuse.index.format import PROBES, ROW_MASK, TOMBSTONE

_LOAD = 0.65
"""How full the table may get; made anew, it is half full, and a name is found at the second try on average."""
_SMALLEST = 16


class HashTable:
    """Slots of ``hash << 32 | row``; new ones wait in a list until the end of a layer."""

    def __init__(self, slots: array[int] | None = None, used: int = 0) -> None:
        """Go on with slots of which ``used`` are not empty, or start without any."""
        self.slots = slots or array("Q", bytes(8 * (PROBES + 1)))
        self.used = used
        self._pending: list[int] = []

    def candidates(self, value: int) -> tuple[list[int], bool]:
        """Return the rows that may have a name of this hash, and whether there can be no others."""
        home = value * (len(self.slots) - PROBES) >> 32
        rows: list[int] = []
        for found in self.slots[home : home + PROBES]:
            if not found:
                return rows, True
            if found >> 32 == value:
                rows.append(found & ROW_MASK)
        return rows, False

    def add(self, values: Iterable[int]) -> None:
        """Add slots, from `settle` on."""
        self._pending.extend(values)

    def replace(self, value: int, old: int, new: int) -> None:
        """Make the slot of the row ``old`` that of ``new``; of none where that is 0."""
        home = value * (len(self.slots) - PROBES) >> 32
        wanted = value << 32 | old
        for slot in range(home, home + PROBES):
            if self.slots[slot] == wanted:
                self.slots[slot] = value << 32 | new if new else TOMBSTONE
                return

    def settle(self, living: int, is_alive: Callable[[int], bool], values: Callable[[], list[int]]) -> None:
        """Put all added slots into the table, which grows where it must.

        ``living`` is the number of names that the tree has now. A growing table keeps the rows that are alive; where
        some had found no room, ``values`` makes the slots of all names from the names themselves.
        """
        pending, self._pending = self._pending, []
        if self.used + len(pending) > (len(self.slots) - PROBES) * _LOAD:
            pending += [slot for slot in self.slots if is_alive(slot & ROW_MASK)]
            if len(pending) != living:
                pending = values()
            self.slots = array("Q", bytes(8 * (max(_SMALLEST, 2 * len(pending)) + PROBES)))
            self.used = 0
        self._insert(pending)

    def _insert(self, values: list[int]) -> None:
        slots = self.slots
        size = len(slots) - PROBES
        missed = 0
        for value in values:
            slot = (value >> 32) * size >> 32
            if slots[slot]:  # nearly half of all names come here
                end = slot + PROBES
                while slot < end and slots[slot]:
                    slot += 1
                if slot == end:
                    missed += 1
                    continue
            slots[slot] = value
        self.used += len(values) - missed
