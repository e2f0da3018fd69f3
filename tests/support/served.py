"""A union on a real mount for tests: one lower layer, its server to look at and to kill, and the next mount."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from layerfs.errors import LayerfsError
from layerfs.kernel import mountinfo
from layerfs.kernel.mounting import unmount
from layerfs_fuse.stack import perform

_PATIENCE = 60
"""Seconds for a server to end."""


class Served:
    """The directories ``lower``, ``upper`` and ``work`` of a place, mounted at ``merged`` while the block runs."""

    def __init__(self, place: Path, *options: str) -> None:
        self.place = place
        self.root = place / "merged"
        self._options = options
        self.pid = 0
        for name in ("lower", "upper", "work", "merged"):
            (place / name).mkdir(exist_ok=True)

    def __enter__(self) -> Self:
        """Mount it."""
        self.mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unmount it, also where the server is gone or a test failed in the middle, and wait for the server's end."""
        while mountinfo.at(self.root):
            with suppress(LayerfsError):
                unmount(self.root)
                continue
            unmount(self.root, lazy=True)
        with suppress(ProcessLookupError), os.fdopen(os.pidfd_open(self.pid)) as process:
            select.select([process], [], [], _PATIENCE)

    def mount(self) -> None:
        """Mount it, for the first time or again."""
        log = self.place / "log"
        log.unlink(missing_ok=True)
        stack = [f"lowerdir={self.place}/lower", f"upperdir={self.place}/upper", f"workdir={self.place}/work"]
        perform("layerfs", [*stack, f"log={log}", *self._options], self.root)
        self.pid = int(log.read_text().split()[2])

    def unmount(self) -> None:
        """Unmount it and wait for the end of the server."""
        with os.fdopen(os.pidfd_open(self.pid)) as process:
            unmount(self.root)
            assert select.select([process], [], [], _PATIENCE)[0]

    def kill(self) -> None:
        """Kill the server, and take the stale mount away."""
        with os.fdopen(os.pidfd_open(self.pid)) as process:
            os.kill(self.pid, signal.SIGKILL)
            assert select.select([process], [], [], _PATIENCE)[0]
        unmount(self.root, lazy=True)

    def descriptors(self) -> int:
        """Return how many descriptors the server has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory(self) -> int:
        """Return the server's own memory in bytes (RssAnon of proc_pid_status(5))."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
        raise AssertionError("no RssAnon")
