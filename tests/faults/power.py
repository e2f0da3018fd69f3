"""Rounds of power cuts: a load on a recorded disk, and a store that is opened on what each cut left of the disk."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import layerfs
from layerfs.kernel import loop, syscalls
from tests.faults import recorder
from tests.faults.interception import fork_into_namespace, own_mounts
from tests.faults.recorder import Kind, Replay
from tests.support import load
from tests.support.images import write_layout

READY = "ready\n"
"""What the load tells when the store is made."""
_LEAST, _PATIENCE = 15, 120
"""Words that a load has told before it is killed, however slow the machine is, and the seconds it may take."""
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system: its size in bytes, options of mount(8), and the driver on it."""

    kind: str
    size: int
    options: str
    driver: str


DISKS = {
    "ext4": Disk("ext4", 96 << 20, "loop", "overlay2"),
    "xfs": Disk("xfs", 320 << 20, "loop,nouuid", "overlay2"),
    "btrfs": Disk("btrfs", 256 << 20, "loop", "btrfs"),
}


@dataclass(slots=True)
class Result:
    """What the rounds came to."""

    rounds: int = 0
    records: int = 0
    flushes: int = 0
    acknowledged: int = 0
    failures: list[str] = field(default_factory=list[str])


def run(disk: Disk, place: Path, *, seed: int, seconds: float, rounds: int, lies: bool = False) -> Result:
    """Let a load work for so long, then cut the power so often, each time at another moment.

    A disk that ``lies`` has lost the second half of what it had flushed.
    """
    base, log, image = place / "base.img", place / "log", place / "cut.img"
    loop.create_image(base, disk.size)
    loop.make_file_system(base, disk.kind)
    layouts = [write_layout(place / f"layout{number}", stack) for number, stack in enumerate(load.stacks())]
    live = place / "live.img"
    subprocess.run(["cp", "--sparse=always", base, live], check=True)
    _record(disk, place, layouts, seed, seconds)
    live.unlink()
    chance = random.Random(seed)
    replay = Replay(base, log)
    try:
        result, start = _counted(replay)
        for end in recorder.pick(replay.records, start, rounds, chance):
            how = replay.cut(image, (start + end) // 2 if lies else end, chance)
            known = load.Acknowledged()
            known.read(replay.told(end))
            failure = _in_namespace(partial(_check, disk, place, image, known))
            result.rounds += 1
            if failure:
                result.failures.append(f"{disk.kind}, seed {seed}, {how}\n{failure}")
    finally:
        replay.close()
    return result


def _counted(replay: Replay) -> tuple[Result, int]:
    """Return the counts of what was recorded, and the number of the record at which the store was made."""
    start = next(n for n, it in enumerate(replay.records) if it.kind is Kind.TOLD) + 1
    kinds = Counter(record.kind for record in replay.records)
    words = replay.told(len(replay.records)).split()
    acknowledged = sum(words.count(word) for word in ("image", "snapshot", "removed"))
    return Result(records=len(replay.records), flushes=kinds[Kind.FLUSH], acknowledged=acknowledged), start


def _record(disk: Disk, place: Path, layouts: list[Path], seed: int, seconds: float) -> None:
    with recorder.recording(place / "recorder", place / "live.img", place / "log") as shown:
        child = fork_into_namespace()
        if child == 0:
            try:
                syscalls.die_with_parent(signal.SIGKILL)
                _work(disk, place, shown, layouts, seed)
            except BaseException:  # noqa: BLE001  shown by who reads the log
                traceback.print_exc()
            finally:
                os._exit(99)
        until = time.monotonic() + seconds
        while time.monotonic() < until or recorder.words(place / "log") < _LEAST:
            assert time.monotonic() < until + _PATIENCE, "the load gets nowhere"
            time.sleep(0.1)
        os.kill(child, signal.SIGKILL)
        size = (place / "log").stat().st_size
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status), "the load ended by itself"
    os.truncate(place / "log", size)  # what came later is the end of the mount, and no crash


def _work(disk: Disk, place: Path, shown: Path, layouts: list[Path], seed: int) -> None:
    own_mounts()
    told = os.open(shown / "told", os.O_WRONLY | os.O_CLOEXEC)
    target = _mount(disk, place, shown / "disk")
    layerfs.open(target / "store", driver=disk.driver).close()
    os.sync()
    os.write(told, READY.encode())
    load.work(target / "store", layouts, seed, told)


def _check(disk: Disk, place: Path, image: Path, known: load.Acknowledged) -> None:
    """Mount what a cut left, as another boot of the machine would, and see that nothing acknowledged is lost."""
    own_mounts()
    boot = place / "boot_id"
    boot.write_text(f"{uuid.uuid4()}\n")
    syscalls.mount(os.fsencode(boot), _BOOT_ID.encode(), None, syscalls.MS_BIND)
    target = _mount(disk, place, image)
    tempfile.tempdir = str(place)
    with layerfs.open(target / "store", create=False) as store:
        load.check(store, known, {})
        store.prune(store.plan_prune())
        assert store.check() == ()
    subprocess.run(["umount", target], check=True)


def _mount(disk: Disk, place: Path, image: Path) -> Path:
    target = place / "mounted"
    target.mkdir(exist_ok=True)
    if disk.kind == "btrfs":  # the kernel remembers a newer one of the same id
        subprocess.run(["btrfs", "device", "scan", "--forget"], check=True, capture_output=True)
    subprocess.run(["mount", "-t", disk.kind, "-o", disk.options, image, target], check=True)
    return target


def _in_namespace(work: Callable[[], None]) -> str:
    """Do ``work`` in a child, and return the trace of what it raised."""
    reading, writing = os.pipe()
    child = fork_into_namespace()
    if child == 0:
        try:
            syscalls.die_with_parent(signal.SIGKILL)
            work()
        except BaseException:  # noqa: BLE001  shown by the parent
            os.write(writing, traceback.format_exc()[-3000:].encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as report:
        text = report.read().decode(errors="replace")
    os.waitpid(child, 0)
    return text
