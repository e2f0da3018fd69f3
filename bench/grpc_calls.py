"""Measure what a call of gRPC costs that does nothing, by the server of ``layerfs serve`` and by others.

    python bench/grpc_calls.py [--rounds 10] [--calls 500]

One client in Go calls each server on a unix socket so many times in a row, the servers in turn: ours, grpcio with
threads and with asyncio, a server on the package h2, and gRPC's own for Go. Printed are medians of the rounds' means in
microseconds, and the servers' CPU time a call. grpcio and h2 are left out where they are not installed; golang-go and
golang-github-containerd-containerd-dev are needed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from serve import Peer, ask, build, running

OURS = """
import pathlib, sys
from layerfs.serve import activation, server
methods = {b"/containerd.services.snapshots.v1.Snapshots/Remove": lambda data, metadata: (b"",)}
with activation.listening(pathlib.Path(sys.argv[1])) as listener:
    server.Server(methods).run(listener)
"""
THREADS = """
import sys, grpc
from concurrent import futures
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
server = grpc.server(futures.ThreadPoolExecutor(8), [Handler()])
server.add_insecure_port("unix:" + sys.argv[1])
server.start()
server.wait_for_termination()
"""
ASYNCIO = """
import asyncio, sys, grpc
async def answer(request, context):
    return b""
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(answer)
async def main():
    server = grpc.aio.server(handlers=[Handler()])
    server.add_insecure_port("unix:" + sys.argv[1])
    await server.start()
    await server.wait_for_termination()
asyncio.run(main())
"""
H2 = """
import socket, sys
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded
names = [f"{what}_{way}_headers" for what in ("validate", "normalize") for way in ("inbound", "outbound")]
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
client, _ = listener.accept()
connection = H2Connection(H2Configuration(client_side=False, **dict.fromkeys(names, False)))
connection.initiate_connection()
client.sendall(connection.data_to_send())
while data := client.recv(65536):
    for event in connection.receive_data(data):
        if isinstance(event, DataReceived):
            connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            head = [(b":status", b"200"), (b"content-type", b"application/grpc")]
            connection.send_headers(event.stream_id, head)
            connection.send_data(event.stream_id, bytes(5))
            connection.send_headers(event.stream_id, [(b"grpc-status", b"0")], end_stream=True)
    if out := connection.data_to_send():
        client.sendall(out)
"""
SERVERS = {"layerfs": OURS, "grpcio, threads": THREADS, "grpcio, asyncio": ASYNCIO, "h2": H2}
_PACKAGES = {"grpcio, threads": "grpc", "grpcio, asyncio": "grpc", "h2": "h2"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=500)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="layerfs-bench-") as directory, ExitStack() as stack:
        place = Path(directory)
        build(place, "client", "nothing")
        commands = {name: [sys.executable, "-c", code] for name, code in SERVERS.items()}
        commands["Go"] = [str(place / "nothing")]
        peers: list[Peer] = []
        for number, (name, command) in enumerate(commands.items()):
            if name in _PACKAGES and find_spec(_PACKAGES[name]) is None:
                print(f"{name} is not installed")
                continue
            socket = place / f"{number}.sock"
            peers.append(Peer(name, socket, "layerfs", stack.enter_context(running([*command, socket], socket))))
        before = [peer.cpu() for peer in peers]
        times: defaultdict[str, list[float]] = defaultdict(list)
        for peer_name, _, found in ask(place, ("calls", asked.rounds, asked.calls), peers):
            times[peer_name].append(found["call"] / 1e3)
        count = asked.rounds * asked.calls
        print(f"{'':18}{'µs a call':>12}{'of CPU':>12}")
        for peer, was in zip(peers, before, strict=True):
            spent = (peer.cpu() - was) / count * 1e6
            print(f"{peer.name:18}{statistics.median(times[peer.name]):12.0f}{spent:12.0f}")


if __name__ == "__main__":
    main()
