"""Profiles: how much is measured, how often, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from layerfs_bench.scenarios.base import Scale

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Profile:
    """One way to run the benchmark.

    ``scenarios`` are names or groups. Each case is visited ``passes`` times in each cell, in processes of their own. A
    visit repeats itself ``rounds`` times at least and until ``slice`` seconds are over, and is ended after ``limit``
    seconds. After ``budget`` seconds no visit begins. ``place`` are the bytes of each file system that is made.
    """

    name: str
    text: str
    scenarios: tuple[str, ...]
    cells: tuple[str, ...]
    """The cells that are wanted, where they are to be had; () for all."""
    scale: Scale
    passes: int
    rounds: int
    slice: float
    limit: float
    budget: float | None
    place: int


_EVERYTHING = ("lookup", "write", "lifecycle", "lifecycle.apply", "read", "build", "mixed")
_FEW_CELLS = (
    "plain-ext4",
    "plain-xfs",
    "plain-btrfs",
    "plain-zfs",
    "overlay2-ext4",
    "overlay2-xfs",
    "btrfs",
    "zfs",
    "devicemapper",
    "fuse-copy-ext4",
    "fuse-redirect-ext4",
    "copy-ext4",
)

QUICK = Profile(
    "quick",
    "a first answer in a minute",
    ("lookup.stat", "lookup.walk", "write.first", "lifecycle", "read.shared"),
    _FEW_CELLS,
    Scale(
        depths=(1, 8, 32), sizes=(4 * _KIB, 64 * _KIB, _MIB, 64 * _MIB), clones=(1, 10), workers=(1,), shared=(4,),
        files=64,
    ),
    passes=3, rounds=2, slice=0.02, limit=20, budget=60, place=3 * _GIB,
)  # fmt: skip
STANDARD = Profile(
    "standard",
    "everything, in all cells, well enough to compare: half an hour",
    _EVERYTHING,
    (),
    Scale(
        depths=(1, 4, 16, 64, 128),
        sizes=(4 * _KIB, 64 * _KIB, _MIB, 4 * _MIB, 64 * _MIB, 256 * _MIB),
        clones=(1, 10, 100), workers=(1, 2, 4, 8), shared=(2, 8), files=256,
    ),
    passes=5, rounds=3, slice=0.1, limit=120, budget=None, place=5 * _GIB,
)  # fmt: skip
PAPER = Profile(
    "paper",
    "the whole range, to be published: hours",
    _EVERYTHING,
    (),
    Scale(
        depths=(1, 2, 4, 8, 16, 32, 64, 128, 256, 500),
        sizes=tuple(4 * _KIB << 2 * step for step in range(10)),
        clones=(1, 10, 100, 1000), workers=(1, 2, 4, 8, 16, 32, 64), shared=(2, 8, 32), files=1000,
    ),
    passes=10, rounds=5, slice=1, limit=900, budget=None, place=20 * _GIB,
)  # fmt: skip
CI = Profile(
    "ci",
    "few cases, often enough to compare two commits: two minutes",
    ("lookup.stat", "lookup.walk", "write.first", "write.create", "lifecycle"),
    ("plain-ext4", "overlay2-ext4", "btrfs", "fuse-copy-ext4", "fuse-redirect-ext4"),
    Scale(depths=(1, 16), sizes=(4 * _KIB, 4 * _MIB), clones=(1,), workers=(1,), shared=(2,), files=64),
    passes=6, rounds=3, slice=0.1, limit=30, budget=120, place=2 * _GIB,
)  # fmt: skip

PROFILES: Mapping[str, Profile] = {one.name: one for one in (QUICK, STANDARD, PAPER, CI)}
