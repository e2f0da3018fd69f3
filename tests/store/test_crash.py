"""A process that is killed at any moment loses nothing that was acknowledged, and the store opens."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

import layerfs
from layerfs.kernel.children import fork
from tests.guest import machine
from tests.support import invariants, load
from tests.support.images import write_layout

SHARE = 6 if machine.emulated() else 12 if machine.inside() else 67
"""Kills for each driver: over all drivers some 200."""

LONGEST = 0.25 * machine.slowness()
"""Seconds that a worker lives at the most: several operations."""


def run_and_kill(path: Path, layouts: list[Path], seed: int) -> str:
    """Let a worker live for a random time, and return what it told."""
    readable, writable = os.pipe()
    child = fork()
    if child == 0:
        try:
            os.close(readable)
            load.work(path, layouts, seed, writable)
        finally:
            os._exit(99)
    os.close(writable)
    time.sleep(random.Random(seed).uniform(0, LONGEST))
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(readable, encoding="utf-8") as told:
        text = told.read()
    assert status == -signal.SIGKILL, f"the worker ended by itself: {status}; it told {text!r}"
    return text


@pytest.mark.root
def test_kills_at_random_moments_lose_nothing_that_was_acknowledged(
    driver_name: str, driver_root: Path, tmp_path: Path
) -> None:
    layouts = [write_layout(tmp_path / f"layout{number}", stack) for number, stack in enumerate(load.stacks())]
    path = driver_root / "store"
    layerfs.open(path, driver=driver_name).close()
    trees: dict[str, str] = {}
    known = load.Acknowledged()
    for seed in range(SHARE):
        known.read(run_and_kill(path, layouts, seed))
        with layerfs.open(path) as store:
            load.check(store, known, trees)
    with layerfs.open(path) as store:
        store.prune(store.plan_prune())
        invariants.check_store(store)
        assert store.plan_prune().items == ()
