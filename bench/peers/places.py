"""Where things are unpacked: a file system that is made anew for every run, in memory, and gone with all in it after.

tmpfs is mounted as such; ext4 is made in a sparse file on a tmpfs of its own and mounted by a loop device, so that no
run meets what another left, and no disk is measured.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peers.meter import Failed

NAMES = ("tmpfs", "ext4")
_IMAGE_SIZE = 8 << 30
_TRIES = 300
"""Tenths of a second for which a mount may stay busy: other mount namespaces on the machine may have a copy of it."""


@contextmanager
def fresh(name: str, work: Path, limit: str) -> Iterator[Path]:
    """Give an empty directory on a new file system as long as the block runs; ``limit`` bounds the memory it takes."""
    memory, place = work / "memory", work / "place"
    for directory in (memory, place):
        directory.mkdir(exist_ok=True)
    try:
        if name == "tmpfs":
            _mount("-t", "tmpfs", "-o", f"size={limit},mode=0755", "layerfs-bench", place)
        else:
            _mount("-t", "tmpfs", "-o", f"size={limit},mode=0700", "layerfs-bench", memory)
            _make_ext4(memory / "disk")
            _mount("-t", "ext4", "-o", "loop,noinit_itable", memory / "disk", place)
        yield place
    finally:
        unmount_below(work)


def _make_ext4(image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(_IMAGE_SIZE)
    _run("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", image)


def unmount_below(directory: Path) -> None:
    """Unmount everything below a directory, the last first; raise `Failed` for what stays busy."""
    points = mounts_below(directory)
    for _ in range(_TRIES):
        for point in reversed(points):
            subprocess.run(["umount", point], check=False, capture_output=True)
        points = mounts_below(directory)
        if not points:
            return
        time.sleep(0.1)
    for point in reversed(points):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
    raise Failed(f"busy, and detached for now: {', '.join(points)}")


def mounts_below(directory: Path) -> list[str]:
    """List the mount points below a directory, in the order in which they were mounted (proc_pid_mountinfo(5))."""
    with open("/proc/self/mountinfo", "rb") as file:
        found = [line.split(b" ", 5)[4].decode("unicode_escape") for line in file]
    return [point for point in found if point.startswith(f"{directory}{os.sep}")]


def _mount(*words: str | Path) -> None:
    _run("mount", *words)


def _run(*words: str | Path) -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run(words, check=False, capture_output=True, text=True, env={**os.environ, "PATH": path})
    if done.returncode:
        raise Failed(f"`{' '.join(str(word) for word in words)}` failed: {done.stderr.strip()}")
