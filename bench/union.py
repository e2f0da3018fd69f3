"""Compare the FUSE union of layerfs with fuse-overlayfs, the kernel's overlay and a plain directory on the same layers.

A tree from a seed is taken apart into 1, 8, 32 and 128 layers in memory. Every work runs on a fresh mount with an empty
upper directory, the file systems in another order each round. Printed are medians of the CPU time of client and server
and of the wall time, for each unit of a work, and the bars that layerfs is held to. A first write to a large lower file
is done on an ext4 of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from peers import places
from peers.meter import Failed
from unions import filesystems, indexes, report, stages, trees
from unions.filesystems import FileSystem
from unions.report import Results
from unions.runner import Runner
from unions.stages import Inputs, Stage
from unions.works import WORKS, Work

DEPTHS = (1, 8, 32, 128)
FEWEST = 10_000
LIMIT = "1900m"
"""Memory that trees and what is written may fill."""
BIG, BIG_LIMIT = 1 << 30, "2600m"
"""Bytes of the file that is written to for the first time, and the memory for it and one copy."""


def main() -> int:
    """Measure and print; return the exit status."""
    chosen = _parser().parse_args()
    if chosen.files < FEWEST:
        print(f"union.py: works look for names at random among at least {FEWEST} files", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("union.py: the kernel's overlay and whiteouts need root", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _stop)
    results = Results()
    with tempfile.TemporaryDirectory(dir=chosen.work, prefix="layerfs-bench-") as work:
        try:
            _everything(chosen, Path(work), results)
        except KeyboardInterrupt:
            print("union.py: interrupted", file=sys.stderr)
            return 130
        except Failed as error:
            print(f"union.py: {error}", file=sys.stderr)
            return 1
        finally:
            places.unmount_below(Path(work))
            print("\n".join(report.lines(results)), flush=True)
            if chosen.json:
                _write(chosen.json, results, chosen)
    return 0


def _stop(_number: int, _frame: FrameType | None) -> None:
    """End by an exception, once: cleaning up is not interrupted again."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def _parser() -> argparse.ArgumentParser:
    names = [work.name for work in WORKS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=lambda text: [int(one) for one in text.split(",")], default=list(DEPTHS))
    parser.add_argument(
        "--works", type=re.compile, default=re.compile(""), help=f"a regular expression: {', '.join(names)}"
    )
    parser.add_argument("--peers", type=re.compile, default=re.compile(""), help="a regular expression of their names")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each (default 5)")
    parser.add_argument(
        "--passthrough",
        choices=("on", "off", "both"),
        default="both",
        help="how layerfs reads and writes (default both)",
    )
    parser.add_argument(
        "--files", type=int, default=26_000, help=f"files in the tree (default 26000, at least {FEWEST})"
    )
    parser.add_argument("--data", type=int, default=256, help="MiB of the file that is read and written (default 256)")
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path(__file__).parents[1],
        help="what is cloned for git status (default: this)",
    )
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--work", help="directory to mount below what is measured (default: that for temporary files)")
    parser.add_argument("--limit", default=LIMIT, help=f"memory that may be filled with files (default {LIMIT})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as JSON")
    return parser


def _everything(chosen: argparse.Namespace, work: Path, results: Results) -> None:
    """Measure all depths in memory, then what has a stage on ext4."""
    selected = [one for one in WORKS if chosen.works.search(one.name) and _available(one)]
    small, big = [one for one in selected if not one.big], [one for one in selected if one.big]
    if small:
        with places.fresh("tmpfs", work, chosen.limit) as place:
            inputs = Inputs(
                trees.make_tree(chosen.seed, chosen.files), chosen.seed, chosen.repository, chosen.data << 20
            )
            plain = stages.make_plain(inputs, place)
            for depth in chosen.depths:
                _stage(stages.make_stage(inputs, place, plain, depth), inputs, small, chosen, results)
    if big:
        with places.fresh("ext4", work, BIG_LIMIT) as place:
            inputs = Inputs(trees.make_tree(chosen.seed, 100), chosen.seed, chosen.repository, BIG)
            _stage(stages.make_big(place, BIG), inputs, big, chosen, results)


def _available(work: Work) -> bool:
    missing = {program: package for program, package in work.needs.items() if not shutil.which(program)}
    for program, package in missing.items():
        _say(f"{work.name} is left out: {program} is not installed (apt-get install {package})")
    return not missing


def _stage(
    stage: Stage, inputs: Inputs, selected: Sequence[Work], chosen: argparse.Namespace, results: Results
) -> None:
    """Measure the works on one stack of layers, after a check that all show the same tree."""
    peers = _peers(chosen, big=selected[0].big)
    index = None
    if any(isinstance(peer, filesystems.Layerfs) for peer in peers):
        index = indexes.make(stage)
        results.indexes[stage.depth] = index
    runner = Runner(stage, inputs, index.path if index else None, _say)
    if not selected[0].big:
        peers = runner.check(peers)
    for work in selected:
        runner.run(work, peers, chosen.rounds, results)


def _peers(chosen: argparse.Namespace, *, big: bool) -> list[FileSystem]:
    known: list[FileSystem] = [filesystems.Plain(), filesystems.Overlay(), filesystems.FuseOverlayfs()]
    if chosen.passthrough != "off":
        known.append(filesystems.Layerfs(report.PASSTHROUGH))
    if chosen.passthrough != "on":
        known.append(filesystems.Layerfs(report.NO_PASSTHROUGH, "nopassthrough"))
    if big:
        known.append(filesystems.Layerfs(report.REDIRECT, "write=redirect"))
    peers = [peer for peer in known if chosen.peers.search(peer.name)]
    for peer in peers:
        if needs := peer.needs():
            _say(f"{peer.name} is left out: {needs}")
    return [peer for peer in peers if not peer.needs()]


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _write(path: Path, results: Results, chosen: argparse.Namespace) -> None:
    about: dict[str, Any] = {
        "rounds": chosen.rounds,
        "seed": chosen.seed,
        "files": chosen.files,
        "kernel": os.uname().release,
        "processors": os.cpu_count(),
        "load": os.getloadavg(),
        "fuse-overlayfs": _version("fuse-overlayfs"),
    }
    path.write_text(json.dumps(report.document(results, about), indent=1) + "\n")


def _version(package: str) -> str:
    words = ["dpkg-query", "--show", "--showformat=${Version}", package]
    return subprocess.run(words, check=False, capture_output=True, text=True).stdout if shutil.which(words[0]) else ""


if __name__ == "__main__":
    sys.exit(main())
