"""What tests may leave behind: mounts, loop devices and processes; found by where they point, never by guessing.

A directory of a run is named after the process that made it, so that a later run clears what a killed one left and
never touches a run that is still going on.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PREFIX = "layerfs-test-"
"""Start of the name of every directory that the tests make outside pytest's own: ``layerfs-test-<pid>-...``."""

SESSION_VARIABLE = "LAYERFS_TEST_SESSION"
"""Environment variable that every process started by a run inherits; its value is the pid of the run."""

_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "multiprocessing.spawn")
"""Python's own helper processes, which end with the interpreter that started them."""


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Mount points (oldest first), loop devices with their files, and processes with their command lines."""

    mounts: tuple[str, ...] = ()
    loops: tuple[tuple[str, str], ...] = ()
    processes: tuple[tuple[int, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.mounts or self.loops or self.processes)

    def lines(self) -> list[str]:
        """Return one line for each."""
        return [
            *(f"mount {path}" for path in self.mounts),
            *(f"loop device {device} on {path}" for device, path in self.loops),
            *(f"process {pid}: {command}" for pid, command in self.processes),
        ]


def find(roots: Sequence[Path], *, session: str | None = None) -> Leftovers:
    """Find the mounts and loop devices that lie in ``roots`` or use something there, and a run's processes."""
    prefixes = tuple(f"{root}/" for root in roots)
    processes = tuple(_processes(session)) if session is not None else ()
    return Leftovers(tuple(_mounts(prefixes)), tuple(_loops(prefixes)), processes)


def clear(left: Leftovers) -> None:
    """Kill, unmount and detach, the newest first; what cannot be cleared stays."""
    for pid, _ in left.processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, 9)
    for path in reversed(left.mounts):
        if subprocess.run(["umount", path], check=False, capture_output=True).returncode:
            subprocess.run(["umount", "--lazy", path], check=False, capture_output=True)
    for device, _ in left.loops:
        with contextlib.suppress(subprocess.CalledProcessError, OSError):
            _remove_holders(device)
        subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)


def release_pools(root: Path) -> None:
    """Take the thin pools whose files lie in ``root`` from the kernel; raise ``CalledProcessError`` for one in use."""
    for device, _ in find([root]).loops:
        _remove_holders(device)


def _remove_holders(device: str) -> None:
    """Remove the devices of device-mapper that stand on a block device, the topmost first."""
    for holder in list(Path("/sys/block", Path(device).name, "holders").glob("dm-*")):
        _remove_holders(holder.name)
        name = Path("/sys/block", holder.name, "dm/name").read_text(encoding="ascii").strip()
        subprocess.run(["dmsetup", "remove", name], check=True, capture_output=True)


def sweep(temporary: Iterable[Path], pytest_roots: Iterable[Path]) -> Leftovers:
    """Clear what earlier runs left that are no longer alive, with their directories, and return what it was.

    ``temporary`` are the directories in which tests make theirs, ``pytest_roots`` those in which
    pytest makes a numbered one for each run.
    """
    ours = [path for root in temporary for path in root.glob(f"{PREFIX}*") if not _alive(path.name.split("-")[2])]
    theirs = [path for root in pytest_roots for path in root.glob("pytest-[0-9]*") if not _alive(_locked_by(path))]
    left = find([*ours, *theirs])
    clear(left)
    remaining = find([*ours, *theirs])
    if not remaining:  # never delete through a mount
        for path in ours:
            remove(path)
    return left


def remove(path: Path) -> None:
    """Remove a directory of a test, also where it holds directories that its owner may not enter."""
    if os.geteuid() != 0:
        subprocess.run(["chmod", "--recursive", "--quiet", "u+rwX", "--", path], check=False, capture_output=True)
    # Not shutil.rmtree: it recurses, and the trees of some tests are ten thousand levels deep.
    subprocess.run(["rm", "--recursive", "--force", "--one-file-system", "--", path], check=False, capture_output=True)


def _mounts(prefixes: tuple[str, ...]) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        head, _, tail = line.partition(" - ")
        target = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), head.split(" ")[4])
        # The tail names the source and, for an overlay, its directories.
        if f"{target}/".startswith(prefixes) or any(prefix in tail for prefix in prefixes):
            yield target


def _loops(prefixes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for path in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):  # detached meanwhile
            file = path.read_text("utf-8", "surrogateescape").strip()
            if file.startswith(prefixes):
                yield f"/dev/{path.parts[3]}", file


def _processes(session: str) -> Iterator[tuple[int, str]]:
    mark = f"{SESSION_VARIABLE}={session}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
            if pid == os.getpid() or mark not in (path / "environ").read_bytes().split(b"\0"):
                continue
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if not any(helper in command for helper in _HELPERS):
                yield pid, command


def _locked_by(path: Path) -> str:
    """Return the pid in pytest's lock file; a directory without one belongs to a run that has ended."""
    try:
        return (path / ".lock").read_text().strip()
    except OSError:
        return ""


def _alive(pid: str) -> bool:
    return pid.isdecimal() and Path("/proc", pid).exists()
