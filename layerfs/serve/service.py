"""containerd's snapshots service: each verb of the snapshotter as a call.

Source: containerd ``api/services/snapshots/v1/snapshots.proto``, and ``mount/mount_linux.go`` for the mounts that a
client performs by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from layerfs.contract import Info, Mount, UnsharedMounts
from layerfs.errors import InvalidArgument, Unsupported
from layerfs.filters import compile_filters
from layerfs.kernel import mounters
from layerfs.serve import messages
from layerfs.serve.grpc import Metadata, Method
from layerfs.serve.rooms import Room
from layerfs.snapshotter import Snapshotter

NAME: Final = "containerd.services.snapshots.v1.Snapshots"
"""The service, as gRPC names it."""

_NAMESPACE: Final = b"containerd-namespace"
_PART: Final = 250
"""Snapshots in one message of a list."""
_OURS: Final = "layerfs/"
"""How the labels begin that mean something to layerfs itself."""


class Service:
    """Answer the calls of containerd's snapshots service from a snapshotter."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def methods(self) -> Mapping[bytes, Method]:
        """Return the methods by their paths."""
        verbs: dict[str, Method] = {
            "Prepare": self.prepare,
            "View": self.view,
            "Mounts": self.mounts,
            "Commit": self.commit,
            "Remove": self.remove,
            "Stat": self.stat,
            "Update": self.update,
            "List": self.list,
            "Usage": self.usage,
            "Cleanup": self.cleanup,
        }
        return {f"/{NAME}/{verb}".encode(): method for verb, method in verbs.items()}

    def prepare(self, data: bytes, metadata: Metadata) -> Iterable[bytes]:
        """Make an active snapshot."""
        room, asked = _room(metadata), messages.CreateRequest.parse(data)
        key = room.name(asked.key)
        made = self._snapshotter.prepare(key, room.name(asked.parent), labels=_checked(asked.labels))
        return (messages.mounts(self._performable(key, made)),)

    def view(self, data: bytes, metadata: Metadata) -> Iterable[bytes]:
        """Make a view."""
        room, asked = _room(metadata), messages.CreateRequest.parse(data)
        key = room.name(asked.key)
        made = self._snapshotter.view(key, room.name(asked.parent), labels=_checked(asked.labels))
        return (messages.mounts(self._performable(key, made)),)

    def mounts(self, data: bytes, metadata: Metadata) -> Iterable[bytes]:
        """Return the mounts of an active snapshot or a view."""
        key = _room(metadata).name(messages.KeyRequest.parse(data).key)
        return (messages.mounts(self._performable(key, self._snapshotter.mounts(key))),)

    def commit(self, data: bytes, metadata: Metadata) -> Iterable[bytes]:
        """Commit an active snapshot."""
        room, asked = _room(metadata), messages.CommitRequest.parse(data)
        self._snapshotter.commit(room.name(asked.name), room.name(asked.key), labels=_checked(asked.labels))
        return (b"",)

    def remove(self, data: bytes, metadata: Metadata) -> Iterable[bytes]:
        """Remove a snapshot."""
        self._snapshotter.remove(_room(metadata).name(messages.KeyRequest.parse(data).key))
        return (b"",)

    def stat(self, data: bytes, metadata: Metadata) -> Iterable[bytes]:
        """Return the record of a snapshot."""
        room = _room(metadata)
        found = self._snapshotter.stat(room.name(messages.KeyRequest.parse(data).key))
        return (messages.info(room.seen(found)),)

    def update(self, data: bytes, metadata: Metadata) -> Iterable[bytes]:
        """Change the labels of a snapshot."""
        room, asked = _room(metadata), messages.UpdateRequest.parse(data)
        found = self._snapshotter.stat(room.name(asked.name))
        changed = self._snapshotter.update(replace(found, labels=_checked(asked.labels)), *asked.paths)
        return (messages.info(room.seen(changed)),)

    def list(self, data: bytes, metadata: Metadata) -> Iterable[bytes]:
        """Return the records of the snapshots that pass one of the filters, in parts."""
        room = _room(metadata)
        passes = compile_filters(tuple(messages.ListRequest.parse(data).filters))
        found = (info for info in self._visible(room) if passes(info))
        return map(messages.infos, _parts(found))

    def usage(self, data: bytes, metadata: Metadata) -> Iterable[bytes]:
        """Return what a snapshot takes without its parents."""
        key = _room(metadata).name(messages.KeyRequest.parse(data).key)
        return (messages.usage(self._snapshotter.usage(key)),)

    def cleanup(self, data: bytes, metadata: Metadata) -> Iterable[bytes]:  # noqa: ARG002  every verb takes both
        """Delete what no snapshot needs."""
        self._snapshotter.cleanup()
        return (b"",)

    def _visible(self, room: Room) -> Iterator[Info]:
        for prefix in room.prefixes:
            yield from map(room.seen, self._snapshotter.infos(prefix=prefix))

    def _performable(self, key: str, mounts: Sequence[Mount]) -> Sequence[Mount]:
        """Return the mounts as containerd can perform them: it knows no place but its own target."""
        if any(mount.target for mount in mounts):
            driver = self._snapshotter.driver
            if not isinstance(driver, UnsharedMounts):
                raise Unsupported(f"the driver {driver.name} shows {key!r} by mounts that containerd cannot perform")
            mounts = driver.unshared_mounts(self._snapshotter.snapshot(key))
        return tuple(map(mounters.for_helper, mounts))


def _room(metadata: Metadata) -> Room:
    return Room(metadata.get(_NAMESPACE, b"").decode("ascii", "replace"))


def _checked(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Refuse labels that would make layerfs take a client's snapshot for one of its own."""
    for key in labels:
        if key.startswith(_OURS):
            raise InvalidArgument(f"the label {key!r} is for layerfs's own use", hint="use another prefix")
    return labels


def _parts(infos: Iterator[Info]) -> Iterator[list[Info]]:
    while part := list(islice(infos, _PART)):
        yield part
