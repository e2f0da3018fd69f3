"""Lanes: which cells there are on this machine, each with the directory in which its store lies.

A cell that cannot be had is not an error: it is left out, with the reason and what to do about it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from layerfs.contract import WritePolicy
from layerfs.errors import LayerfsError, Unsupported
from layerfs_bench import inputs, places, plainbed, storebed
from layerfs_bench.beds import Bed
from layerfs_bench.places import Ground
from layerfs_bench.results import PLAIN, Cell, LeftOut

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A cell as it could be: the place that it needs, its driver, and the driver's options."""

    name: str
    driver: str
    place: str
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Lane:
    """A cell that is there: its ground, and the directory of its store or, for a baseline, of its roots."""

    cell: Cell
    ground: Ground
    path: Path

    def opened(self, work: Path) -> AbstractContextManager[Bed]:
        """Open its bed; images are written below ``work``, each once in a run."""
        layouts = partial(inputs.layout, work / "images")
        if self.cell.is_baseline:
            return plainbed.opened(self.cell, self.path, layouts)
        options = dict((*self.cell.options, *self.ground.options))
        return storebed.opened(self.cell, options, self.path, layouts)


_COPY, _REDIRECT = (("write", "copy"),), (("write", "redirect"),)

CELLS = (
    *(Wanted(f"plain-{one}", PLAIN, one) for one in ("ext4", "xfs", "btrfs", "zfs")),
    *(Wanted(f"overlay2-{one}", "overlay2", one) for one in ("ext4", "xfs", "btrfs")),
    Wanted("btrfs", "btrfs", "btrfs"),
    Wanted("zfs", "zfs", "zfs"),
    Wanted("devicemapper", "devicemapper", "dm"),
    *(Wanted(f"fuse-copy-{one}", "fuse", one, _COPY) for one in ("ext4", "xfs")),
    *(Wanted(f"fuse-redirect-{one}", "fuse", one, _REDIRECT) for one in ("ext4", "xfs")),
    *(Wanted(f"copy-{one}", "copy", one) for one in ("ext4", "xfs", "btrfs")),
)
"""All that the tool makes by itself, the baselines first."""

_ANYWHERE = (
    ("plain", PLAIN, ()),
    ("overlay2", "overlay2", ()),
    ("fuse-copy", "fuse", _COPY),
    ("fuse-redirect", "fuse", _REDIRECT),
    ("copy", "copy", ()),
)
"""What needs no file system of its own, and so no root: names, drivers, options."""


def selected(words: Sequence[str]) -> tuple[Wanted, ...]:
    """Return the cells that are named, or whose driver is; all for no words. A baseline comes with each file system."""
    if not words:
        return CELLS
    chosen = [one for one in CELLS if one.name in words or one.driver in words]
    below = {_file_system(one.place) for one in chosen}
    return tuple(one for one in CELLS if one in chosen or (one.driver == PLAIN and one.place in below))


def unknown(words: Sequence[str], *, anywhere: bool = False) -> list[str]:
    """Return the words that name no cell and no driver of one.

    ``anywhere`` tells that cells lie in a directory of the user's, on whatever file system that is.
    """
    names = {word for one in CELLS for word in (one.name, one.driver)}
    stems = tuple(f"{stem}-" for stem, _, _ in _ANYWHERE) if anywhere else ()
    return [word for word in words if word not in names and not word.startswith(stems)]


def on_loops(
    wanted: Sequence[Wanted], work: Path, size: int, undo: ExitStack, note: Note
) -> tuple[list[Lane], list[LeftOut]]:
    """Make the file systems that cells need on loop devices, until ``undo`` is closed, and try the cells on them.

    ``note`` hears what is being made.
    """
    lanes: list[Lane] = []
    left_out: list[LeftOut] = []
    for place in dict.fromkeys(one.place for one in wanted):
        cells = [one for one in wanted if one.place == place]
        note(f"the file system {place}")
        try:
            ground = undo.enter_context(places.made(place, work, size))
        except LayerfsError as error:
            left_out += [LeftOut(one.name, error.message, error.hint or "") for one in cells]
            continue
        for one in cells:
            _try(one, ground, lanes, left_out)
    return lanes, left_out


def on_directory(
    directory: Path, words: Sequence[str], wanted: Sequence[Wanted], why: str
) -> tuple[list[Lane], list[LeftOut]]:
    """Put the cells that need no root into a directory of the user's, those that ``words`` name or all.

    ``why`` says why the others that are ``wanted`` are left out.
    """
    ground = places.existing(directory)
    below = ground.place.file_system
    lanes: list[Lane] = []
    left_out: list[LeftOut] = []
    for stem, driver, options in _ANYWHERE:
        one = Wanted(f"{stem}-{below}", driver, below, options)
        if not words or driver == PLAIN or {one.name, driver, *_elsewhere(stem)} & set(words):
            _try(one, ground, lanes, left_out)
    there = {lane.cell.name for lane in lanes} | {one.what for one in left_out}
    missed = [one for one in wanted if one.name not in there and one.driver != PLAIN]
    left_out += [LeftOut(one.name, why, "run it as root") for one in missed]
    return lanes, left_out


def _elsewhere(stem: str) -> set[str]:
    """Return the names that a cell has on the file systems that root can make."""
    return {f"{stem}-{place}" for place in places.FILE_SYSTEMS}


def names_without_root(directory: Path) -> list[str]:
    """Return the names of the cells that `on_directory` would put there."""
    below = places.file_system_of(directory)
    return [f"{stem}-{below}" for stem, _, _ in _ANYWHERE]


def _try(one: Wanted, ground: Ground, lanes: list[Lane], left_out: list[LeftOut]) -> None:
    """Add the lane of a cell, if its store can be made there, or the reason why not."""
    path = ground.path / one.name
    cell = Cell(one.name, one.driver, ground.place.file_system, ground.place.reflink, one.options)
    lane = Lane(cell, ground, path)
    try:
        lanes.append(_described(lane))
    except LayerfsError as error:
        left_out.append(LeftOut(one.name, error.message, error.hint or ""))


def _described(lane: Lane) -> Lane:
    """Open the bed of a lane, which makes it, and let its cell say what the driver says of itself."""
    with lane.opened(lane.path) as bed:
        traits = bed.traits
    if traits is None:
        return replace(lane, cell=replace(lane.cell, write_policy=WritePolicy.IN_PLACE))
    if os.geteuid() != 0 and not traits.unprivileged:
        raise Unsupported(
            "its mounts need a user namespace, which this host forbids", hint="`layerfs doctor` says what to do"
        )
    return replace(lane, cell=replace(lane.cell, copy_unit=traits.copy_unit, write_policy=traits.write_policy))


def _file_system(place: str) -> str:
    return "ext4" if place == "dm" else place


def of_store(path: Path, driver: str, options: tuple[tuple[str, str], ...], plain: Path) -> list[Lane]:
    """Return the lanes of a store of the user's: the store itself, and a plain directory that was made beside it."""
    ground = places.existing(path / driver)
    below = ground.place.file_system
    cell = Cell(f"{driver}-{below}", driver, below, ground.place.reflink, options)
    base = replace(cell, name=f"plain-{below}", driver=PLAIN, options=())
    return [_described(lane) for lane in (Lane(base, replace(ground, path=plain), plain), Lane(cell, ground, path))]
