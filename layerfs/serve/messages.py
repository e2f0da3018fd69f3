"""The messages of containerd's snapshots service, by the numbers of their fields.

Source: containerd ``api/services/snapshots/v1`` and ``api/types`` (package ``containerd.services.snapshots.v1``). Every
request has the name of the snapshotter as field 1, by which containerd chose this socket; it says nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from layerfs.contract import Info, Kind, Mount, Usage
from layerfs.serve import protobuf
from layerfs.serve.protobuf import Message

_KINDS: Final = {Kind.VIEW: 1, Kind.ACTIVE: 2, Kind.COMMITTED: 3}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """Prepare or View."""

    key: str
    parent: str
    labels: Mapping[str, str]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read one that was received."""
        message = Message(data)
        return cls(message.text(2), message.text(3), message.texts_by_text(4))


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """Mounts, Remove, Stat or Usage."""

    key: str

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read one that was received."""
        return cls(Message(data).text(2))


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """Commit."""

    name: str
    key: str
    labels: Mapping[str, str]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read one that was received."""
        message = Message(data)
        return cls(message.text(2), message.text(3), message.texts_by_text(4))


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """Update: of the snapshot's record only name and labels count; ``paths`` are those of the field mask."""

    name: str
    labels: Mapping[str, str]
    paths: Sequence[str]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read one that was received."""
        message = Message(data)
        info = message.message(2)
        return cls(info.text(1), info.texts_by_text(6), message.message(3).texts(1))


@dataclass(frozen=True, slots=True)
class ListRequest:
    """List."""

    filters: Sequence[str]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read one that was received."""
        return cls(Message(data).texts(2))


def mounts(values: Iterable[Mount]) -> bytes:
    """Return the answer to Prepare, View and Mounts."""
    return b"".join(protobuf.message(1, _mount(value)) for value in values)


def info(value: Info) -> bytes:
    """Return the answer to Stat and Update."""
    return protobuf.message(1, _info(value))


def infos(values: Iterable[Info]) -> bytes:
    """Return one part of the answer to List."""
    return b"".join(map(info, values))


def usage(value: Usage) -> bytes:
    """Return the answer to Usage."""
    return protobuf.number(1, value.size) + protobuf.number(2, value.inodes)


def _mount(value: Mount) -> bytes:
    return (
        protobuf.text(1, value.type)
        + protobuf.text(2, value.source)
        + protobuf.text(3, value.target)
        + protobuf.texts(4, value.options)
    )


def _info(value: Info) -> bytes:
    created = _timestamp(value.created)
    return (
        protobuf.text(1, value.name)
        + protobuf.text(2, value.parent)
        + protobuf.number(3, _KINDS[value.kind])
        + protobuf.message(4, created)
        + protobuf.message(5, created if value.updated == value.created else _timestamp(value.updated))
        + protobuf.texts_by_text(6, value.labels)
    )


def _timestamp(moment: datetime) -> bytes:
    """Return a ``google.protobuf.Timestamp``: seconds since 1970 and nanoseconds."""
    since = moment - _EPOCH
    return protobuf.number(1, since.days * 86400 + since.seconds) + protobuf.number(2, since.microseconds * 1000)
