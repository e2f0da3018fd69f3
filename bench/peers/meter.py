"""Run programs and measure what they cost: wall and CPU time of all processes concerned, and the largest one's memory.

The CPU time of a client is that of its process and of all that it waited for (getrusage(2), ``RUSAGE_CHILDREN``); that
of a daemon is read from ``/proc/<pid>/stat`` before and after, its ended children included (proc_pid_stat(5)). What the
kernel's own threads do, such as writing back, shows in the time that `Sample.sync` takes.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_LAST_WORDS = 800
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Failed(Exception):
    """A program that is being compared failed, or is not there; the message says which and how."""


@dataclass(slots=True)
class Sample:
    """One run: seconds of wall and CPU, seconds that a sync took after it, MiB of the largest process."""

    wall: float = 0.0
    cpu: float = 0.0
    sync: float = 0.0
    memory: float = 0.0


@dataclass(slots=True)
class Meter:
    """Run the programs of one tool, adding up what they use; ``daemons`` are processes that work for it."""

    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    daemons: Sequence[int] = ()
    memory: float = 0.0

    def run(self, *words: str | Path) -> str:
        """Run a program to its end and return what it printed; raise `Failed` with its last words."""
        return self._wait([words])

    def pipe(self, *commands: Sequence[str | Path]) -> str:
        """Run a pipeline; all of its programs must succeed."""
        return self._wait(commands)

    def _wait(self, commands: Sequence[Sequence[str | Path]]) -> str:
        environment = {**os.environ, "PATH": _PATH, **self.environment}
        running: list[subprocess.Popen[bytes]] = []
        source: int | None = subprocess.DEVNULL
        errors = os.memfd_create("errors")
        try:
            for words in commands:
                child = subprocess.Popen(words, stdin=source, stdout=subprocess.PIPE, stderr=errors, env=environment)
                if running and running[-1].stdout:
                    running[-1].stdout.close()
                running.append(child)
                source = child.stdout.fileno() if child.stdout else None
            output = running[-1].stdout.read() if running[-1].stdout else b""
            for child, words in zip(running, commands, strict=True):
                self._reap(child, words, errors)
        finally:
            for child in running:
                if child.returncode is None:
                    child.terminate()
                    child.wait()
                if child.stdout:
                    child.stdout.close()
            os.close(errors)
        return output.decode(errors="replace")

    def _reap(self, child: subprocess.Popen[bytes], words: Sequence[str | Path], errors: int) -> None:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        self.memory = max(self.memory, usage.ru_maxrss / 1024)
        if child.returncode:
            said = os.pread(errors, 1 << 20, 0).decode(errors="replace").strip()[-_LAST_WORDS:]
            raise Failed(f"`{' '.join(str(word) for word in words)}` failed with status {child.returncode}: {said}")

    @contextmanager
    def measured(self, file_system: Path) -> Iterator[Sample]:
        """Measure what the block runs; afterwards the file system is synced, which counts apart."""
        sample = Sample()
        self.memory = 0.0
        started, used = time.perf_counter(), self._cpu()
        yield sample
        sample.wall = time.perf_counter() - started
        sample.cpu = self._cpu() - used
        sample.memory = self.memory
        started = time.perf_counter()
        subprocess.run(["sync", "--file-system", file_system], check=True)
        sample.sync = time.perf_counter() - started

    def _cpu(self) -> float:
        times = os.times()
        return times.children_user + times.children_system + sum(_cpu_of(pid) for pid in self.daemons)


def _cpu_of(pid: int) -> float:
    """Return the seconds of a process and of its ended children."""
    text = Path(f"/proc/{pid}/stat").read_text()
    fields = text.rpartition(")")[2].split()
    return sum(int(value) for value in fields[11:15]) / _TICKS
