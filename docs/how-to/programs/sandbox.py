"""A sandbox for an agent: it tries commands, sees what each changed, takes back what went wrong, and forks.

python sandbox.py STORE IMAGE
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import layerfs


class Sandbox:
    """A root of its own, gone at the end; every command is a step that can be taken back."""

    def __init__(self, clone: layerfs.Clone) -> None:
        self._clone = clone

    def __enter__(self) -> Self:
        """Return the sandbox itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove everything."""
        self._clone.remove()

    def attempt(self, command: Sequence[str]) -> tuple[int, list[str]]:
        """Run a command; return its exit status and the paths that differ from the image. Take back what failed."""
        before = self._clone.snapshot()
        status = self._clone.run(command)
        if status:
            self._clone.rollback(before)
        return status, [change.path.decode(errors="backslashreplace") for change in self._clone.changes()]

    def fork(self) -> Sandbox:
        """Return a second sandbox that starts from here; neither sees the other."""
        return Sandbox(self._clone.fork())


def show(sandbox: Sandbox, *command: str) -> None:
    """Attempt a command, and print what came of it."""
    print(*sandbox.attempt(command), flush=True)


if __name__ == "__main__":
    with layerfs.open(sys.argv[1], create=False) as store, Sandbox(store.clone(sys.argv[2])) as sandbox:
        show(sandbox, "/bin/sh", "-c", "echo plan > /notes")
        show(sandbox, "/bin/sh", "-c", "echo wrong > /notes; echo more > /mess; exit 3")
        start = time.perf_counter()
        with sandbox.fork() as other:
            print(f"fork: {(time.perf_counter() - start) * 1000:.1f} ms", flush=True)
            show(other, "/bin/sh", "-c", "cat /notes > /copy")
        show(sandbox, "/bin/cat", "/notes")
