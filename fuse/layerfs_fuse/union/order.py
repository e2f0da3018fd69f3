"""The order in which the names of a directory are listed, with offsets that hold while names come and go."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterator, Mapping

_FEW = 64
"""Gaps that are not worth closing."""


class Order:
    """Names with ever higher cookies, in the order in which they came. A removed name leaves a gap for a while."""

    __slots__ = ("_cookies", "_names", "_next", "_of")

    def __init__(self, first: int) -> None:
        """Give out cookies from ``first`` on."""
        self._of: dict[bytes, int] = {}
        self._cookies: list[int] = []
        self._names: list[bytes | None] = []
        self._next = first

    def add(self, name: bytes) -> None:
        """Put a name at the end, unless it has a place."""
        if name not in self._of:
            self._of[name] = self._next
            self._cookies.append(self._next)
            self._names.append(name)
            self._next += 1

    def discard(self, name: bytes) -> None:
        """Take a name away; it is no error if it is not there."""
        cookie = self._of.pop(name, 0)
        if not cookie:
            return
        names = self._names
        names[bisect_right(self._cookies, cookie) - 1] = None
        while names and names[-1] is None:
            names.pop()
            self._cookies.pop()
        if len(names) > 2 * len(self._of) + _FEW:
            self._cookies = list(self._of.values())
            self._names = list(self._of)

    def precede(self, cookies: Mapping[bytes, int], present: Container[bytes]) -> None:
        """Put those names of ``cookies`` that are present before all others, with their cookies, which are lower."""
        kept = {name: cookie for name, cookie in cookies.items() if name in present}
        self._of = kept | self._of
        self._cookies = list(self._of.values())
        self._names = list(self._of)

    def after(self, cookie: int) -> Iterator[tuple[int, bytes]]:
        """Yield the names whose cookies are higher, each with its cookie; names must not change meanwhile."""
        names, cookies = self._names, self._cookies
        for place in range(bisect_right(cookies, cookie), len(names)):
            name = names[place]
            if name is not None:
                yield cookies[place], name
