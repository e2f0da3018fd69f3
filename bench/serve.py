"""Measure the snapshots service beside containerd's own overlayfs snapshotter, each through its socket, as root.

    python bench/serve.py [DIRECTORY] [--rounds 200] [--files 0] [--list 10000]

The peers, on one file system (in memory, or DIRECTORY): *layerfs* is ``layerfs serve`` on overlay2; *overlayfs* is
containerd's snapshotter alone in a process of its own, which nobody runs, and the least that such a service can be;
*containerd: overlayfs* is the same inside Debian's containerd, as everybody runs it, and *containerd: layerfs* our
service behind containerd. One client in Go calls them in turn: prepare, write ``--files`` files of 1,000 bytes, commit,
stat, mounts of a child, remove. A commit of layerfs is durable; what ends in *+sync* is so too, by a sync of the file
system as part of each commit. Printed are medians in microseconds, their ratio to *overlayfs*, and the CPU time of the
servers. ``--list`` then times lists of so many snapshots. Needs Debian's containerd, golang-go and
golang-github-containerd-containerd-dev.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.containerd import Containerd

_HERE = Path(__file__).parent
_GO = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": ""}
_TICKS = os.sysconf("SC_CLK_TCK")
_WARM_UP = 5
"""Rounds that do not count."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A service: its socket, the snapshotter's name there, the process that it is, and what its commits sync."""

    name: str
    socket: Path
    snapshotter: str
    process: int
    sync: Path | None = None

    @property
    def words(self) -> str:
        """Return it as the client wants it."""
        return f"{self.name}={self.socket},{self.snapshotter}" + (f",{self.sync}" if self.sync else "")

    def cpu(self) -> float:
        """Return the seconds of CPU that its process took."""
        fields = Path(f"/proc/{self.process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def running(command: Sequence[str | Path], socket: Path) -> Iterator[int]:
    """Run a server until the block ends; give its process when its socket is there."""
    process = subprocess.Popen([str(word) for word in command])
    try:
        while not socket.exists():
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended with {process.returncode}")
            time.sleep(0.05)
        time.sleep(0.5)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def peers(place: Path, programs: Path) -> Iterator[tuple[Peer, ...]]:
    """Start all services, with their data below ``place``."""
    layerfs = (sys.executable, "-m", "layerfs.command", "-q", "--backend", "overlay2")
    with ExitStack() as stack:
        ours: list[Peer] = []
        for name in ("layerfs", "proxied"):
            socket = place / f"{name}.sock"
            command = (*layerfs, "--store", place / name, "serve", "--socket", socket)
            ours.append(Peer(name, socket, "layerfs", stack.enter_context(running(command, socket))))
        alone: list[Peer] = []
        for name, sync in (("overlayfs", None), ("overlayfs+sync", place)):
            socket = place / f"{name}.sock"
            process = stack.enter_context(running((programs / "overlay", socket, place / name), socket))
            alone.append(Peer(name, socket, "overlayfs", process, sync))
        directory = place / "containerd"
        directory.mkdir()
        containerd = stack.enter_context(Containerd(directory, ours[1].socket))
        daemon = directory / "containerd.sock"
        inside = [
            Peer("containerd: overlayfs", daemon, "overlayfs", containerd.pid),
            Peer("containerd: layerfs", daemon, "layerfs", ours[1].process),
        ]
        yield (ours[0], *alone, *inside)


def ask(programs: Path, words: Sequence[object], asked: Sequence[Peer]) -> Iterator[tuple[str, int, Mapping[str, int]]]:
    """Run the client; give peer, round and nanoseconds by call."""
    command = [str(programs / "client"), *map(str, words), *(peer.words for peer in asked)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    for line in done.stdout.splitlines():
        sample = json.loads(line)
        yield sample["peer"], sample["round"], sample["times"]


def table(samples: Iterator[tuple[str, int, Mapping[str, int]]]) -> None:
    """Print medians in microseconds, and their ratio to the first peer that is not ours."""
    times: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for peer, number, calls in samples:
        if number >= min(_WARM_UP, 1):
            for call, nanoseconds in calls.items():
                times[peer][call].append(nanoseconds / 1e3)
    columns = list(next(iter(times.values())))
    print(f"{'':28}" + "".join(f"{call:>16}" for call in columns))
    for peer, found in times.items():
        cells = []
        for call in columns:
            median = statistics.median(found[call])
            base = statistics.median(times["overlayfs"][call])
            cells.append(f"{median:9.0f} ({median / base:4.2f})")
        print(f"{peer:28}" + "".join(cells))


def build(programs: Path, *names: str) -> None:
    """Build programs in Go."""
    for name in names:
        command = ["go", "build", "-o", str(programs / name), f"./serving/{name}"]
        subprocess.run(command, cwd=_HERE, env={**os.environ, **_GO}, check=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("directory", type=Path, nargs="?", default=Path("/dev/shm"))  # noqa: S108  in memory
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--files", type=int, default=0)
    parser.add_argument("--list", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="layerfs-bench-", dir=asked.directory) as name:
        programs = Path(name) / "programs"
        programs.mkdir()
        build(programs, "client", "overlay")
        with peers(Path(name), programs) as found:
            before = [peer.cpu() for peer in found]
            table(ask(programs, ("prepare", asked.rounds, asked.files), found))
            used = zip(found, before, strict=True)
            spent = ", ".join(f"{peer.name} {peer.cpu() - was:.2f}" for peer, was in used if ":" not in peer.name)
            print(f"CPU seconds of the servers: {spent}")
        if asked.list:
            directory = Path(name) / "list"
            directory.mkdir()
            with peers(directory, programs) as found:
                print(f"\n{asked.list} snapshots")
                table(ask(programs, ("list", 10, asked.list), found))


if __name__ == "__main__":
    main()
