"""The machine that user-mode Linux makes: a kernel that is an ordinary process, with device-mapper and quotas.

Its programs run on the host's processor as they are; only their system calls are caught. So it boots in two seconds
and is not emulated. It sees the host's files by hostfs, has one processor, and knows no ZFS.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.guest import host
from tests.guest.host import Job
from tests.guest.image import Image

PORTS = "/dev/ttyS"
"""What comes before a port's number."""


@contextmanager
def running(job: Job, files: Image) -> Iterator[subprocess.Popen[bytes]]:
    """Run the machine for the time of a block, at most.

    Each program in it is a process of the host, which the kernel's own does not take along when it is killed: the
    namespace of processes does.
    """
    assert files.user_mode is not None
    with job.console.open("wb") as console, job.archive.open("wb") as archive, job.live.open("ab") as live:
        ports = (job.output, archive.fileno(), live.fileno())
        words = (
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            *host.sharing(job, _arguments(job, files, ports)),
        )
        process = host.start(words, *ports, output=console, errors=console)
    try:
        yield process
    finally:
        process.kill()  # `unshare` hears nothing else
        process.wait()


def _arguments(job: Job, files: Image, ports: tuple[int, ...]) -> list[str]:
    # Its memory is a file that has no name any more, in the first of these directories, or in /dev/shm.
    without = [word for name in ("TMPDIR", "TMP", "TEMP") for word in ("-u", name)]
    return [
        *("env", *without, str(files.user_mode), f"mem={job.memory}M", f"uml_dir={job.directory}/uml"),
        *(f"initrd={files.initrd}", f"ubd0rc={files.packages}", "con=null", "con0=null,fd:1"),
        *(f"ssl{number}=null,fd:{port}" for number, port in enumerate(ports, start=1)),
        *("quiet", "panic=-1", "noreboot", "files=hostfs", "disk=/dev/ubda", f"job={job.script}"),
    ]
