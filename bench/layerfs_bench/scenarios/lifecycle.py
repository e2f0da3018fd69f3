"""Lifecycle: what it costs to make, show, keep and remove a clone, and how that grows with the clones there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import ClassVar

from layerfs_bench import quantities
from layerfs_bench.beds import Root
from layerfs_bench.results import CacheState, Parameters
from layerfs_bench.scenarios.base import Metric, Scale, Scenario
from layerfs_bench.scenarios.images import stack, tree_of
from layerfs_bench.visit import Visit

_DEPTH = 8
"""Layers of the image that is cloned."""
_CHANGED = 10
"""Files of 4 KiB that a clone gets before it is committed."""


class Lifecycle(Scenario):
    """Clone an image of 8 layers, mount it, write 10 files, unmount, list the changes, commit, remove."""

    name: ClassVar[str] = "lifecycle"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("clone", "make a clone, durably", "flat in clones and in the image's size; a copy grows with the files"),
        Metric("mount", "mount it", "some 0.1 to 0.3 ms in the kernel; a server in user space takes a process"),
        Metric("unmount-clean", "unmount it, nothing having been written", "small"),
        Metric(
            "unmount-dirty",
            "unmount it after 10 files of 4 KiB were written",
            "an overlay syncs the whole file system below (moby#47630); a bind mount syncs nothing",
        ),
        Metric("diff", "list what was changed", "overlay reads the upper directory, others compare or ask the disk"),
        Metric("commit", "make an image of it, durably", "grows with what was changed; a comparison with the files"),
        Metric("remove", "remove it", "grows with the files that are its own"),
    )

    def cases(self, scale: Scale) -> Iterator[Parameters]:
        """Go by the clones that there are."""
        return (Parameters(clones=clones) for clones in scale.clones)

    def visit(self, visit: Visit) -> None:
        """Have the clones, then let one more live over and over."""
        visit.bed.load(stack(_DEPTH))
        standing = [visit.make(stack(_DEPTH), bare=True) for _ in range((visit.parameters.clones or 1) - 1)]
        try:
            for _ in visit.rounds():
                self._live(visit)
        finally:
            for root in standing:
                root.remove()

    def _live(self, visit: Visit) -> None:
        made: list[Root] = []
        visit.sync()
        visit.reach(CacheState.WARM)
        free = visit.free()
        with visit.traffic("clone"):
            visit.time("clone", lambda: made.append(visit.make(stack(_DEPTH), bare=True)))
        (root,) = made
        try:
            visit.space("clone", root, free)
            self._show(visit, root)
            visit.time("diff", root.diff)
            visit.sync()
            with visit.traffic("commit"):
                visit.time("commit", root.commit)
        finally:
            visit.time("remove", root.remove)

    def _show(self, visit: Visit, root: Root) -> None:
        visit.target.mkdir(exist_ok=True)
        before = visit.memory.read()
        visit.time("mount", root.mount, visit.target)
        taken = visit.memory.read() - before
        visit.count("mount", quantities.MEMORY_KERNEL, taken.kernel)
        if visit.memory.is_own:
            visit.count("mount", quantities.MEMORY_CGROUP, taken.total)
        visit.sync()
        visit.time("unmount-clean", root.unmount)
        root.mount(visit.target)
        for number in range(_CHANGED):
            _fill(f"{visit.target}/new-{number}")
        with visit.traffic("unmount-dirty"):
            for number in range(_CHANGED):
                _fill(f"{visit.target}/dirty-{number}")
            visit.time("unmount-dirty", root.unmount)


def _fill(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, os.urandom(4096))
    finally:
        os.close(fd)


class Apply(Scenario):
    """Import an image of one layer with small files into a store that does not have it, and take it out again."""

    name: ClassVar[str] = "lifecycle.apply"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("apply", "import and unpack the image, durably", "that of making the files on the file system below"),
        Metric("remove", "remove the image with its layer", "grows with the files; a snapshot is removed whole"),
    )

    def cases(self, scale: Scale) -> Iterator[Parameters]:
        """Have one case, with the files of the profile."""
        yield Parameters(files=scale.files)

    def visit(self, visit: Visit) -> None:
        """Import and remove over and over; the baseline unpacks into a directory and deletes that."""
        spec = tree_of(visit.parameters.files or 1)
        visit.bed.forget(spec)
        for _ in visit.rounds():
            visit.reach(CacheState.WARM)
            if visit.bed.traits is None:
                made: list[Root] = []
                with visit.traffic("apply"):
                    visit.time("apply", lambda made=made: made.append(visit.make(spec)))  # type: ignore[misc]
                visit.time("remove", made[0].remove)
                continue
            with visit.traffic("apply"):
                visit.time("apply", visit.bed.load, spec)
            visit.time("remove", visit.bed.forget, spec)
