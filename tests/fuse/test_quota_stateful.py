"""The account of a union with a quota beside what a walk of its upper directory finds, after any operations."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from hypothesis.stateful import invariant

from layerfs.contract import Quota, Usage
from layerfs_fuse.union.counted import CountedUnion
from tests.fuse.test_union_stateful import UnionBesideDirectory, outcome, run

_BLOCK = 4096
_SIZE, _INODES = 300_000, 24


class CountedBesideDirectory(UnionBesideDirectory):
    """The machine on a union with room for everything."""

    quota = Quota(size=1 << 30, inodes=1 << 20)

    @invariant()
    def count(self) -> None:
        """See that the account never says less than there is, and after a look exactly that."""
        if not hasattr(self, "stack"):
            return
        self.forget()  # what has no name is there as long as somebody knows it
        used, there = self.counted.ledger.used, self.there()
        assert used.size >= there.size
        assert used.inodes >= there.inodes
        self.counted.ledger.room()
        assert self.counted.ledger.used == there

    @property
    def counted(self) -> CountedUnion:
        assert isinstance(self.stack.union, CountedUnion)
        return self.stack.union

    def there(self) -> Usage:
        """Count what lies in the upper directory, and what is open there without a name, by another walk."""
        found = {}
        for directory, names, files in os.walk(self.stack.upper_path):
            for name in (".", *names, *files):
                status = os.lstat(os.path.join(directory, name))
                found[status.st_ino] = status.st_blocks * 512
        for held in self.held:
            if held.handle.record is not None:
                status = os.fstat(held.handle.fd)
                found[status.st_ino] = status.st_blocks * 512
        return Usage(sum(found.values()), len(found))


class FullBesideDirectory(CountedBesideDirectory):
    """The machine on a union with little room: what is refused happens on neither side, and is not compared."""

    quota = Quota(size=_SIZE, inodes=_INODES)

    def hold(self, path: bytes, flags: int) -> None:
        """Hold nothing open: what is refused is not the same on both sides."""

    def temporary(self, mode: int, path: bytes) -> None:
        """Leave this out, too."""

    def both(self, ours: Callable[[], object], theirs: Callable[[], object], *, loose: bool = False) -> bool:  # noqa: ARG002  the machine's
        """Do it on our side, and on theirs unless there was no room."""
        return outcome(ours) != errno.EDQUOT and outcome(theirs) == 0

    @invariant()
    def compare(self) -> None:
        """See that there is never more than the quota says, but for the block by which a directory grows."""
        if not hasattr(self, "stack"):
            return
        there = self.there()
        assert there.size <= _SIZE + _BLOCK
        assert there.inodes <= _INODES


def test_the_account_is_what_a_walk_finds() -> None:
    run(CountedBesideDirectory)


@pytest.mark.root
def test_there_is_never_more_than_the_quota_says() -> None:
    run(FullBesideDirectory)
