"""A page in headless Chromium: its document after loading, what the console says, and whom it asked for anything."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = "chromium-headless-shell"
"""Debian's: it asks its makers for nothing, so whatever is asked is the page's."""
_FLAGS = ("--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr")
_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Loaded:
    """A page that was loaded: its DOM as text, the console's lines, and the first line of each request."""

    dom: str
    console: tuple[str, ...]
    requests: tuple[str, ...]


def missing() -> str | None:
    """Return why there is no Chromium, or None."""
    return None if shutil.which(_PROGRAM) else f"needs {_PROGRAM}"


def load(page: Path, directory: Path, *, dark: bool = False, width: int = 1200, picture: Path | None = None) -> Loaded:
    """Load a page with a new profile below ``directory``; everything it asks for goes to a proxy that only listens."""
    with _listener() as (port, requests):
        words = [
            _PROGRAM,
            *_FLAGS,
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium does not start as root with it
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            f"--proxy-server=http://127.0.0.1:{port}",
            "--proxy-bypass-list=<-loopback>",
            f"--user-data-dir={directory / 'profile'}",
            f"--window-size={width},3000",
            f"--screenshot={picture}" if picture else "--dump-dom",
            page.as_uri(),
        ]
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=_SECONDS)
    console = tuple(line for line in done.stderr.splitlines() if ":CONSOLE" in line)
    return Loaded(done.stdout, console, tuple(requests))


@contextmanager
def _listener() -> Iterator[tuple[int, list[str]]]:
    """Listen as a proxy that answers nobody; give the port, and a list that gets the first line of what is asked."""
    requests: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_listen, args=(server, requests), daemon=True)
        thread.start()
        yield server.getsockname()[1], requests
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def _listen(server: socket.socket, requests: list[str]) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:  # shut down
            return
        with client, suppress(OSError):
            client.settimeout(5)
            requests.append(client.recv(4096).partition(b"\r\n")[0].decode("latin-1"))
