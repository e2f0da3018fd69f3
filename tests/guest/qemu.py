"""The machine that QEMU makes: Debian's cloud kernel with ZFS. It sees the host's files by virtiofs."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.guest import host
from tests.guest.host import Job
from tests.guest.image import Image

PORTS = "/dev/vport*p"
"""What comes before a port's number; the device's own differs."""

_VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
_QEMU = "qemu-system-x86_64"


def missing() -> str | None:
    """Return why there is none here, or None."""
    if shutil.which(_QEMU) is None or _virtiofsd() is None:
        return f"{_QEMU} or virtiofsd is not installed: apt-get install qemu-system-x86"
    return None


@contextmanager
def running(job: Job, files: Image) -> Iterator[subprocess.Popen[bytes]]:
    """Run the machine for the time of a block, at most."""
    with _serving(job):
        process = host.start(_arguments(job, files), job.output, directory=job.directory)
        try:
            yield process
        finally:
            host.end(process)


@contextmanager
def _serving(job: Job) -> Iterator[None]:
    """Share the host's files through a socket for the time of a block."""
    daemon = _virtiofsd()
    assert daemon is not None
    options = ("source=/", "sandbox=chroot", "cache=always", "xattr")
    words = [daemon, f"--socket-path={_socket(job)}", *(f"-o{option}" for option in options)]
    with (job.directory / "virtiofsd").open("wb") as log:  # it calls the end of the machine an error
        shared = ("unshare", "--mount", *host.sharing(job, words))
        process = host.start(shared, directory=job.directory, errors=log)
    try:
        for _ in range(200):
            if (job.directory / _socket(job)).exists():
                break
            time.sleep(0.05)
        yield
    finally:
        host.end(process)


def _socket(job: Job) -> str:
    """Return the socket's name in the machine's directory, in which both ends start: paths have 107 bytes (unix(7)).

    It is this machine's alone, for virtiofsd keeps a lock of that name in a place of its own.
    """
    return f"{job.directory.name}.socket"


def _arguments(job: Job, files: Image) -> list[str]:
    memory = f"{job.memory}M"
    devices = {
        "object": [f"memory-backend-memfd,id=memory,size={memory},share=on"],
        "chardev": [
            f"socket,id=files,path={_socket(job)}",
            # Not "stdio": with standard input at its end, QEMU closes that one.
            f"file,id=output,path=/dev/fd/{job.output}",
            f"file,id=out,path={job.archive}",
            f"file,id=live,path={job.live}",
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
    told = f"files=virtiofs disk=/dev/vda job={job.script}"
    return [
        *(_QEMU, *_processor(), "-M", "q35,memory-backend=memory", "-m", memory, "-smp", str(job.processors)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", f"file:{job.console}"),
        *("-kernel", str(files.kernel), "-initrd", str(files.initrd)),
        *("-append", f"console=ttyS0 quiet panic=-1 no_timer_check mitigations=off {told}"),
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
