"""The index of a stack of layers, built as it is when layers are committed: each from that of the layers below it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from layerfs_fuse.index.builder import build
from layerfs_fuse.index.reader import Index
from unions.stages import Stage


@dataclass(frozen=True, slots=True)
class Built:
    """An index, the seconds of CPU that it took for all layers, for the uppermost alone, and its size in bytes."""

    path: Path
    cpu: float
    last: float
    size: int


def make(stage: Stage) -> Built:
    """Build the index of each layer in turn; only the last is kept."""
    path, below = stage.place / "index", stage.place / "index-below"
    path.unlink(missing_ok=True)
    started = last = time.process_time()
    for layer in stage.layers:
        last = time.process_time()
        fd = os.open(layer, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if path.exists():
                path.rename(below)
                with Index.open(below) as parent:
                    build(path, [fd], parent=parent, sync=False)
            else:
                build(path, [fd], sync=False)
        finally:
            os.close(fd)
    below.unlink(missing_ok=True)
    now = time.process_time()
    return Built(path, now - started, now - last, path.stat().st_size)
