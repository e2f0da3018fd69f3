"""Compare layerfs with other tools at unpacking, pulling and committing images, on the same blobs, interleaved.

Every run starts on a new file system and is measured from an image on disk to a mounted root, or from a changed
container to its new layer: wall time, CPU time of all processes concerned, the largest process's memory, and how long a
sync takes afterwards (layerfs has synced before it says that it is done; the others have not). Printed are medians,
ratios to layerfs, and the bars that layerfs is held to.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peers import commits, inputs, places, pulls, report, tools
from peers.layout import COMPRESSORS
from peers.meter import Failed, Meter
from peers.report import Row, Table
from peers.tools import Kind, Peer, Run

WORKS: dict[str, tuple[Peer, ...]] = {"unpack": tools.UNPACK, "commit": commits.COMMIT, "pull": pulls.PULL}
INPUT_NEEDS = {"mmdebstrap": "mmdebstrap", "gzip": "gzip", "zstd": "zstd", "mkfs.ext4": "e2fsprogs"}


def main() -> int:
    """Measure and print; return the exit status."""
    chosen = _parser().parse_args()
    if os.geteuid() != 0:
        print("layers.py: mounts file systems and keeps owners, which needs root", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    missing = {program: package for program, package in _needs().items() if not _found(program)}
    for program, package in missing.items():
        print(f"layers.py: {program} is not installed (apt-get install {package})", file=sys.stderr)
    if missing and chosen.require:
        return 1
    tables: list[Table] = []
    with tempfile.TemporaryDirectory(dir=chosen.work, prefix="layerfs-bench-") as work:
        try:
            for table in _tables(chosen, missing):
                tables.append(table)
                _measure(table, chosen, Path(work))
                print("\n".join(report.lines(table)), flush=True)
        except KeyboardInterrupt:
            print("layers.py: interrupted", file=sys.stderr)
            return 130
        except Failed as error:
            print(f"layers.py: {error}", file=sys.stderr)
            return 1
        finally:
            places.unmount_below(Path(work))
            if chosen.json:
                _write(chosen.json, tables, chosen)
    return 0


def _parser() -> argparse.ArgumentParser:
    packages = " ".join(sorted({*_needs().values()}))
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"Packages of the other tools: apt-get install {packages}"
    )
    for option, known in (
        ("works", WORKS),
        ("cases", inputs.CASES),
        ("compressions", COMPRESSORS),
        ("places", places.NAMES),
    ):
        parser.add_argument(
            f"--{option}", type=lambda text: text.split(","), default=list(known), help=f"of {', '.join(known)}"
        )
    parser.add_argument("--peers", type=re.compile, default=re.compile(""), help="a regular expression of their names")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, after one that warms up (default 5)")
    parser.add_argument("--require", action="store_true", help="fail where a tool is missing")
    parser.add_argument("--work", help="directory to mount below what is measured (default: that for temporary files)")
    parser.add_argument("--limit", default="3g", help="memory that a run may fill with files (default 3g)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as JSON")
    return parser


def _needs() -> dict[str, str]:
    found = dict(INPUT_NEEDS)
    for peers in WORKS.values():
        for peer in peers:
            found.update(peer.needs)
    return found


def _found(program: str) -> bool:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def _tables(chosen: argparse.Namespace, missing: dict[str, str]) -> Iterator[Table]:
    """Yield what is to be measured; only the case with two layers has something to commit."""
    for work in chosen.works:
        for case in chosen.cases if work != "commit" else [name for name in chosen.cases if name == "python"]:
            for compression in chosen.compressions:
                for place in chosen.places:
                    rows = [
                        Row(peer.name, peer.kind)
                        for peer in WORKS[work]
                        if compression in peer.compressions
                        and not missing.keys() & peer.needs.keys()
                        and (chosen.peers.search(peer.name) or peer.name == report.BASE)
                    ]
                    yield Table(work, case, compression, place, rows)


def _measure(table: Table, chosen: argparse.Namespace, work: Path) -> None:
    """Run every peer in turn, in another order each round; the first round warms up and checks what came out."""
    case = inputs.get(table.case)
    peers = {peer.name: peer for peer in WORKS[table.work]}
    rows, outcomes = list(table.rows), dict[str, tuple[int, int]]()
    for turn in range(chosen.rounds + 1):
        for row in rows[turn % len(rows) :] + rows[: turn % len(rows)]:
            try:
                with places.fresh(table.place, work, chosen.limit) as place:
                    run = Run(case, table.compression, place)
                    _one(peers[row.peer], run, row, outcomes if turn == 0 else None)
            except Failed as error:
                if row.kind is Kind.OURS:
                    raise
                print(f"layers.py: a run is left out: {error}", file=sys.stderr)  # skopeo 1.9 fails now and then
        print(f"{table.title}: round {turn} of {chosen.rounds}", file=sys.stderr)
    _check(table, outcomes)


def _one(peer: Peer, run: Run, row: Row, outcomes: dict[str, tuple[int, int]] | None) -> None:
    """Measure one run, or look at what it made."""
    with peer.ready(run):
        with run.meter.measured(run.place) as sample:
            root = peer.work(run)
        if outcomes is None:
            row.samples.append(sample)
        elif root is not None:
            outcomes[peer.name] = inputs.count(root)


def _check(table: Table, outcomes: dict[str, tuple[int, int]]) -> None:
    """Make sure that the container tools have all come to as many files and bytes as layerfs."""
    expected = outcomes.get(report.BASE)
    kinds = {row.peer: row.kind for row in table.rows}
    for peer, found in outcomes.items():
        if kinds[peer] is not Kind.REFERENCE and found != expected:
            raise Failed(f"{table.title}: {peer} made {found[0]} files of {found[1]} bytes, layerfs {expected}")


def _write(path: Path, tables: Sequence[Table], chosen: argparse.Namespace) -> None:
    about: dict[str, Any] = {
        "rounds": chosen.rounds,
        "kernel": os.uname().release,
        "processors": os.cpu_count(),
        "load": os.getloadavg(),
        "versions": _versions(),
    }
    path.write_text(json.dumps(report.document([one for one in tables if one.rows], about), indent=1) + "\n")


def _versions() -> dict[str, str]:
    """Return what the packages of the tools are, as far as dpkg knows them."""
    found: dict[str, str] = {}
    for package in sorted({*_needs().values()}):
        try:
            found[package] = Meter().run("dpkg-query", "--show", "--showformat=${Version}", package)
        except (Failed, OSError):
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
