"""A client of containerd's snapshots service, by grpcio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc

from layerfs.serve import protobuf
from layerfs.serve.protobuf import Message
from layerfs.serve.service import NAME


class Client:
    """Calls of the snapshots service in one namespace; None is for no namespace."""

    def __init__(self, path: Path, namespace: str | None = "mine") -> None:
        self._channel = grpc.insecure_channel(f"unix:{path}")
        self._metadata = (("containerd-namespace", namespace),) if namespace is not None else ()

    def close(self) -> None:
        self._channel.close()

    def call(self, verb: str, *fields: bytes, timeout: float = 30) -> Message:
        invoke: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(f"/{NAME}/{verb}")
        answer = invoke(b"".join(fields), timeout=timeout, metadata=self._metadata, wait_for_ready=True)
        return Message(answer)

    def prepare(self, key: str, parent: str = "", labels: dict[str, str] | None = None) -> tuple[Message, ...]:
        fields = protobuf.text(2, key), protobuf.text(3, parent), protobuf.texts_by_text(4, labels or {})
        return self.call("Prepare", *fields).messages(1)

    def commit(self, name: str, key: str) -> None:
        self.call("Commit", protobuf.text(2, name), protobuf.text(3, key))

    def keys(self, *filters: str) -> list[str]:
        invoke: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(f"/{NAME}/List")
        parts = invoke(protobuf.texts(2, filters), timeout=30, metadata=self._metadata)
        return [info.text(1) for part in parts for info in Message(part).messages(1)]

    def fails(self, verb: str, *fields: bytes) -> tuple[grpc.StatusCode, str]:
        try:
            self.call(verb, *fields)
        except grpc.RpcError as raised:
            error: Any = raised  # a grpc.Call as well, for which there is no type
            return error.code(), error.details()
        raise AssertionError(f"{verb} succeeded")
