"""Whose keys are whose: the snapshots of containerd and other clients, beside those of layerfs's own images and clones.

A client's keys live in a *room* of the store's one key space, so that no client can name, list or remove what is not
its own; containerd's garbage collector removes whatever it lists and does not know.

containerd keeps its namespaces apart by itself: the keys that it sends begin with ``NAMESPACE/NUMBER/``, its clients'
namespace is in the metadata (``containerd-namespace``), and the garbage collector, which looks after all of them, calls
without one. So keys of that form are in one room, `_SHARED`, of which a namespace sees its part and who gives none sees
all. What any other client calls a snapshot, in a namespace, is in a room of that namespace.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from layerfs.contract import Info
from layerfs.errors import InvalidArgument

_SHARED: Final = "containerd/"
_OWN: Final = "containerd@"
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_LONGEST_NAMESPACE: Final = 76
"""Characters of a namespace (containerd ``identifiers/validate.go``)."""


@dataclass(frozen=True, slots=True)
class Room:
    """What one namespace names; "" is for who gives none."""

    namespace: str = ""

    def __post_init__(self) -> None:
        """Raise `InvalidArgument` for what is no namespace."""
        good = len(self.namespace) <= _LONGEST_NAMESPACE and _NAMESPACE.fullmatch(self.namespace)
        if self.namespace and not good:
            raise InvalidArgument(f"{self.namespace[:_LONGEST_NAMESPACE]!r} is no namespace")

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Return how the snapshots that can be seen from here are named in the store."""
        if not self.namespace:
            return (_SHARED,)
        return (f"{_SHARED}{self.namespace}/", self._own)

    def name(self, key: str) -> str:
        """Return the name in the store of what a client calls ``key``, "" for no snapshot."""
        if not key:
            return ""
        if not self.namespace or key.startswith(f"{self.namespace}/"):
            return _SHARED + key
        return self._own + key

    def key(self, name: str) -> str:
        """Return what the client calls a snapshot of this room."""
        own = self._own
        return name.removeprefix(own if self.namespace and name.startswith(own) else _SHARED)

    def seen(self, info: Info) -> Info:
        """Return a record with the names that the client knows."""
        name, parent = self.key(info.name), self.key(info.parent)
        return Info(name, info.kind, parent, info.created, info.updated, info.labels)

    @property
    def _own(self) -> str:
        return f"{_OWN}{self.namespace}/"
