"""Descriptors as resources, and what all resources have in common."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from layerfs.errors import NotFound


class Closing(ABC):
    """What is closed at the end of a ``with`` block."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds; doing it twice is no error."""

    def __enter__(self) -> Self:
        """Return the holder itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


class Passing(ABC):
    """What is removed at the end of a ``with`` block, unless `keep` was called."""

    __slots__ = ("_kept",)
    _kept: bool

    @abstractmethod
    def remove(self) -> None:
        """Remove it; raise `NotFound` where it is gone."""

    def keep(self) -> Self:
        """Let it outlive the ``with`` block."""
        self._kept = True
        return self

    def __enter__(self) -> Self:
        """Return the thing itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove it unless it is kept; what somebody else removed is no error."""
        if not self._kept:
            with suppress(NotFound):
                self.remove()


class Holder(Closing):
    """What keeps one descriptor open, ``_fd``, until `close`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        """Close it; doing it twice is no error."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextmanager
def opened(fd: int) -> Iterator[int]:
    """Close a descriptor at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)
