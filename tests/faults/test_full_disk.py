"""Real disks without a byte or an inode: operations say so and leave nothing half done, and removing works."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import layerfs
from layerfs import NoSpace
from layerfs.kernel import loop
from tests.faults import operations
from tests.faults.operations import OPERATIONS, Operation, Scene, describe
from tests.support import invariants

pytestmark = pytest.mark.root


@dataclass(frozen=True, slots=True)
class Small:
    """A small file system: its bytes, how it is made, and the driver on it."""

    kind: str
    size: int
    make: tuple[str, ...]
    driver: str
    limits: tuple[str, ...] = ("bytes", "inodes")
    """What it can run out of: btrfs makes inodes as they are needed."""


SMALL = {
    "tmpfs": Small("tmpfs", 40 << 20, (), "copy"),
    "ext4": Small("ext4", 48 << 20, ("-N", "1500"), "overlay2"),
    "xfs": Small("xfs", 320 << 20, ("-i", "size=2048,maxpct=1"), "overlay2"),
    "btrfs": Small("btrfs", 256 << 20, (), "btrfs", ("bytes",)),
}
CASES = [(kind, what) for kind, small in SMALL.items() for what in small.limits]
ROOMS = {"bytes": [0, 64 << 10], "inodes": [0, 4]}
"""What is left for an operation."""
GROWING = [
    operation
    for operation in OPERATIONS
    if operation.name in {"import of layers together", "clone", "commit to an image", "snapshot"}
]


@contextmanager
def mounted(small: Small, place: Path) -> Iterator[Path]:
    target = place / "disk"
    target.mkdir()
    if small.kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={small.size},nr_inodes=1500,mode=755", "tmpfs"]
    else:
        loop.create_image(place / "image", small.size)
        loop.make_file_system(place / "image", small.kind, options=small.make)
        command = ["mount", "-t", small.kind, "-o", "loop", str(place / "image")]
    subprocess.run([*command, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)
        while loop.find(place / "image"):  # the device goes some moments later
            time.sleep(0.01)


@contextmanager
def filled(disk: Path, what: str, room: int) -> Iterator[None]:
    """Take everything there is, as somebody beside the store, but for so much."""
    filler = disk / "filler"
    filler.mkdir()
    kept = filler / "room"
    kept.mkdir()
    _take(kept, what, room)
    _take(filler, what, None)
    subprocess.run(["rm", "-r", kept], check=True)
    subprocess.run(["sync", "-f", disk], check=True)
    if not room:
        _take(filler, what, None)
    try:
        yield
    finally:
        subprocess.run(["rm", "-r", filler], check=True)
        subprocess.run(["sync", "-f", disk], check=True)


def _take(place: Path, what: str, amount: int | None) -> None:
    """Take so many bytes or inodes, or all that there are."""
    taken = 0
    for size in (1 << 26, 1 << 22, 1 << 18, 1 << 14, 1 << 10) if what == "bytes" else (0,):
        while amount is None or taken + size <= amount:
            try:
                _make(place / f"{size}-{taken}", size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                break
            taken += size or 1


def _make(path: Path, size: int) -> None:
    with path.open("wb") as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)


def test_on_btrfs_the_index_of_the_log_is_written_where_it_is(btrfs_mount: Path) -> None:
    with layerfs.open(btrfs_mount / f"index-{os.urandom(4).hex()}", driver="btrfs") as store:
        names = {name: store.path / name for name in ("meta.db", "meta.db-shm")}
        # By another process: closing it here would let go of SQLite's locks.
        flags = subprocess.run(["lsattr", names["meta.db-shm"]], check=True, capture_output=True, text=True).stdout
        assert "C" in flags.split()[0]
        assert names["meta.db-shm"].stat().st_mode == names["meta.db"].stat().st_mode
        assert sorted(os.listdir(store.path / "reserve")) == [*map(str, range(8)), "space"]


@pytest.mark.parametrize(("kind", "what"), CASES)
def test_what_has_no_room_is_not_done_at_all(kind: str, what: str, fresh_dir: Path, tmp_path: Path) -> None:
    refused = 0
    with mounted(SMALL[kind], fresh_dir) as disk:
        scene = operations.make(disk / "store", SMALL[kind].driver, tmp_path)
        for operation in GROWING:
            for room in ROOMS[what]:
                refused += _run_short(scene, operation, disk, what, room)
    assert refused


def _run_short(scene: Scene, operation: Operation, disk: Path, what: str, room: int) -> bool:
    """Let an operation run with so little room; tell whether it was refused."""
    with scene.open() as store:
        operation.prepare(scene, store)
        before = describe(store)
    refused = False
    with filled(disk, what, room):
        try:
            with scene.open() as store:
                operation.act(scene, store)
        except NoSpace as error:
            refused = bool(error.hint)
        with scene.open() as store:
            assert store.check() == (), (operation.name, room)
    with scene.open() as store:
        invariants.check_store(store)
        if refused:
            assert describe(store) == before, (operation.name, room)
            operation.act(scene, store)
        assert describe(store) != before
        store.prune(store.plan_prune())
        assert store.plan_prune().items == ()
    return refused


def _remove(scene: Scene, step: int) -> None:
    with scene.open() as store:
        match step:
            case 0:
                store.get_clone("work").remove()
            case 1:
                store.remove_image("many:1")
            case _:
                store.prune(store.plan_prune())


@pytest.mark.parametrize(("kind", "what"), CASES)
def test_removing_works_where_nothing_is_left(kind: str, what: str, fresh_dir: Path, tmp_path: Path) -> None:
    with mounted(SMALL[kind], fresh_dir) as disk:
        scene = operations.make(disk / "store", SMALL[kind].driver, tmp_path)
        with scene.open() as store:
            kept = describe(store)
            store.import_image(scene.layout("many"))
            operations.write(store.clone("many:1", "work"), "file", "text")
        for step in range(3):
            with filled(disk, what, 0):
                with scene.open() as store:
                    assert store.check() == ()
                _remove(scene, step)
        with scene.open() as store:
            assert describe(store) == kept
            assert store.plan_prune().items == ()
            assert store.check() == ()
            store.import_image(scene.layout("many"))
