"""Many processes at once: every race has a winner, every loser an error of the contract, and nothing is lost."""

from __future__ import annotations

import errno
import os
import random
import time
import traceback
from pathlib import Path
from typing import NoReturn

import pytest

import layerfs
from layerfs.contract import DirectAccess
from layerfs.kernel.children import fork
from tests.guest import machine
from tests.support import invariants

PROCESSES = 8
SECONDS = 20 if machine.inside() else float(os.environ.get("LAYERFS_STRESS_SECONDS", "60")) / 4

LOST_A_RACE = (layerfs.AlreadyExists, layerfs.NotFound, layerfs.FailedPrecondition, layerfs.InvalidArgument)


def work(path: Path, seed: int, until: float) -> int:
    """Prepare, write, commit and remove under few names, so that the processes meet; return how often it won."""
    chance = random.Random(seed)
    won = 0
    with layerfs.open(path) as store:
        snapshotter = store.snapshotter
        driver = store.driver
        while time.monotonic() < until:
            key, name = f"key{chance.randrange(6)}", f"name{chance.randrange(12)}"
            parent = chance.choice(["", f"name{chance.randrange(12)}"])
            try:
                match chance.randrange(8):
                    case 0 | 1:
                        snapshotter.prepare(key, parent, labels={"by": str(seed)})
                        if isinstance(driver, DirectAccess):  # else it takes a mount, beside which nothing is removed
                            root = driver.layer_root(snapshotter.snapshot(key)).path
                            write(root / f"file{seed}", key)
                    case 2 | 3:
                        snapshotter.commit(name, key)
                    case 4:
                        snapshotter.checkpoint(name, key)
                    case 5:
                        snapshotter.reset(key, parent)
                    case 6:
                        snapshotter.remove(chance.choice([key, name]))
                    case _:
                        snapshotter.cleanup()
            except LOST_A_RACE:
                continue
            won += 1
    return won


def write(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except OSError as error:
        # Somebody removed the snapshot before we wrote into its directory, or committed it, and it is read-only.
        if error.errno not in {errno.ENOENT, errno.EROFS}:
            raise


def start(path: Path, seed: int, until: float) -> int:
    child = fork()
    if child == 0:
        run_worker(path, seed, until)
    return child


def run_worker(path: Path, seed: int, until: float) -> NoReturn:
    status = 1
    try:
        status = 0 if work(path, seed, until) > 0 else 2
    except BaseException:  # noqa: BLE001  whatever it is, the parent's assertion needs its words
        traceback.print_exc()
    finally:
        os._exit(status)


@pytest.mark.root
@pytest.mark.slow
def test_eight_processes_at_once(driver_name: str, driver_root: Path) -> None:
    path = driver_root / "store"
    layerfs.open(path, driver=driver_name).close()
    until = time.monotonic() + SECONDS
    children = [start(path, seed, until) for seed in range(PROCESSES)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert statuses == [0] * PROCESSES, "1: an error that is not of the contract, 2: never won"
    with layerfs.open(path) as store:
        invariants.check_store(store)
        assert store.snapshotter.cleanup() == ()
