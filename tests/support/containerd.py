"""A containerd of a test's own: Debian's program with root, state and sockets below one directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_CONFIGURATION = """\
version = 2
root = "{place}/root"
state = "{place}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{place}/containerd.sock"
[ttrpc]
  address = "{place}/ttrpc.sock"
[proxy_plugins.layerfs]
  type = "snapshot"
  address = "{socket}"
"""
_PATIENCE = 60
_SHIMS = Path("/run/containerd")
"""Where the shims of every containerd have their sockets."""


def missing() -> str | None:
    """Return what is not installed, or None."""
    absent = [name for name in ("containerd", "ctr", "runc") if shutil.which(name, path=_path()) is None]
    return f"{', '.join(absent)} not installed (apt-get install containerd runc)" if absent else None


def pack(layout: Path, archive: Path) -> None:
    """Write an OCI layout as the tar that ``ctr images import`` takes."""
    subprocess.run(["tar", "--create", "--file", str(archive), "--directory", str(layout), "."], check=True)


class Containerd:
    """containerd with layerfs as its proxy plugin, while the block runs; ``socket`` is the one of `layerfs serve`."""

    def __init__(self, place: Path, socket: Path) -> None:
        self.place = place
        self._cgroup = f"layerfs-test-{os.getpid()}"
        self._had_shims = _SHIMS.exists()
        self._process: subprocess.Popen[bytes] | None = None
        (place / "config.toml").write_text(_CONFIGURATION.format(place=place, socket=socket))

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every task, stop it, and remove what runc and the shims leave on the host."""
        with suppress(AssertionError):
            for task in self.ctr("tasks", "ls", "-q").split():
                self.ctr("tasks", "rm", "--force", task)
        self._await_shims()
        self.stop()
        for parent in Path("/sys/fs/cgroup").glob(f"*/{self._cgroup}"):
            parent.rmdir()
        if not self._had_shims:
            for directory in (_SHIMS / "s", _SHIMS / "fifo", _SHIMS):
                with suppress(FileNotFoundError):
                    directory.rmdir()

    def _await_shims(self) -> None:
        """Wait for the processes that look after containers: they work in a directory below ours."""
        deadline = time.monotonic() + _PATIENCE
        while any(_works_below(pid, self.place) for pid in os.listdir("/proc") if pid.isdecimal()):
            assert time.monotonic() < deadline, "a shim does not end"
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Return the daemon's process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = (self.place / "log").open("ab")
        command = ["containerd", "--config", str(self.place / "config.toml")]
        self._process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PATH": _path()})
        log.close()
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self.ctr("version")
            except AssertionError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End it; its containers run on."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_PATIENCE)
            self._process = None

    def run(self, name: str, image: str, *command: str, detach: bool = False) -> str:
        """Run a container and return what it wrote; it stays, with its snapshot."""
        options = ["--snapshotter", "layerfs", "--fifo-dir", str(self.place / "fifo")]
        options += ["--runc-root", str(self.place / "runc"), "--cgroup", f"/{self._cgroup}/{name}"]
        return self.ctr("run", *options, *(["--detach"] if detach else []), image, name, *command)

    def exec(self, name: str, *command: str) -> str:
        """Run a further process in a container and return what it wrote."""
        number = f"exec-{time.monotonic_ns()}"
        return self.ctr("tasks", "exec", "--fifo-dir", str(self.place / "fifo"), "--exec-id", number, name, *command)

    def snapshots(self, *arguments: str) -> str:
        """Run one of the commands of ``ctr snapshots`` on the plugin."""
        return self.ctr("snapshots", "--snapshotter", "layerfs", *arguments)

    def known(self) -> set[str]:
        """Return the keys of the snapshots that containerd knows."""
        return {line.split()[0] for line in self.snapshots("ls").splitlines()[1:]}

    def ctr(self, *arguments: str) -> str:
        """Run containerd's client."""
        command = ["ctr", "--address", str(self.place / "containerd.sock"), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "PATH": _path()}
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout


def _works_below(pid: str, place: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd").startswith(f"{place}/")
    except OSError:  # it has ended
        return False


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
