"""Measure what `layerfs --help` costs to start, beside the interpreter alone and a bare nested click command.

Run it as ``python bench/startup.py [ROUNDS]``. The runs of the three are interleaved, so that what else the machine
does meets all of them alike; medians of wall time and of CPU time are printed in milliseconds, and with ``--imports``
the modules whose import costs most, by ``python -X importtime``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

BARE_CLICK = """
import click
@click.group()
def cli(): pass
@cli.group()
def image(): pass
@image.command()
def ls(): pass
cli(["--help"], prog_name="bare")
"""
CANDIDATES: dict[str, tuple[str, ...]] = {
    "python -c pass": ("-c", "pass"),
    "bare nested click --help": ("-c", BARE_CLICK),
    "layerfs --help": ("-m", "layerfs.command", "--help"),
}
SHOWN = 12
"""Modules in the list of imports."""


@dataclass(slots=True)
class Times:
    """Milliseconds of each run: on the wall, and of CPU."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def run(arguments: Sequence[str]) -> tuple[float, float]:
    """Run Python once; return milliseconds of wall and of CPU."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return wall * 1000, cpu * 1000


def measure(rounds: int) -> dict[str, Times]:
    """Run all of them in turn, as often as asked, after one round that warms the caches."""
    times = {name: Times() for name in CANDIDATES}
    for turn in range(rounds + 1):
        for name, arguments in CANDIDATES.items():
            wall, cpu = run(arguments)
            if turn:
                times[name].wall.append(wall)
                times[name].cpu.append(cpu)
    return times


def imports() -> list[str]:
    """Return the lines of ``-X importtime`` with the largest cumulated times."""
    command = [sys.executable, "-X", "importtime", *CANDIDATES["layerfs --help"]]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines()[1:] if line.startswith("import time:")]
    return sorted(lines, key=lambda line: int(line.split("|")[1]) if line.split("|")[1].strip().isdigit() else 0)[
        -SHOWN:
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("rounds", nargs="?", type=int, default=21)
    parser.add_argument("--imports", action="store_true")
    chosen = parser.parse_args()
    print(f"{'':28}{'wall ms':>10}{'least':>10}{'CPU ms':>10}    medians of {chosen.rounds} interleaved runs")
    for name, times in measure(chosen.rounds).items():
        wall, cpu = statistics.median(times.wall), statistics.median(times.cpu)
        print(f"{name:28}{wall:10.1f}{min(times.wall):10.1f}{cpu:10.1f}")
    if chosen.imports:
        print("\n".join(["", *imports()]))


if __name__ == "__main__":
    main()
