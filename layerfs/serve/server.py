"""The process's part: accept clients, give each its threads, and end cleanly."""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections.abc import Mapping
from typing import Final

from layerfs.kernel.descriptors import opened
from layerfs.serve import grpc
from layerfs.serve.grpc import Method
from layerfs.serve.http2 import Connection

_CLIENTS: Final = 256
"""Connections at a time; further ones wait in the socket's queue."""
_CALLS: Final = 32
"""Calls of one client that are carried out at a time; further ones wait."""
_PATIENCE: Final = 30.0
"""Seconds that a client has at the end to take its last answers."""

_log = logging.getLogger(__name__)


class Server:
    """Serve methods on a listening socket until `stop`."""

    def __init__(self, methods: Mapping[bytes, Method]) -> None:
        self._methods = methods
        self._guard = threading.Condition()
        self._clients: dict[Connection, int] = {}
        """The threads of each."""
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def stop(self) -> None:
        """Make `run` return; may be called by a signal handler, and more than once."""
        os.write(self._wake_writer, b"x")

    def run(self, listener: socket.socket) -> None:
        """Serve until `stop` is called and the calls that are under way have ended."""
        with opened(self._wake_reader), opened(self._wake_writer):
            listener.setblocking(False)
            poll = select.poll()
            poll.register(self._wake_reader, select.POLLIN)
            poll.register(listener, select.POLLIN)
            while self._wake_reader not in {ready for ready, _ in poll.poll()}:
                if len(self._clients) < _CLIENTS:
                    self._accept(listener)
                else:
                    self._pause()
            self._end()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # such as too many open files: the client waits in the queue
            _log.warning("cannot accept a client: %s", error.strerror)
            self._pause()
            return
        sock.setblocking(True)
        connection = Connection(sock)
        with self._guard:
            self._clients[connection] = 0
        self._add_thread(connection)

    def _pause(self) -> None:
        """Let the clients wait for a moment, unless the service is to stop."""
        select.select([self._wake_reader], [], [], 0.1)

    def _add_thread(self, connection: Connection) -> None:
        with self._guard:
            if self._clients[connection] >= _CALLS:
                return
            self._clients[connection] += 1
        # A daemon, lest the end of the process waits for a client: `_end` has waited for the calls.
        threading.Thread(target=self._serve, args=(connection,), name="layerfs-serve", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        try:
            while request := connection.next_request():
                if connection.short_of_threads:
                    self._add_thread(connection)
                grpc.serve(connection, request, self._methods)
        finally:
            self._forget_thread(connection)

    def _forget_thread(self, connection: Connection) -> None:
        with self._guard:
            self._clients[connection] -= 1
            if not self._clients[connection]:
                del self._clients[connection]
                connection.close()
            self._guard.notify_all()

    def _end(self) -> None:
        with self._guard:
            clients = list(self._clients)
        for connection in clients:
            connection.end_soon()
        with self._guard:
            if not self._guard.wait_for(lambda: not self._clients, timeout=_PATIENCE):
                for connection in self._clients:
                    connection.cut()
            self._guard.wait_for(lambda: not self._clients)
