"""The file systems that are compared: each shows the layers of a stage, mounted anew for every run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from peers.meter import Failed

from layerfs.contract import Mount
from layerfs.kernel import mounting
from unions.stages import Stage

_START = 30
"""Seconds that a server may take to start and to end."""
_LONGEST = 900
"""Seconds after which a server that does not answer is killed, so that the work fails and does not hang."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run: the stage, fresh directories to write to, whether the work writes, and what it needs of a plain copy."""

    stage: Stage
    writes: bool
    uses: str
    index: Path | None

    @property
    def upper(self) -> Path:
        """Return the directory that everything written goes to: what lies in it before the mount shows."""
        return self.stage.place / "upper"

    @property
    def target(self) -> Path:
        """Return where it is mounted."""
        return self.stage.place / "mounted"

    @property
    def options(self) -> tuple[str, ...]:
        """Return the layers, the uppermost first, and the directories to write to, as options of a mount."""
        lowers = ":".join(str(layer) for layer in reversed(self.stage.layers))
        return f"lowerdir={lowers}", f"upperdir={self.upper}", f"workdir={self.stage.place / 'work'}"


@dataclass(frozen=True, slots=True)
class Mounted:
    """Something mounted, and the processes that serve it."""

    root: Path
    servers: tuple[int, ...] = ()


class FileSystem(Protocol):
    """One of those that are compared; ``needs`` says what is missing on this machine, or nothing."""

    name: str

    def needs(self) -> str:
        """Return what there is to install, or an empty string."""
        ...

    def mounted(self, run: Run) -> AbstractContextManager[Mounted]:
        """Mount as long as the block runs."""
        ...


@contextmanager
def fresh(stage: Stage) -> Iterator[None]:
    """Make the directories of a run, and remove them with all in them."""
    names = ("upper", "work", "mounted")
    for name in names:
        (stage.place / name).mkdir()
    try:
        yield
    finally:
        for name in names:
            shutil.rmtree(stage.place / name)


class Plain:
    """A directory; works that write get a copy of what they use."""

    name = "plain"

    def needs(self) -> str:
        """Nothing."""
        return ""

    @contextmanager
    def mounted(self, run: Run) -> Iterator[Mounted]:
        """Give the plain directory, or where things are written."""
        if run.writes and run.uses:
            copy = run.upper / run.uses
            copy.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", run.stage.plain / run.uses, copy], check=True)
        yield Mounted(run.upper if run.writes else run.stage.plain)


class Overlay:
    """The kernel's overlay with its default options."""

    name = "overlay"

    def needs(self) -> str:
        """Nothing."""
        return ""

    @contextmanager
    def mounted(self, run: Run) -> Iterator[Mounted]:
        """Mount."""
        with mounting.mounted([Mount("overlay", "overlay", run.options)], run.target):
            yield Mounted(run.target)


class FuseOverlayfs:
    """fuse-overlayfs as podman starts it, but in the foreground."""

    name = "fuse-overlayfs"

    def needs(self) -> str:
        """Return the package."""
        return "" if shutil.which("fuse-overlayfs") else "apt-get install fuse-overlayfs"

    @contextmanager
    def mounted(self, run: Run) -> Iterator[Mounted]:
        """Mount."""
        with _served(["fuse-overlayfs", "-f", "-o", ",".join(run.options), run.target], run.target) as mounted:
            yield mounted


class Layerfs:
    """The union of layerfs with further options; the index is made beforehand, as it is when layers are committed."""

    def __init__(self, name: str, *options: str) -> None:
        self.name = name
        self._options = options
        self._command = Path(sys.executable).parent / "mount.fuse.layerfs"

    def needs(self) -> str:
        """Return what is missing."""
        return "" if self._command.exists() else f"{self._command} is not installed"

    @contextmanager
    def mounted(self, run: Run) -> Iterator[Mounted]:
        """Mount."""
        index = (f"index={run.index}",) if run.index else ()
        options = ",".join((*run.options, *index, *self._options))
        with _served([self._command, "-f", "none", run.target, "-o", options], run.target) as mounted:
            yield mounted


@contextmanager
def _served(words: Sequence[str | Path], target: Path) -> Iterator[Mounted]:
    """Start a server, wait for its mount, and end both; one that hangs is killed, which fails what waits for it."""
    errors = os.memfd_create("errors")
    with os.fdopen(errors, "rb") as said, subprocess.Popen(words, stdout=errors, stderr=errors) as server:
        watch = threading.Timer(_LONGEST, server.kill)
        watch.start()
        try:
            _wait(server, target)
            yield Mounted(target, (server.pid,))
        except (Failed, OSError) as error:
            raise Failed(f"{error} {_last_words(said.fileno())}") from error
        finally:
            watch.cancel()
            _end(server, target)


def _wait(server: subprocess.Popen[bytes], target: Path) -> None:
    end = time.monotonic() + _START
    while not os.path.ismount(target):
        if server.poll() is not None or time.monotonic() > end:
            raise Failed(f"{server.args!r:.300} does not mount.")
        time.sleep(0.002)
    os.stat(target)


def _end(server: subprocess.Popen[bytes], target: Path) -> None:
    for _ in range(_START * 10):
        # A server may keep it busy for a moment, until it has answered the last RELEASE.
        done = subprocess.run(["umount", target], check=False, capture_output=True, text=True)
        if not done.returncode or "not mounted" in done.stderr:
            break
        time.sleep(0.1)
    else:
        subprocess.run(["umount", "--lazy", target], check=False)
    try:
        server.wait(_START)
    except subprocess.TimeoutExpired:
        server.kill()


def _last_words(errors: int) -> str:
    return os.pread(errors, 1 << 20, 0).decode(errors="replace").strip()[-500:]
