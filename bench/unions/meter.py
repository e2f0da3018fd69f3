"""Measure a work on a mounted file system: wall time, CPU time of the client and of the server, to the microsecond.

The *client* is this process and the programs that it waits for (getrusage(2)); what the kernel does in their system
calls, such as all of the kernel's overlay, is theirs. The *server* is the process that answers on /dev/fuse; its time
is read from its CPU clock (clock_getcpuclockid(3)), which counts all its threads, and what ``/proc/<pid>/stat`` rounds
to 1/100 s. Not counted are the kernel's own threads, such as those of a loop device.
"""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerfs.kernel import syscalls

_PROCESS_CLOCK = 2
"""``CPUCLOCK_SCHED``, by which the kernel counts in nanoseconds (include/linux/posix-timers.h)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: seconds of wall, of CPU by the client and of CPU by the server; MiB of the server when it was over."""

    wall: float
    client: float
    server: float
    memory: float = 0.0

    @property
    def cpu(self) -> float:
        """Return the CPU time of both."""
        return self.client + self.server


def measure(work: Callable[[], None], root: Path, servers: Sequence[int], *, sync: bool) -> Sample:
    """Run a work on what is mounted at ``root``; with ``sync`` it counts until everything has been written back."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    gc.collect()
    gc.disable()
    try:
        started, client, server = time.perf_counter(), _client(), _servers(servers)
        work()
        if sync:
            syscalls.syncfs(fd)
        os.statvfs(fd)  # a server with one loop has done what was asked before
        return Sample(
            time.perf_counter() - started, _client() - client, _servers(servers) - server, sum(map(_memory, servers))
        )
    finally:
        gc.enable()
        os.close(fd)


def _client() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _servers(servers: Sequence[int]) -> float:
    return sum(time.clock_gettime((~pid << 3) | _PROCESS_CLOCK) for pid in servers)


def _memory(pid: int) -> float:
    """Return the MiB that a process holds for itself."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) / 1024
    return 0.0
