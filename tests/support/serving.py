"""``layerfs serve`` as a process of its own, on a store of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAM = (sys.executable, "-m", "layerfs.command")
_PATIENCE = 60
"""Seconds for the service to begin and to end."""


class Serving:
    """The service on the store ``place/store`` at ``place/layerfs.sock``, while the block runs."""

    def __init__(self, place: Path, driver: str) -> None:
        self.store = place / "store"
        self.socket = place / "layerfs.sock"
        self._notify = place / "notify.sock"
        self._driver = driver
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it; kill it where a test failed with calls under way."""
        if self._process is None:
            return
        if error is None:
            self.stop()
            return
        self._process.kill()
        self._process.wait()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Return the process that serves."""
        assert self._process is not None, "not started"
        return self._process

    def start(self) -> None:
        """Start it and wait until it says that it is ready, as it says it to systemd."""
        command = (*PROGRAM, "-q", "--store", str(self.store), "--backend", self._driver, "serve")
        environment = {**os.environ, "NOTIFY_SOCKET": str(self._notify)}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            with suppress(FileNotFoundError):
                self._notify.unlink()
            manager.bind(str(self._notify))
            manager.settimeout(_PATIENCE)
            self._process = subprocess.Popen([*command, "--socket", str(self.socket)], env=environment)
            try:
                assert manager.recv(4096).startswith(b"READY=1")
            except BaseException:
                self._process.kill()
                self._process.wait()
                raise

    def stop(self) -> None:
        """End it by SIGTERM, and see that it ends as it should."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(_PATIENCE) == 0
        self._process = None
        assert not self.socket.exists()
