"""What is wrong with a store, as far as it shows without reading the contents of layers."""

from __future__ import annotations

import time
from collections.abc import Iterator

from layerfs.checking.places import Places
from layerfs.checking.problem import Problem, ProblemKind
from layerfs.checking.rows import Rows
from layerfs.checking.users import Users
from layerfs.contract import Damage
from layerfs.errors import NotFound
from layerfs.layer.digest import Digest
from layerfs.metadata import images
from layerfs.parts import Parts

FETCH = "`layerfs repair --force` brings it again from its registry, with `--from SOURCE` from what was imported"

_MOMENT = 0.1
"""Seconds that others get to end what they are at."""


class Check:
    """Look for problems of a store. Nothing is changed."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def run(self, *, deep: bool = False) -> tuple[Problem, ...]:
        """Return what is wrong; ``deep`` is for the database: `DeepCheck` has the rest of it.

        What is found is looked at twice: between the parts of a removal, say, there are bytes without a row.
        """
        found = self._look(deep=deep)
        if not found:
            return ()
        time.sleep(_MOMENT)
        again = set(self._look(deep=False))
        return tuple(problem for problem in found if problem in again or problem.kind is ProblemKind.DATABASE)

    def _look(self, *, deep: bool) -> tuple[Problem, ...]:
        self._users = Users(self._parts.database)
        return (
            *Rows(self._parts, self._users).run(deep=deep),
            *self._snapshots(),
            *self._blobs(),
            *Places(self._parts, self._users).run(),
        )

    def _snapshots(self) -> Iterator[Problem]:
        for name, damage in self._parts.snapshotter.check():
            kind = ProblemKind.SNAPSHOT if name else ProblemKind.DRIVER
            yield problem(self._users, name, damage, kind)

    def _blobs(self) -> Iterator[Problem]:
        with self._parts.database.read() as connection:
            sizes = images.blob_sizes(connection)
        for digest, size in sizes.items():
            try:
                found = self._parts.blobs.size(Digest(digest))
            except NotFound:
                message = "the blob is gone"
            else:
                if found == size:
                    continue
                message = f"the blob has {found} bytes instead of {size}"
            yield Problem(digest, message, FETCH, self._users.of_blob(digest), ProblemKind.BLOB)


def problem(users: Users, name: str, damage: Damage, kind: ProblemKind) -> Problem:
    """Return the problem that a driver's damage is."""
    return Problem(name, damage.message, damage.hint, users.of_snapshot(name), kind)
