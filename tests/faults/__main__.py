"""The whole matrix: ``python -m tests.faults [DRIVER...]`` prints a table of every operation, hit at every call.

It takes some minutes for each driver; the exit status is 1 when anything was lost.
"""

from __future__ import annotations

import errno
import logging
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.faults import operations
from tests.faults.matrix import Matrix, Row, every
from tests.faults.operations import OPERATIONS
from tests.support import drivers

_COLUMNS = {
    "kill": (None, False),
    "ENOSPC": (errno.ENOSPC, True),
    "EDQUOT": (errno.EDQUOT, True),
    "EIO": (errno.EIO, False),
}


def main(names: list[str]) -> int:
    """Print the tables, and return the exit status."""
    logging.disable(logging.WARNING)
    lost = 0
    for name in names or ["overlay2", "btrfs", "copy", "fuse"]:
        with ExitStack() as stack:
            place = stack.enter_context(drivers.btrfs() if name == "btrfs" else drivers.workspace("faults"))
            layouts = stack.enter_context(drivers.workspace("layouts"))
            lost += _table(name, place, layouts)
    return int(lost > 0)


def _table(driver: str, place: Path, layouts: Path) -> int:
    print(f"\n| {driver} | calls | {' | '.join(_COLUMNS)} | failures |")  # noqa: T201  a program
    print(f"|---|{'---:|' * (len(_COLUMNS) + 2)}")  # noqa: T201  a program
    totals = [0] * (len(_COLUMNS) + 2)
    for operation in (each for each in OPERATIONS if each.fits(driver)):
        rows = [_run(operation, driver, place, layouts, column) for column in _COLUMNS.values()]
        failures = [failure for row in rows for failure in row.failures]
        counts = [rows[0].calls.total(), *(row.faults for row in rows), len(failures)]
        totals = [sum(pair) for pair in zip(totals, counts, strict=True)]
        print(f"| {operation.name} | {' | '.join(map(str, counts))} |", flush=True)  # noqa: T201  a program
        for failure in failures:
            print(failure, file=sys.stderr)  # noqa: T201  a program
    print(f"| all | {' | '.join(map(str, totals))} |", flush=True)  # noqa: T201  a program
    return totals[-1]


def _run(
    operation: operations.Operation, driver: str, place: Path, layouts: Path, failure: tuple[int | None, bool]
) -> Row:
    error, lasting = failure
    path = place / f"store-{len(list(place.glob('store-*')))}" if not (place / "store").exists() else place / "store"
    matrix = Matrix(operations.make(path, driver, layouts))
    return matrix.run(operation, every(error, lasting=lasting))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
