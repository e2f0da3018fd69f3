"""``python -m tests.faults``: a table of every operation of a store, hit at every call.

python -m tests.faults [--only COLUMN,...] [--operations NAME,...] [--step N] [DRIVER...]

A driver takes from some minutes to an hour; the exit status is 1 when anything was lost. All happens in a mount
namespace of its own: a server that is stopped at a call is nobody else's to wait for, and ends with its round.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from layerfs.kernel import mountinfo, mounting
from tests.faults import operations
from tests.faults.interception import own_mounts
from tests.faults.matrix import Matrix, Row, every
from tests.faults.operations import OPERATIONS, Operation, Scene
from tests.support import drivers, leftovers

_DRIVERS = ("overlay2", "btrfs", "copy", "fuse")
_COLUMNS: Mapping[str, tuple[int | None, bool]] = {
    "kill": (None, False),
    "ENOSPC": (errno.ENOSPC, True),
    "EDQUOT": (errno.EDQUOT, True),
    "EIO": (errno.EIO, False),
}
"""An error, if it is one, and whether it lasts."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is run: some columns of some operations, at one call of so many."""

    columns: Sequence[str]
    operations: Sequence[Operation]
    step: int


def main() -> int:
    """Print the tables, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", allow_abbrev=False)
    names = tuple(operation.name for operation in OPERATIONS)
    parser.add_argument("--only", type=_some(_COLUMNS), default=tuple(_COLUMNS), metavar="COLUMN,...")
    parser.add_argument("--operations", type=_some(names), default=names, metavar="NAME,...")
    parser.add_argument("--step", type=int, default=1, help="hit one call in so many")
    parser.add_argument("drivers", nargs="*", type=_some(_DRIVERS), default=[_DRIVERS], metavar="DRIVER")
    arguments = parser.parse_args()
    chosen = [operation for operation in OPERATIONS if operation.name in arguments.operations]
    choice = Choice(arguments.only, chosen, arguments.step)
    logging.disable(logging.WARNING)
    own_mounts()
    _let_go_of_others()
    return int(sum(_table_on(driver, choice) for driver in chain.from_iterable(arguments.drivers)) > 0)


def _let_go_of_others() -> None:
    """Take what other runs have mounted out of this namespace: they wait until their devices are free."""
    for point in reversed(mountinfo.mount_points()):
        if leftovers.PREFIX in os.fspath(point.path):
            mounting.unmount(point.path, lazy=True)


def _some(known: Collection[str]) -> Callable[[str], Sequence[str]]:
    """Return what reads a list of names, each of which must be known."""

    def read(text: str) -> Sequence[str]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return read


def _table_on(driver: str, choice: Choice) -> int:
    """Print the table of one driver, and return how much was lost."""
    with ExitStack() as stack:
        place = stack.enter_context(drivers.btrfs() if driver == "btrfs" else drivers.workspace("faults"))
        layouts = stack.enter_context(drivers.workspace("layouts"))
        return _table(driver, place, layouts, choice)


def _table(driver: str, place: Path, layouts: Path, choice: Choice) -> int:
    print(f"\n| {driver} | calls | {' | '.join(choice.columns)} | failures |")  # noqa: T201  a program
    print(f"|---|{'---:|' * (len(choice.columns) + 2)}", flush=True)  # noqa: T201  a program
    totals = [0] * (len(choice.columns) + 2)
    for operation in (each for each in choice.operations if each.fits(driver)):
        name = operation.name.replace(" ", "-")
        rows = [
            _row(operation, operations.make(place / f"{name}-{column}", driver, layouts), column, choice.step)
            for column in choice.columns
        ]
        failures = [failure for row in rows for failure in row.failures]
        counts = [rows[0].calls.total(), *(row.faults for row in rows), len(failures)]
        totals = [sum(pair) for pair in zip(totals, counts, strict=True)]
        print(f"| {operation.name} | {' | '.join(map(str, counts))} |", flush=True)  # noqa: T201  a program
        for failure in failures:
            print(failure, file=sys.stderr, flush=True)  # noqa: T201  a program
    print(f"| all | {' | '.join(map(str, totals))} |", flush=True)  # noqa: T201  a program
    return totals[-1]


def _row(operation: Operation, scene: Scene, column: str, step: int) -> Row:
    error, lasting = _COLUMNS[column]
    return Matrix(scene).run(operation, every(error, lasting=lasting, step=step))


if __name__ == "__main__":
    sys.exit(main())
