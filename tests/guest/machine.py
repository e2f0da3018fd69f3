"""Run a command in a guest: a machine with another kernel that sees the host's files at their own paths.

The host's ``/`` is shared read-only below a throw-away layer in memory, so whatever the command writes is lost, except
what it leaves in ``/out``. In the place of the checkout it sees a copy, made when it starts: editing on is no harm. Its
output and the files of ``/out`` leave through serial ports. There is no udev and no network. ``/scratch`` and
``/dev/shm`` are in memory and take the upper layer of an overlay, which ``/`` and ``/tmp`` do not.

There are two kinds. QEMU's has ZFS, and is emulated where KVM does not work, which slows Python eight times. User-mode
Linux has no ZFS, and runs nearly as fast as the host.
"""

from __future__ import annotations

import enum
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from tests.guest import host, qemu, uml
from tests.guest.host import Job
from tests.guest.image import Image, image, say
from tests.support.debian import Unavailable

DEAD = 125
"""The exit status for a guest that died or reached its time limit."""

MARK = "LAYERFS_IN_GUEST"
"""The environment variable that is set in the guest, to its kind."""

LIVE = "LAYERFS_GUEST_LIVE"
"""The environment variable that names, in the guest, a device: what is written there is not lost if the guest dies."""

_CONSOLE_LINES = 40
"""Of the kernel's messages: shown when the guest died."""

_JOB = """\
export PATH={path}:/usr/sbin:/sbin HOME={home} LC_ALL=C.UTF-8 TMPDIR=/scratch {mark}={kind}
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export DM_DISABLE_UDEV=1  # libdevmapper makes its nodes itself
output=$(echo {ports}1) archive=$(echo {ports}2) {live}=$(echo {ports}3)
export {live}
for port in "$output" "$archive" "${live}"; do
    case $port in */tty*) stty -F "$port" raw -echo ;; esac
done
ldconfig  # the guest's own libraries are not in the host's cache of them
modprobe -qa loop fuse zfs dm_thin_pool
cd {directory} && env {variables} {command} </dev/null >"$output" 2>&1
echo $? >/out/.status
tar -C /out -cf - . | cat >"$archive"
busybox poweroff -f
"""


class Kind(enum.StrEnum):
    """How a machine is made."""

    QEMU = "qemu"
    UML = "uml"


_PORTS = {Kind.QEMU: qemu.PORTS, Kind.UML: uml.PORTS}
_RUNNING = {Kind.QEMU: qemu.running, Kind.UML: uml.running}
_SLOWNESS = {Kind.QEMU: 8, Kind.UML: 2}


@dataclass(frozen=True, slots=True)
class Machine:
    """What the guest is given: ``memory`` in MiB, processors, a time limit in seconds.

    One processor is best under software emulation, unless races are looked for; user-mode Linux has no more.
    """

    kind: Kind = Kind.QEMU
    memory: int = 4096
    processors: int = 1
    limit: float = 1800


def inside() -> bool:
    """Tell whether this is the guest."""
    return MARK in os.environ


def emulated() -> bool:
    """Tell whether this is QEMU's: what the other kind's has anyhow, and takes long, is thinned here."""
    return os.environ.get(MARK) == Kind.QEMU


def slowness() -> int:
    """Return how many times longer than elsewhere Python takes here, roughly: to choose moments by, never to judge."""
    return _SLOWNESS[Kind(os.environ[MARK])] if inside() else 1


def missing() -> str | None:
    """Return why no guest can run here, or None."""
    if os.geteuid() != 0:
        return "the guest is run by root only: it is given the host's files"
    if inside():
        return "this is the guest"
    return qemu.missing()


def run(
    command: Sequence[str],
    *,
    machine: Machine | None = None,
    variables: Mapping[str, str] | None = None,
    directory: Path | None = None,
    output: BinaryIO | None = None,
    out: Path | None = None,
    live: Path | None = None,
) -> int:
    """Run a command as root in the guest, in the present directory or ``directory``; return its exit status, or `DEAD`.

    What it prints, on both streams, goes to ``output`` (standard output if None) as it comes, what it writes to the
    device `LIVE` to the file ``live`` as it comes too, and in the end the files that it leaves in /out to the directory
    ``out``. Raise `Unavailable` where no guest can run.
    """
    if reason := missing():
        raise Unavailable(reason)
    files = image()
    wanted = machine or Machine()
    if files.user_mode is None:  # not every release of Debian has it, and QEMU's has all but its speed
        wanted = replace(wanted, kind=Kind.QEMU)
    with tempfile.TemporaryDirectory(prefix="layerfs-guest-") as temporary:
        place = Path(temporary)
        script = _script(wanted.kind, command, variables or {}, directory or Path.cwd())
        (place / "job").write_text(script, encoding="utf-8")
        ended = _boot(place, files, wanted, output or sys.stdout.buffer, live or place / "live")
        status = _collect(place / "out.tar", out)
        if status is None:
            console = (place / "console").read_text("utf-8", "replace").splitlines()[-_CONSOLE_LINES:]
            say("\n".join([f"the guest {ended}; its console:", *console]))
            return DEAD
    return status


def _script(kind: Kind, command: Sequence[str], variables: Mapping[str, str], directory: Path) -> str:
    return _JOB.format(
        path=shlex.quote(os.environ.get("PATH", "/usr/bin")),
        home=shlex.quote(str(Path.home())),
        mark=MARK,
        kind=kind,
        ports=_PORTS[kind],
        live=LIVE,
        directory=shlex.quote(str(directory)),
        variables=shlex.join(f"{name}={value}" for name, value in variables.items()),
        command=shlex.join(command),
    )


def _boot(place: Path, files: Image, machine: Machine, output: BinaryIO, live: Path) -> str:
    """Run the machine to its end, or to its time limit; return which it was."""
    deadline = time.monotonic() + machine.limit
    with ExitStack() as stack:
        reader, writer = os.pipe()
        printed = stack.enter_context(os.fdopen(reader, "rb", buffering=0))
        job = Job(place, writer, live, machine.memory, machine.processors)
        _copy_checkout(job.checkout)
        for path in (job.console, job.archive, live):
            path.touch()
        process = stack.enter_context(_RUNNING[machine.kind](job, files))
        os.close(writer)
        timer = stack.enter_context(_ended_at(deadline, process))
        while block := printed.read(1 << 16):
            output.write(block)
            output.flush()
        process.wait()
        return "reached its time limit" if timer.expired else f"died (status {process.returncode})"


class _Timer:
    expired = False


@contextmanager
def _ended_at(deadline: float, process: subprocess.Popen[bytes]) -> Iterator[_Timer]:
    """Kill a process at a moment of the monotonic clock, unless the block ends before."""
    timer = _Timer()

    def expire() -> None:
        timer.expired = True
        process.kill()

    thread = threading.Timer(deadline - time.monotonic(), expire)
    thread.daemon = True
    thread.start()
    try:
        yield timer
    finally:
        thread.cancel()


def _copy_checkout(target: Path) -> None:
    """Copy the checkout, and compile it: the guest would, each time, and is slow at it."""
    shutil.copytree(host.CHECKOUT, target, symlinks=True, ignore=shutil.ignore_patterns(*host.NOT_COPIED))
    for name in host.NOT_COPIED:
        if (host.CHECKOUT / name).is_dir():
            (target / name).mkdir()
    names = ("-s", str(target), "-p", str(host.CHECKOUT))
    command = (sys.executable, "-m", "compileall", "-q", "-j0", *names, str(target))
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)  # what does not compile, tests will tell


def _collect(archive: Path, out: Path | None) -> int | None:
    """Unpack what the guest left in /out; return the command's exit status, None if the guest did not get so far."""
    got = archive.with_name("out")
    got.mkdir()
    done = subprocess.run(("tar", "-C", got, "-xf", archive), check=False, capture_output=True)
    if done.returncode or not (got / ".status").exists():
        return None
    status = int((got / ".status").read_text(encoding="ascii"))
    if out is not None:
        (got / ".status").unlink()
        shutil.copytree(got, out, dirs_exist_ok=True)
    return status
