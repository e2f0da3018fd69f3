"""What a machine is made of on the host: a job, processes that end with ours, and the host's files as it sees them."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CHECKOUT = Path(__file__).parents[2]
NOT_COPIED = (".git", ".venv")
"""Of the checkout: these are too large, and seen as they are."""

_SHARE = """
sort -rn /proc/self/mountinfo | while read -r _ _ _ _ place _; do
    case $place in */layerfs-test-*|*/layerfs-pytest-*) umount -l "$(printf %b "$place")" || true ;; esac
done
for name in .git .venv; do
    [ ! -d "$0/$name" ] || mount --bind "$1/$name" "$0/$name"
done
mount --rbind "$0" "$1"
shift
exec "$@"
"""
"""In a mount namespace of its own, so that the mounts go with it; and so that it holds none of other tests'.

A copy of such a mount would keep its file system busy, and its loop device, for as long as the machine runs.
"""


@dataclass(frozen=True, slots=True)
class Job:
    """What a machine is to do: run the script ``job`` of ``directory``, which has the copy of the checkout, too.

    The machine has three ports, numbered from 1: what it prints goes to the descriptor ``output``, an archive to the
    file ``archive``, and reports to ``live``. Memory is in MiB.
    """

    directory: Path
    output: int
    live: Path
    memory: int
    processors: int

    @property
    def script(self) -> Path:
        """Return what the machine runs."""
        return self.directory / "job"

    @property
    def checkout(self) -> Path:
        """Return the copy that the machine sees in the place of the checkout."""
        return self.directory / "checkout"

    @property
    def archive(self) -> Path:
        """Return where the files of /out arrive."""
        return self.directory / "out.tar"

    @property
    def console(self) -> Path:
        """Return where the kernel's messages go."""
        return self.directory / "console"


def start(
    words: Sequence[str | Path],
    *descriptors: int,
    directory: Path | None = None,
    output: BinaryIO | None = None,
    errors: BinaryIO | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process of a machine, in ``directory``: it ends when we are killed, and Ctrl-C is for us, who end it."""
    return subprocess.Popen(
        ("setpriv", "--pdeathsig", "KILL", *words),
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        pass_fds=descriptors,
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started, if it still runs."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def sharing(job: Job, words: Sequence[str | Path]) -> tuple[str | Path, ...]:
    """Return the end of a command that follows ``unshare --mount`` and starts ``words``, which see the copy."""
    return ("sh", "-ec", _SHARE, job.checkout, CHECKOUT, *words)
