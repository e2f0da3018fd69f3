"""Run works on file systems: interleaved, in another order each round, each run on a fresh mount."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from peers.meter import Failed

from unions import filesystems, trees
from unions.filesystems import FileSystem, Mounted, Run
from unions.meter import Sample, measure
from unions.report import Cell, Results
from unions.stages import Inputs, Stage
from unions.works import Context, Work

Listing = Mapping[str, object]
_SHOWN = 3
"""Differences between two trees that are told."""


class Runner:
    """Works on one stage, in an order drawn from a seed; ``say`` hears how far it is."""

    def __init__(self, stage: Stage, inputs: Inputs, index: Path | None, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._inputs = inputs
        self._index = index
        self._say = say

    def check(self, peers: Sequence[FileSystem]) -> list[FileSystem]:
        """Return those that show the same tree as the plain directory; the others are told, and left out."""
        expected = trees.listing(self._stage.plain)
        right: list[FileSystem] = []
        for peer in peers:
            try:
                with filesystems.fresh(self._stage), peer.mounted(Run(self._stage, False, "", self._index)) as mounted:
                    _compare(expected, trees.listing(mounted.root))
            except (Failed, OSError) as error:
                self._say(f"{peer.name} is left out at {self._stage.depth} layers: {error}")
            else:
                right.append(peer)
        return right

    def run(self, work: Work, peers: Sequence[FileSystem], rounds: int, results: Results) -> None:
        """Measure a work on all of them; who fails at it is told, and left out from then on."""
        units = work.units(self._inputs)
        cells = {peer.name: Cell(work.name, work.unit, units, self._stage.depth, peer.name) for peer in peers}
        results.cells.extend(cells.values())
        order = random.Random(f"{self._inputs.seed} {work.name} {self._stage.depth}")  # noqa: S311  to do the same again
        running = list(peers)
        for turn in range(rounds):
            for peer in order.sample(running, len(running)):
                try:
                    self._one(work, peer, turn, cells[peer.name])
                except (Failed, OSError) as error:
                    running.remove(peer)
                    self._say(f"{peer.name} is left out of {work.name}: {error}")
        told = ", ".join(f"{cell.peer} {cell.of('cpu'):,.1f}" for cell in cells.values() if cell.samples)
        self._say(f"{self._stage.depth} layers, {work.name}, µs of CPU for each {work.unit}: {told}")

    def _one(self, work: Work, peer: FileSystem, turn: int, cell: Cell) -> None:
        context = Context(self._inputs, self._stage.place, self._inputs.seed + turn)
        run = Run(self._stage, work.writes, work.uses(self._inputs), self._index)
        with filesystems.fresh(self._stage):
            work.before(run.upper, context)
            with peer.mounted(run) as mounted:
                cell.samples.append(_measured(work, mounted, context))
        if work.big:  # or the memory below would keep what was deleted, of which only what is committed can be trimmed
            os.sync()
            subprocess.run(["fstrim", self._stage.place], check=False, capture_output=True)


def _measured(work: Work, mounted: Mounted, context: Context) -> Sample:
    return measure(work.ready(mounted.root, context), mounted.root, mounted.servers, sync=work.writes)


def _compare(expected: Listing, found: Listing) -> None:
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        told = ", ".join(f"{name}: {found.get(name)} for {expected.get(name)}" for name in wrong[:_SHOWN])
        raise Failed(f"it shows {len(wrong)} names wrong: {told}")
