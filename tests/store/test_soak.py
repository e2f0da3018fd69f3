"""Eight processes and a service do everything at once on one store, for as long as one likes; nothing is lost or leaks.

``LAYERFS_STRESS_SECONDS=600 pytest -m soak`` is the long run (tests/README.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import layerfs
from layerfs.kernel.children import fork
from tests.support import invariants, leftovers, soaking
from tests.support.images import BASE, EDIT, SHRINK, write_layout
from tests.support.serving import Serving
from tests.support.soaking import LOST_A_RACE, Act, Holding

SECONDS = float(os.environ.get("LAYERFS_STRESS_SECONDS", "60"))
_WARM = 0.2
"""The share of the time after which a process has all that it will ever need."""
_TRACED = 3 << 20
_MEMORY = 12 << 20
"""Bytes that a process may have more at the end: of Python's own count, and of its whole memory, which fragments.

The interpreter's table of interned strings, to which pathlib adds each part of a path, is made anew once: a block of up
to two MiB that was there before and was not counted.
"""
_LOST_A_RACE = {"NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "UNAVAILABLE"}
"""What a client may be told that met another process; UNAVAILABLE is `Busy`."""


class Worker:
    """A child process that acts until its time is over, and then tells what it did and what it held."""

    def __init__(self, path: Path, acts: Mapping[str, Act], seed: int, until: float, *, watched: bool = False) -> None:
        self._told, tell = os.pipe()
        self._pid = fork()
        if self._pid == 0:
            status = 1
            try:
                document = _work(path, acts, seed, until, watched=watched)
                with os.fdopen(tell, "w", encoding="utf-8") as pipe:
                    json.dump(document, pipe)
                status = 0
            except BaseException:  # noqa: BLE001  whatever it is, the parent's assertion needs its words
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(tell)

    def result(self) -> dict[str, Any]:
        """Wait for its end, and return what it told."""
        with os.fdopen(self._told, encoding="utf-8") as pipe:
            text = pipe.read()
        assert os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]) == 0, "it raised what is not of the contract"
        document: dict[str, Any] = json.loads(text)
        return document


def _work(path: Path, acts: Mapping[str, Act], seed: int, until: float, *, watched: bool) -> dict[str, Any]:
    chance = random.Random(seed)
    names = sorted(acts)
    won, lost = Counter[str](), Counter[str]()
    begun = time.monotonic()
    before: dict[str, Any] = {}
    if watched:
        tracemalloc.start()
    with layerfs.open(path) as store:
        while time.monotonic() < until:
            name = chance.choice(names)
            try:
                acts[name](store, chance)
            except LOST_A_RACE:
                lost[name] += 1
            except BaseException as error:
                error.add_note(f"while it did {name!r}")
                raise
            else:
                won[name] += 1
            if watched and not before and time.monotonic() - begun > (until - begun) * _WARM:
                before = _held(store)
        after = _held(store) if watched else {}
    return {"won": won, "lost": lost, "before": before, "after": after}


def _held(store: layerfs.Store) -> dict[str, Any]:
    """Return what a process holds beside the documents that it remembers, of so many images and no more."""
    store._images._documents.clear()
    held = Holding.of(os.getpid())
    return {
        "traced": soaking.traced(),
        "memory": held.memory,
        "descriptors": _lasting(held),
        "threads": held.threads,
    }


def _client_acts(socket: Path) -> Mapping[str, Act]:
    """Return what containerd does, by a client that is made in the process that uses it."""
    import grpc  # noqa: PLC0415  it starts threads, which do not survive a fork

    from layerfs.serve import protobuf  # noqa: PLC0415  as above
    from tests.support.snapshots_client import Client  # noqa: PLC0415  as above

    clients: list[Client] = []

    def call(verb: str, *words: str) -> Act:
        def act(_: layerfs.Store, chance: random.Random) -> None:
            if not clients:
                clients.append(Client(socket))
            fields = [protobuf.text(2 + place, f"{word}{chance.randrange(6)}") for place, word in enumerate(words)]
            try:
                clients[0].call(verb, *fields)
            except grpc.RpcError as error:
                code: str = getattr(error, "code")().name  # noqa: B009  of a grpc.Call, for which there is no type
                if code not in _LOST_A_RACE:
                    raise
                raise layerfs.NotFound(code) from error

        return act

    return {
        "Prepare": call("Prepare", "key"),
        "Prepare on": call("Prepare", "key", "name"),
        "View": call("View", "key", "name"),
        "Mounts": call("Mounts", "key"),
        "Commit": call("Commit", "name", "key"),
        "Remove": call("Remove", "key"),
        "Remove name": call("Remove", "name"),
        "Stat": call("Stat", "key"),
        "Usage": call("Usage", "key"),
        "Cleanup": call("Cleanup"),
    }


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.host
def test_soak(driver_name: str, driver_root: Path, tmp_path: Path) -> None:
    layouts = tuple(
        write_layout(tmp_path / f"layout{number}", layers, name=None)
        for number, layers in enumerate([[BASE], [BASE, EDIT], [BASE, EDIT, SHRINK], [BASE, SHRINK]])
    )
    place = driver_root / "place"
    place.mkdir()
    at_start = leftovers.find([driver_root])
    with Serving(place, driver_name) as service:
        until = time.monotonic() + SECONDS
        workers: list[Worker] = []
        for seed in range(5):
            own = tmp_path / f"worker{seed}"
            own.mkdir()
            acts = soaking.Scene(layouts, own).acts()
            workers.append(Worker(service.store, acts, seed, until, watched=seed == 0))
        workers += [Worker(service.store, soaking.snapshot_acts(), seed, until) for seed in (5, 6)]
        workers.append(Worker(service.store, _client_acts(service.socket), 7, until))
        time.sleep(SECONDS * _WARM)
        served_before = Holding.of(service.process.pid)
        results = [worker.result() for worker in workers]
        served_after = Holding.of(service.process.pid)
    _report(driver_name, results, served_before, served_after)
    with layerfs.open(service.store) as store:
        invariants.unmount_all(store)
        invariants.check_store(store)
        assert store.check() == ()
        assert store.snapshotter.cleanup() == ()
        _empty(store)
        assert list(store.driver.ids()) == []
        assert list(store.blobs.digests()) == []
    assert leftovers.find([driver_root]) == at_start
    for result in results:
        assert sum(result["won"].values()) > 0, "a process never won"
    before, after = results[0]["before"], results[0]["after"]
    assert after["traced"] < before["traced"] + _TRACED
    assert after["memory"] < before["memory"] + _MEMORY
    assert (after["descriptors"], after["threads"]) == (before["descriptors"], before["threads"])
    assert served_after.memory < served_before.memory + _MEMORY
    assert _lasting(served_after) == _lasting(served_before)


def _lasting(held: Holding) -> list[str]:
    """Return what a process keeps open, but for its sign of life, its clients and the connections of their threads."""
    passing = ("/lock", "/meta.db", "/meta.db-wal", "/meta.db-shm", "socket")
    return [name for name in held.descriptors if not name.endswith(passing)]


def _empty(store: layerfs.Store) -> None:
    """Remove everything, the uppermost first."""
    for clone in store.clones():
        clone.remove()
    for image in store.images():
        store.remove_image(image.digest)
    store.prune(store.plan_prune())
    while infos := store.snapshotter.infos():
        for info in infos:
            with contextlib.suppress(layerfs.FailedPrecondition):
                store.snapshotter.remove(info.name)


def _report(driver: str, results: list[dict[str, Any]], before: Holding, after: Holding) -> None:
    """Print what was done: pytest shows it with -s, and when the test fails."""
    won, lost = Counter[str](), Counter[str]()
    for result in results:
        won.update(result["won"])
        lost.update(result["lost"])
    print(f"{driver}: {SECONDS:.0f} s, {won.total():,} calls won, {lost.total():,} lost")  # noqa: T201  for people
    print({name: (won[name], lost[name]) for name in sorted({*won, *lost})})  # noqa: T201  as above
    print("watched:", results[0]["before"], results[0]["after"])  # noqa: T201  as above
    print("service:", before, after)  # noqa: T201  as above
