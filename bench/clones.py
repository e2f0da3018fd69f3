"""What a clone costs: made, mounted, unmounted and removed, against the bare kernel calls that it cannot do without.

Run as root: ``python bench/clones.py [ROUNDS] [--depth LAYERS]``. In each round every contender takes one clone through
its life, in an order drawn from a seed, in memory and on an ext4 or btrfs in a fresh file. The *bare* contender makes
the directories, mounts the overlay by mount(2), unmounts it and deletes them: no names, no locks, no recovery, nothing
durable. Medians in milliseconds of wall time, with the ratio to the bare contender on the same file system.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import layerfs
from layerfs.contract import Mount
from layerfs.kernel import loop, mounting, syscalls

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.images import Layer, write_layout

STEPS = ("clone", "mount", "unmount", "remove")
FILES_IN_A_LAYER = 8
VOLUME = 4 << 30
MEMORY = Path("/dev/shm")  # noqa: S108  the place to measure without a disk


@dataclass(slots=True)
class Contender:
    """Something that clones: where, how (a function of the round's number for each of `STEPS`), and what it took."""

    name: str
    place: str
    steps: tuple[Callable[[int], object], ...]
    times: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})

    def run(self, number: int) -> None:
        """Take one clone through its life, and keep the milliseconds of each step."""
        for name, step in zip(STEPS, self.steps, strict=True):
            start = time.perf_counter()
            step(number)
            self.times[name].append((time.perf_counter() - start) * 1e3)

    def medians(self) -> list[float]:
        """Return the median of each step."""
        return [statistics.median(self.times[step]) for step in STEPS]


def bare(place: str, directory: Path, depth: int) -> Contender:
    """Return the contender that knows nothing but the kernel."""
    lowers = [f"lower{number}" for number in range(depth)]
    for lower in lowers:
        (directory / lower).mkdir()

    def clone(number: int) -> None:
        for name in ("upper", "work", "merged"):
            os.makedirs(directory / f"{number}/{name}")

    def mount(number: int) -> None:
        os.chdir(directory)  # short names: mount(2) takes a page of options
        data = f"lowerdir={':'.join(lowers)},upperdir={number}/upper,workdir={number}/work"
        syscalls.mount(b"overlay", os.fsencode(f"{number}/merged"), b"overlay", 0, data.encode())
        os.chdir("/")

    def unmount(number: int) -> None:
        syscalls.umount(os.fsencode(directory / f"{number}/merged"))

    return Contender(
        "bare overlay", place, (clone, mount, unmount, lambda number: shutil.rmtree(directory / str(number)))
    )


def ours(place: str, store: layerfs.Store, target: Path) -> Contender:
    """Return the contender that is a store with the image "bench"."""
    target.mkdir()
    held: dict[int, layerfs.Clone] = {}

    def clone(number: int) -> None:
        held[number] = store.clone("bench", f"c{number}")

    return Contender(
        f"layerfs {store.driver.name}",
        place,
        (
            clone,
            lambda number: held[number].mount(target),
            lambda number: held[number].unmount(),
            lambda number: held.pop(number).remove(),
        ),
    )


def contenders(stack: ExitStack, work: Path, depth: int) -> list[Contender]:
    """Make the file systems and the stores."""
    layers: list[Layer] = [
        {f"d{layer}": None, **{f"d{layer}/f{file}": b"x" * 4096 for file in range(FILES_IN_A_LAYER)}}
        for layer in range(depth)
    ]
    layout = write_layout(work / "layout", layers, name="bench")
    places = {"memory": work / "memory", "ext4": _volume(stack, work, "ext4"), "btrfs": _volume(stack, work, "btrfs")}
    places["memory"].mkdir()
    found: list[Contender] = []
    for place, directory in places.items():
        if place != "btrfs":
            (directory / "bare").mkdir()
            found.append(bare(place, directory / "bare", depth))
        for driver in ("btrfs",) if place == "btrfs" else ("overlay2", "copy"):
            store = stack.enter_context(layerfs.open(directory / driver, driver=driver))
            store.import_image(layout, names=["bench"])
            found.append(ours(place, store, directory / f"target-{driver}"))
    return found


def _volume(stack: ExitStack, work: Path, kind: str) -> Path:
    image, target = work / f"{kind}.img", work / kind
    loop.create_image(image, VOLUME)
    loop.make_file_system(image, kind)
    target.mkdir()
    with loop.attach(image) as device:
        stack.enter_context(mounting.mounted([Mount(kind, str(device.path))], target))
    return target


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=100)
    parser.add_argument("--depth", type=int, default=4, help="layers of the image (default 4)")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    order = random.Random(given.seed)  # noqa: S311  an order to repeat, not a secret
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="layerfs-bench-", dir=MEMORY)))
        found = contenders(stack, work, given.depth)
        for number in range(given.rounds):
            for contender in order.sample(found, len(found)):
                contender.run(number)
    print(f"{given.depth} layers, {given.rounds} rounds; median ms (ratio to bare)")
    print(f"{'contender':<18}{'on':<8}" + "".join(f"{step:>18}" for step in STEPS))
    references = {contender.place: contender.medians() for contender in found if contender.name == "bare overlay"}
    for contender in found:
        reference = references.get(contender.place)
        cells = [
            f"{median:.3f}" + (f" ({median / reference[number]:.1f})" if reference else "")
            for number, median in enumerate(contender.medians())
        ]
        print(f"{contender.name:<18}{contender.place:<8}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
