"""Run a command in the guest: a virtual machine that sees the host's files at their own paths.

The host's ``/`` is shared read-only (virtiofs) below a throw-away layer in memory, so whatever the command writes is
lost, except what it leaves in ``/out``. In the place of the checkout it sees a copy, made when it starts: editing on is
no harm. Its output and the files of ``/out`` leave through two serial ports. There is
no udev and no network. ``/scratch`` and ``/dev/shm`` are in memory and take the upper layer of an overlay, which ``/``
and ``/tmp`` do not.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.guest.image import Image, image, say
from tests.support.debian import Unavailable

DEAD = 125
"""The exit status for a guest that died or reached its time limit."""

MARK = "LAYERFS_IN_GUEST"
"""The environment variable that is set in the guest."""

LIVE = "LAYERFS_GUEST_LIVE"
"""The environment variable that names, in the guest, a device: what is written there is not lost if the guest dies."""

_VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
_QEMU = "qemu-system-x86_64"
_CONSOLE_LINES = 40
"""Of the kernel's messages: shown when the guest died."""

_CHECKOUT = Path(__file__).parents[2]
_NOT_COPIED = (".git", ".venv")
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

_JOB = """\
export PATH={path}:/usr/sbin:/sbin HOME={home} LC_ALL=C.UTF-8 TMPDIR=/scratch {mark}=1
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 {live}=$(echo /dev/vport*p3)
export DM_DISABLE_UDEV=1  # libdevmapper makes its nodes itself
ldconfig  # the guest's own libraries are not in the host's cache of them
modprobe -a loop fuse zfs dm_thin_pool
cd {directory} && env {variables} {command} </dev/null >$(echo /dev/vport*p1) 2>&1
echo $? >/out/.status
tar -C /out -cf - . >$(echo /dev/vport*p2)
busybox poweroff -f
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the guest is given: ``memory`` in MiB, processors, a time limit in seconds.

    One processor is best under software emulation, unless races are looked for.
    """

    memory: int = 4096
    processors: int = 1
    limit: float = 1800


def inside() -> bool:
    """Tell whether this is the guest."""
    return MARK in os.environ


def slowness() -> int:
    """Return how many times longer than elsewhere Python takes here, roughly: to choose moments by, never to judge."""
    return 8 if inside() else 1


def missing() -> str | None:
    """Return why no guest can run here, or None."""
    if os.geteuid() != 0:
        return "the guest is run by root only: it is given the host's files"
    if inside():
        return "this is the guest"
    if shutil.which(_QEMU) is None or _virtiofsd() is None:
        return f"{_QEMU} or virtiofsd is not installed: apt-get install qemu-system-x86"
    return None


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
    with tempfile.TemporaryDirectory(prefix="layerfs-guest-") as temporary:
        job = Path(temporary)
        script = _script(command, variables or {}, directory or Path.cwd())
        (job / "job").write_text(script, encoding="utf-8")
        ended = _boot(job, image(), machine or Machine(), output or sys.stdout.buffer, live or job / "live")
        status = _collect(job / "out.tar", out)
        if status is None:
            console = (job / "console").read_text("utf-8", "replace").splitlines()[-_CONSOLE_LINES:]
            say("\n".join([f"the guest {ended}; its console:", *console]))
            return DEAD
    return status


def _script(command: Sequence[str], variables: Mapping[str, str], directory: Path) -> str:
    return _JOB.format(
        path=shlex.quote(os.environ.get("PATH", "/usr/bin")),
        home=shlex.quote(str(Path.home())),
        mark=MARK,
        live=LIVE,
        directory=shlex.quote(str(directory)),
        variables=shlex.join(f"{name}={value}" for name, value in variables.items()),
        command=shlex.join(command),
    )


def _boot(job: Path, files: Image, machine: Machine, output: BinaryIO, live: Path) -> str:
    """Run the machine to its end, or to its time limit; return which it was."""
    for path in (job / "console", job / "out.tar", live):
        path.touch()
    deadline = time.monotonic() + machine.limit
    with ExitStack() as stack:
        _copy_checkout(job / "checkout")
        stack.enter_context(_serving(job / "files.socket", job / "checkout"))
        reader, writer = os.pipe()
        printed = stack.enter_context(os.fdopen(reader, "rb", buffering=0))
        qemu = _start(_arguments(job, files, machine, writer, live), writer)
        os.close(writer)
        stack.callback(_end, qemu)
        timer = stack.enter_context(_ended_at(deadline, qemu))
        while block := printed.read(1 << 16):
            output.write(block)
            output.flush()
        qemu.wait()
        return "reached its time limit" if timer.expired else f"died (QEMU: {qemu.returncode})"


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
    shutil.copytree(_CHECKOUT, target, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    for name in _NOT_COPIED:
        if (_CHECKOUT / name).is_dir():
            (target / name).mkdir()
    names = ("-s", str(target), "-p", str(_CHECKOUT))
    command = (sys.executable, "-m", "compileall", "-q", "-j0", *names, str(target))
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)  # what does not compile, tests will tell


@contextmanager
def _serving(socket: Path, checkout: Path) -> Iterator[None]:
    """Share the host's files, with this copy for the checkout, through a socket for the time of a block."""
    daemon = _virtiofsd()
    assert daemon is not None
    options = ("source=/", "sandbox=chroot", "cache=always", "xattr")
    words = [daemon, f"--socket-path={socket}", *(f"-o{option}" for option in options)]
    with socket.with_name("virtiofsd").open("wb") as log:  # it calls the end of the machine an error
        process = _start(("unshare", "--mount", "sh", "-ec", _SHARE, checkout, _CHECKOUT, *words), errors=log)
    try:
        for _ in range(200):
            if socket.exists():
                break
            time.sleep(0.05)
        yield
    finally:
        _end(process)


def _start(words: Sequence[str | Path], *descriptors: int, errors: BinaryIO | None = None) -> subprocess.Popen[bytes]:
    """Start a process of the machine: it ends when we are killed, and Ctrl-C is for us, who end it."""
    command = ("setpriv", "--pdeathsig", "KILL", *words)
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=errors, pass_fds=descriptors, start_new_session=True
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started, if it still runs."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _arguments(job: Path, files: Image, machine: Machine, output: int, live: Path) -> list[str]:
    memory = f"{machine.memory}M"
    devices = {
        "object": [f"memory-backend-memfd,id=memory,size={memory},share=on"],
        "chardev": [
            f"socket,id=files,path={job}/files.socket",
            # Not "stdio": with standard input at its end, QEMU closes that one.
            f"file,id=output,path=/dev/fd/{output}",
            f"file,id=out,path={job}/out.tar",
            f"file,id=live,path={live}",
        ],
        "drive": [f"file={files.packages},if=virtio,format=raw,read-only=on"],
        "device": [
            "vhost-user-fs-pci,chardev=files,tag=host",
            "virtio-serial-pci",
            "virtserialport,nr=1,chardev=output",
            "virtserialport,nr=2,chardev=out",
            "virtserialport,nr=3,chardev=live",
        ],
    }
    return [
        *(_QEMU, *_processor(), "-M", "q35,memory-backend=memory", "-m", memory, "-smp", str(machine.processors)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", f"file:{job}/console"),
        *("-kernel", str(files.kernel), "-initrd", str(files.initrd)),
        *("-append", f"console=ttyS0 quiet panic=-1 no_timer_check mitigations=off job={job}/job"),
        *(word for kind, values in devices.items() for value in values for word in (f"-{kind}", value)),
    ]


def _processor() -> tuple[str, ...]:
    """Return how the processor is had: by KVM where it is whole, else by emulation.

    KVM on top of PVM (kvm_pvm) runs kernels made for it only. Emulation by QEMU 7.2 gets cmpxchg16b wrong, of which
    newer kernels die.
    """
    if os.access("/dev/kvm", os.W_OK) and not os.path.exists("/sys/module/kvm_pvm"):
        return ("-accel", "kvm", "-cpu", "host")
    return ("-accel", "tcg,thread=multi", "-cpu", "Nehalem,-cx16")


def _virtiofsd() -> str | None:
    return next((path for path in _VIRTIOFSD if os.access(path, os.X_OK)), None)


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
