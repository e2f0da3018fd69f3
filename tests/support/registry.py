"""A registry on this machine (Debian's docker-registry), and a proxy before it that does to it what networks do."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import pytest
import urllib3

Fault = Callable[[str, str, int], str]
"""Tell what befalls a request of this method and path, the n-th of its kind; "" is nothing."""

TOKEN = "token-of-the-test"  # noqa: S105  of no other worth
USER, PASSWORD = "somebody", "secret"
_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "host", "content-length", "authorization"})


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def registry(root: Path) -> Iterator[str]:
    """Run a registry that keeps its data in a directory; give its host."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("needs docker-registry")
    host = f"127.0.0.1:{free_port()}"
    config = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(root / "data")}},
        "http": {"addr": host},
    }
    (root / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (root / "log").open("w") as log:
        running = subprocess.Popen([program, "serve", root / "config.yml"], stdout=log, stderr=log)
    try:
        _wait(host)
        yield host
    finally:
        running.terminate()
        running.wait()


def _wait(host: str) -> None:
    name, _, port = host.partition(":")
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex((name, int(port))) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"no registry at {host}")


@dataclass
class Proxy:
    """What a proxy does (``fault``) and what it saw (``seen``: method and path)."""

    host: str
    fault: Fault = lambda _method, _path, _number: ""
    seen: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)


class _Handler(BaseHTTPRequestHandler):
    """Hand a request on, and do to the answer what the test wants done."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's name
        """Keep quiet."""

    @property
    def _own(self) -> _Server:
        return cast("_Server", self.server)

    def _handle(self) -> None:
        state = self._own.state
        state.seen.append((self.command, self.path))
        state.headers.append(dict(self.headers))
        state.counts[self.command, self.path] += 1
        fault = state.fault(self.command, self.path, state.counts[self.command, self.path])
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        word, _, value = fault.partition(" ")
        early = self._early(word, value)
        if early is not None:
            self._answer(*early)
        elif word == "drop":
            self._hang_up()
        else:
            self._send(self._ask(body, ranges=fault != "no ranges"), fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815  http.server's names

    def _early(self, word: str, value: str) -> tuple[int, dict[str, str], bytes] | None:
        """Return the answer to a request that is not handed on."""
        said = self.headers.get("Authorization", "")
        own = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        answer: tuple[int, dict[str, str], bytes] | None = None
        if word.isdecimal():
            answer = int(word), {"Retry-After": value} if value else {}, b""
        elif word == "bearer" and said != f"Bearer {TOKEN}":
            realm = f'Bearer realm="http://{self._own.state.host}/token",service="test"'
            answer = 401, {"WWW-Authenticate": realm}, b""
        elif word == "token":
            known = said == f"Basic {own}"
            answer = (200, {}, json.dumps({"token": TOKEN}).encode()) if known else (401, {}, b"")
        elif word == "basic" and not said.startswith("Basic "):
            answer = 401, {"WWW-Authenticate": 'Basic realm="test"'}, b""
        elif word == "to":
            answer = 307, {"Location": value}, b""
        return answer

    def _ask(self, body: bytes, *, ranges: bool) -> urllib3.BaseHTTPResponse:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        if not ranges:
            headers.pop("Range", None)
        return self._own.pool.request(
            self.command,
            f"http://{self._own.upstream}{self.path}",
            headers={**headers, "Host": self._own.state.host},
            body=body or None,
            redirect=False,
            decode_content=False,
        )

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send(self, answer: urllib3.BaseHTTPResponse, fault: str) -> None:
        headers = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
        data = {"flip": _flipped, "longer": _longer, "shorter": _shorter}.get(fault, bytes)(answer.data)
        if self.command == "HEAD":
            headers["Content-Length"] = answer.headers["Content-Length"]
        if fault == "cut":
            self._answer(answer.status, {**headers, "Content-Length": str(len(data))}, data[: len(data) // 2])
            self._hang_up()
        else:
            self._answer(answer.status, headers, data)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def _flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:] if data else data


def _longer(data: bytes) -> bytes:
    return data + b"x"


def _shorter(data: bytes) -> bytes:
    return data[:-1]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.pool = urllib3.PoolManager(maxsize=8, retries=False)
        self.state = Proxy(f"127.0.0.1:{self.server_address[1]}")


@contextmanager
def proxied(upstream: str) -> Iterator[Proxy]:
    """Run a proxy before a registry."""
    server = _Server(upstream)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        server.pool.clear()
