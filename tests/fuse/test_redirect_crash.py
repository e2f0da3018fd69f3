"""What is left of a redirected file after the server is killed, and after the power fails."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from layerfs.kernel import syscalls
from layerfs.kernel.children import fork
from layerfs_fuse.redirect.file import RedirectedFile
from layerfs_fuse.redirect.filling import KEEP_SIZE, PUNCH_HOLE
from tests.fuse.redirect_scene import BLOCK, USER, Scene, pattern, read_all

BLOCKS = 70
SIZE = BLOCKS * BLOCK + 1000
SECTOR = 512


# -- the power fails ---------------------------------------------------------------------------------------------------


class PowerFailure(Exception):
    """The machine stops here."""


@dataclass
class Disk:
    """All states of the upper file and its map that the kernel had in memory, and what was synced when.

    A state is taken after each call that changes a file; after so many ``calls`` the power fails. ``synced`` has, for
    each file, the number of states that its last fsync or fdatasync has brought to the disk; names, lengths and
    attributes before it are there, too, in their order.
    """

    lower: Path
    upper: Path
    calls: int
    data: dict[str, list[bytes]] = field(default_factory=lambda: {"upper": [], "map": []})
    attributes: list[tuple[dict[str, bytes], int]] = field(default_factory=list)
    synced: dict[str, int] = field(default_factory=lambda: {"upper": 0, "map": 0})
    journal: int = 0
    map_path: Path = Path()

    def take(self) -> None:
        """Note a state."""
        self.data["upper"].append(self.upper.read_bytes())
        self.data["map"].append(self.map_path.read_bytes())
        names = os.listxattr(self.upper)
        self.attributes.append(({name: os.getxattr(self.upper, name) for name in names}, self.upper.stat().st_size))

    def sync(self, fd: int) -> None:
        """Note that a file was synced: of the other one only names, lengths and attributes are."""
        which = "upper" if os.path.samestat(os.fstat(fd), self.upper.stat()) else "map"
        self.synced[which] = self.journal = len(self.attributes) - 1

    def fail(self, chance: random.Random, place: Path) -> Scene:
        """Make what a disk may hold when the power fails now, beside the same layers."""
        now = len(self.attributes) - 1
        journal = chance.randint(self.journal, now)
        attributes, size = self.attributes[journal]
        data = self._bytes("upper", chance, journal, now)
        scene = Scene(place, b"")
        scene.lower.unlink()
        scene.lower.hardlink_to(self.lower)
        scene.file.write_bytes(data[:size].ljust(size, b"\0"))
        for name, value in attributes.items():
            os.setxattr(scene.file, name, value)
        os.setxattr(scene.upper, USER + b"layerfs.redirects", b"1")
        scene.maps.mkdir()
        (scene.maps / self.map_path.name).write_bytes(self._bytes("map", chance, journal, now))
        return scene

    def _bytes(self, which: str, chance: random.Random, journal: int, now: int) -> bytes:
        """Put a file together of pages, some of them torn, each as it was at some moment since the last sync."""
        states = self.data[which]
        first = self.synced[which]
        end = max(len(state) for state in states[first:])
        result = bytearray(end)
        for page in range(0, end, BLOCK):
            versions = [chance.randint(first, now) for _ in range(2)]
            torn = chance.random() < 0.3
            for sector in range(page, min(page + BLOCK, end), SECTOR):
                version = chance.choice(versions) if torn else versions[0]
                piece = states[version][sector : sector + SECTOR]
                # What was cut off since has left the disk with the change of the length.
                least = min((len(state) for state in states[version : journal + 1]), default=len(states[version]))
                piece = piece[: max(0, least - sector)]
                result[sector : sector + len(piece)] = piece
        return bytes(result)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, disk: Disk) -> Iterator[None]:
    """Let every call that changes or syncs a file do its work, and note what came of it."""

    def after(call: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def watch(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401  whatever the call takes and gives
            if not disk.calls:
                raise PowerFailure
            disk.calls -= 1
            result = call(*arguments, **options)
            note(*arguments)
            return result

        return watch

    with monkeypatch.context() as patch:
        for name in ("pwrite", "ftruncate", "setxattr"):
            patch.setattr(os, name, after(getattr(os, name), lambda *_: disk.take()))
        patch.setattr(syscalls, "fallocate", after(syscalls.fallocate, lambda *_: disk.take()))
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, after(getattr(os, name), disk.sync))
        yield


def change(file: RedirectedFile, chance: random.Random, byte: int) -> bool:
    """Do something at random; tell whether it was a sync."""
    kind = chance.choices(["write", "truncate", "punch", "sync"], [10, 2, 2, 3])[0]
    offset = chance.choice([chance.randrange(SIZE + BLOCK), chance.randrange(BLOCKS) * BLOCK])
    length = chance.choice([chance.randrange(1, 3 * BLOCK), BLOCK, 100])
    if kind == "write":
        file.write(bytes([byte]) * length, offset)
    elif kind == "truncate":
        file.truncate(chance.choice([offset, file.status().st_size + length]))
    elif kind == "punch":
        file.allocate(PUNCH_HOLE | KEEP_SIZE, offset, length)
    else:
        file.sync(datasync=chance.random() < 0.5)
    return kind == "sync"


def check(found: bytes, history: list[bytes]) -> None:
    """Check that each sector is one that the file had since the last fsync, and that its length is between.

    SIGKILL ends a long write(2) after any page, also where that makes the file longer.
    The two halves of the one in which the lower file ends, or was cut, are looked at one by one.
    """
    assert min(map(len, history)) <= len(found) <= max(map(len, history))
    ends = {SIZE, *(len(state) for state in history)}
    bounds = sorted({*range(0, len(found), SECTOR), len(found), *(end for end in ends if end < len(found))})
    for start, end in pairwise(bounds):
        versions = {state[start:end].ljust(end - start, b"\0") for state in history}
        assert found[start:end] in versions, f"bytes at {start} were never there: {found[start : start + 8].hex()}"


def states_of(seed: int, steps: int, place: Path) -> tuple[list[bytes], list[bool]]:
    """Return what ``steps`` random steps make of a file: the states, and which step was a sync."""
    chance = random.Random(seed)
    states, syncs = [pattern(SIZE)], [True]
    with Scene(place, pattern(SIZE)).redirected(volatile=True) as file:
        for step in range(steps):
            syncs.append(change(file, chance, step % 255 + 1))
            states.append(read_all(file))
    return states, syncs


@pytest.mark.parametrize("seed", range(60))
def test_power_failure_shows_old_or_new_and_all_that_fsync_confirmed(
    seed: int, fresh_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(f"failure {seed}")
    steps = chance.randrange(1, 25)
    states, syncs = states_of(seed, steps, fresh_dir / "model")
    scene = Scene(fresh_dir / "scene", pattern(SIZE))
    os.utime(scene.lower, ns=(0, 0))
    disk = Disk(scene.lower, scene.file, calls=chance.randrange(1, 4 * steps))
    done, choices = 0, random.Random(seed)
    with scene.redirects() as redirects:
        scene.begin(redirects)
        disk.map_path = next(scene.maps.iterdir())
        disk.take()
        with scene.opened(redirects) as file, watched(monkeypatch, disk), contextlib.suppress(PowerFailure):
            for step in range(steps):
                change(file, choices, step + 1)
                done += 1
    confirmed = max(step for step in range(done + 1) if syncs[step])
    for attempt in range(4):
        with disk.fail(chance, fresh_dir / f"failed-{attempt}").redirected() as file:
            check(read_all(file), states[confirmed : done + 2])


# -- the server is killed ----------------------------------------------------------------------------------------------


def _write_for_ever(scene: Scene, seed: int, report: int) -> None:
    """Write at random, and report each step before and after it: in a child that is to be killed."""
    chance = random.Random(seed)
    with scene.redirected() as file:
        os.write(report, b"\0")
        step = 0
        while True:
            step = step % 255 + 1
            change(file, chance, step)
            os.write(report, bytes([step]))


@pytest.mark.parametrize("seed", range(12))
def test_killed_server_leaves_every_byte_that_was_written(seed: int, fresh_dir: Path) -> None:
    scene = Scene(fresh_dir / "scene", pattern(SIZE))
    os.utime(scene.lower, ns=(0, 0))
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        try:
            os.close(reader)
            _write_for_ever(scene, seed, writer)
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"\0"
    time.sleep(random.Random(seed).random() * 0.05)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    done = 0
    while more := os.read(reader, 1 << 16):
        done += len(more)
    os.close(reader)
    states, _ = states_of(seed, done + 1, fresh_dir / "model")
    with scene.redirected() as file:
        check(read_all(file), states[done : done + 2] if done else states[:2])


def test_pending_blocks_with_wrong_bytes_show_the_lower_file(fresh_dir: Path) -> None:
    scene = Scene(fresh_dir, pattern(SIZE))
    with scene.redirects() as redirects:
        scene.begin(redirects)
        with scene.opened(redirects) as file:
            file.write(b"x" * 3 * BLOCK, 5 * BLOCK)
            with scene.file.open("r+b") as upper:  # as if the power had failed before the second block was written
                upper.seek(6 * BLOCK)
                upper.write(bytes(BLOCK))
            expected = bytearray(pattern(SIZE))
            expected[5 * BLOCK : 6 * BLOCK] = expected[7 * BLOCK : 8 * BLOCK] = b"x" * BLOCK
            assert scene.content() == expected


def test_page_of_a_map_that_was_never_written_whole_counts_as_nothing(fresh_dir: Path) -> None:
    scene = Scene(fresh_dir, pattern(SIZE))
    with scene.redirected():
        pass
    next(scene.maps.iterdir()).write_bytes(os.urandom(8 * BLOCKS))
    assert scene.content() == pattern(SIZE)


def test_sync_that_fails_is_done_again(fresh_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(fresh_dir, pattern(SIZE))

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    with scene.redirected() as file:
        file.write(b"x", 0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fails)
            with pytest.raises(OSError, match="Input/output"):
                file.sync()
        assert file.unsettled
        file.sync()
        assert not file.unsettled


def test_volatile_upper_is_right_after_a_clean_end(fresh_dir: Path) -> None:
    scene = Scene(fresh_dir, pattern(SIZE))
    with scene.redirected(volatile=True) as file:
        file.write(b"x" * BLOCK, 3)
        expected = read_all(file)
    assert scene.content() == expected
