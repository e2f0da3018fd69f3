"""Show that what layerfs needs of memory does not depend on the size of a layer: commit one, export it, import it.

Each is a command in a process of its own; printed is the largest resident set of each (getrusage(2), ``ru_maxrss``).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from peers import inputs, places
from peers.layout import COMPRESSORS
from peers.meter import Failed
from peers.tools import Run, layerfs

_STEPS = ("commit", "export", "import")
_PIECE = 1 << 20
_MOST = 150
"""MiB that a layer of any size may take."""


def main() -> int:
    """Measure and print; return 1 where it was too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="100,500,2000", help="lengths of the file in the layer, in MB")
    parser.add_argument("--limit", default="6g", help="memory that a run may fill with files (default 6g)")
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        print("memory.py: mounts file systems, which needs root", file=sys.stderr)
        return 1
    print(f"| file, MB | compression | {' | '.join(f'{step}, MiB' for step in _STEPS)} |")
    print(f"|---|---|{'---|' * len(_STEPS)}")
    found: list[float] = []
    try:
        for size in map(int, chosen.sizes.split(",")):
            for compression in COMPRESSORS:
                taken = _measure(size * 10**6, compression, chosen.limit)
                print(f"| {size} | {compression} | {' | '.join(f'{one:.0f}' for one in taken)} |", flush=True)
                found += taken
    except Failed as error:
        print(f"memory.py: {error}", file=sys.stderr)
        return 1
    return int(max(found) > _MOST)


def _measure(size: int, compression: str, limit: str) -> list[float]:
    """Return the MiB that each step takes for a layer with one file of ``size`` bytes."""
    with (
        tempfile.TemporaryDirectory(prefix="layerfs-bench-") as work,
        places.fresh("tmpfs", Path(work), limit) as place,
    ):
        run = Run(inputs.get("small"), compression, place)
        root = run.directory("root")
        layerfs(run, "image", "import", run.case.base, "--name", "bench")
        layerfs(run, "clone", "bench", "clone")
        layerfs(run, "mount", "clone", root)
        _write(root / "big", size)
        layerfs(run, "umount", "clone")
        archive = place / "image.tar"
        taken = [
            _taken(run, ("commit", "clone", "new", "--compression", compression)),
            _taken(run, ("image", "export", "new", "--output", archive)),
        ]
        shutil.rmtree(place / "store")
        return [*taken, _taken(run, ("image", "import", archive))]


def _taken(run: Run, words: Sequence[str | Path]) -> float:
    run.meter.memory = 0.0
    layerfs(run, *words)
    return run.meter.memory


def _write(path: Path, size: int) -> None:
    """Fill a file with what compresses to a tenth, as texts do."""
    chance = random.Random(size)  # noqa: S311  seeded, to make the same again
    with path.open("wb") as file:
        while (left := size - file.tell()) > 0:
            noise = chance.randbytes(_PIECE // 10)
            file.write((noise + bytes(_PIECE - len(noise)))[:left])


if __name__ == "__main__":
    sys.exit(main())
