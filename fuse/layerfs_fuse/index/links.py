"""The hard links of an index while it is being built: which rows are names of one inode."""

from __future__ import annotations

from collections.abc import Callable, Iterator


class Links:
    """Groups of rows, each the names of one inode of one layer."""

    def __init__(self, first: int = 0) -> None:
        """Start without groups; the caller numbers those below ``first``."""
        self._groups: dict[int, list[int]] = {}
        self._group_of: dict[int, int] = {}
        self._by_inode: dict[tuple[int, int], int] = {}
        self._next = first

    def begin_layer(self) -> None:
        """Forget the inodes of the layer before: numbers of another one mean other files."""
        self._by_inode.clear()

    def group(self, device: int, ino: int) -> int:
        """Return the group of an inode of the present layer."""
        found = self._by_inode.setdefault((device, ino), self._next)
        self._next += found == self._next
        return found

    def add(self, row: int, group: int) -> None:
        """Put a row into a group."""
        self._groups.setdefault(group, []).append(row)
        self._group_of[row] = group

    def remove(self, row: int) -> None:
        """Take a row out of its group, if it is in one."""
        group = self._group_of.pop(row, None)
        if group is not None:
            self._groups[group].remove(row)

    def move(self, old: int, new: int) -> None:
        """Put one row in the place of another."""
        group = self._group_of.get(old)
        if group is not None:
            self.remove(old)
            self.add(new, group)

    def settle(self, is_alive: Callable[[int], bool]) -> Iterator[list[int]]:
        """Forget dead rows, and yield each group's rows, sorted; one of a single row is a group no longer."""
        for group, rows in list(self._groups.items()):
            living = sorted(row for row in rows if is_alive(row))
            for row in set(rows).difference(living):
                del self._group_of[row]
            self._groups[group] = living
            yield living
            if len(living) < 2:  # noqa: PLR2004  an inode with one name is none with several
                del self._groups[group]
                for row in living:
                    del self._group_of[row]

    def pairs(self) -> list[int]:
        """Return what the section LINKS holds."""
        return sorted(rows[0] << 32 | row for rows in self._groups.values() for row in rows)
