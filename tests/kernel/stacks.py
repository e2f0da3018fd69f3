"""Directories to stack overlays from, for the tests beside."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from layerfs.contract import Mount
from layerfs.kernel import loop
from layerfs.kernel.mounting import overlay_options


@dataclass(frozen=True, slots=True)
class Stack:
    """Lowers, the uppermost first, each with a file of its own name's number, and an upper, work and target beside."""

    lowers: tuple[Path, ...]
    upper: Path
    work: Path
    target: Path

    def writable(self, *, userxattr: bool = False, volatile: bool = False) -> list[Mount]:
        options = overlay_options(self.lowers, self.upper, self.work, userxattr=userxattr, volatile=volatile)
        return [Mount("overlay", "overlay", options)]

    def read_only(self) -> list[Mount]:
        return [Mount("overlay", "overlay", overlay_options(self.lowers))]

    def shared(self, place: Path) -> list[Mount]:
        """Return a clone's two mounts: its lowers as one shared overlay at ``place``, and its own on top of that."""
        return [
            Mount("overlay", "overlay", overlay_options(self.lowers), target=str(place)),
            Mount("overlay", "overlay", overlay_options([place], self.upper, self.work)),
        ]

    @property
    def names(self) -> set[str]:
        return {f"file{number}" for number in range(len(self.lowers))}


def make_stack(base: Path, count: int, *, prefix: str = "l") -> Stack:
    """Make a stack of ``count`` lowers whose directories are called ``prefix`` and a number."""
    lowers = tuple(base / f"{prefix}{number}" for number in range(count))
    for number, lower in enumerate(lowers):
        lower.mkdir(parents=True)
        (lower / f"file{number}").write_text(str(number))
        (lower / "top").write_text(str(number))
    stack = Stack(lowers, base / f"{prefix}-upper", base / f"{prefix}-work", base / "target")
    for path in (stack.upper, stack.work, stack.target):
        path.mkdir(exist_ok=True)
    return stack


def detached(image: Path) -> bool:
    """Tell whether an image is on no loop device, or is off it within 10 seconds.

    Whoever looks at a device just then, or copied the mounts to a namespace of its own, keeps it that long.
    """
    deadline = time.monotonic() + 10
    while loop.find(image):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def places() -> set[str]:
    """Return where anything is mounted, read without the code under test."""
    with open("/proc/self/mountinfo", "rb") as lines:
        return {os.fsdecode(line.split(b" ")[4]) for line in lines}
