"""Several processes run the tests together: ``pytest --share=DIRECTORY`` in each, the same empty directory at first.

Each takes the next file of tests that nobody has taken; one takes the guest, with all tests that run there. As root
each needs a mount namespace of its own (`scripts/test`): a test that makes a namespace would copy the mounts of the
others into it, and keep them busy. Not pytest-xdist's workers: those have a second thread, and the tests fork.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

GUEST = "guest"
"""What stands for the tests that run in the guest."""


class Share:
    """What this process takes; all that there is, without a directory."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._taken: set[str] = set()

    def take(self, what: str) -> bool:
        """Take something, unless another process has it; tell whether it is this one's."""
        if self._directory is not None and what not in self._taken:
            try:
                os.close(os.open(self._directory / what.replace("/", "%"), os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                return False
        self._taken.add(what)
        return True

    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run the tests that this process takes, file by file; without a directory pytest's own loop does it."""
        if self._directory is None or session.config.option.collectonly or session.testsfailed:
            return None  # after errors of collection, pytest's own says so
        mine = self._mine(session.items)
        item = next(mine, None)
        while item is not None:
            following = next(mine, None)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            item = following
        return True

    def _mine(self, items: list[pytest.Item]) -> Iterator[pytest.Item]:
        for what, group in groupby(items, key=_unit):
            if self.take(what):
                yield from group


def _unit(item: pytest.Item) -> str:
    marked = item.get_closest_marker("guest") is not None
    return GUEST if marked else item.nodeid.partition("::")[0]
