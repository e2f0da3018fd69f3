"""What somebody wants of a container beyond what its image says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from layerfs.errors import InvalidArgument

_SMALLEST_MEMORY = 4 << 20
"""Bytes: with less the runtime itself, which starts inside the limit, does not get as far as the command."""

_LEAST_CPUS, _MOST_CPUS = 0.01, 1 << 20
"""The kernel's least quota is 1 ms, of the 100 ms over which the share is counted (sched-bwc)."""


class Network(StrEnum):
    """What network a container has: none but its own loopback, or the host's."""

    NONE = "none"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container may take: memory in bytes (swap none beyond it), processors as a number of them, tasks.

    None is no limit. Raise `InvalidArgument` for a limit with which nothing runs.
    """

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None

    def __post_init__(self) -> None:
        if self.memory is not None and self.memory < _SMALLEST_MEMORY:
            raise InvalidArgument(
                f"{self.memory} bytes of memory are too few for a container", hint="give it 4 MiB or more"
            )
        if self.cpus is not None and not _LEAST_CPUS <= self.cpus <= _MOST_CPUS:
            raise InvalidArgument(f"{self.cpus} processors cannot be given", hint="0.01 is the least")
        if self.pids is not None and self.pids < 1:
            raise InvalidArgument("a container has one process at least", hint="give a limit of 1 or more")

    def __bool__(self) -> bool:
        return self != _UNLIMITED


_UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or directory of the host (absolute path) that the container sees at ``target`` (absolute path inside)."""

    source: str
    target: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Bind:
        """Read "SOURCE:TARGET" or "SOURCE:TARGET:ro"; raise `InvalidArgument`."""
        source, _, rest = text.partition(":")
        target, _, mode = rest.partition(":")
        if not source.startswith("/") or not target.startswith("/") or mode not in {"", "ro", "rw"}:
            raise InvalidArgument(
                f"{text!r} is not SOURCE:TARGET or SOURCE:TARGET:ro", hint="both are absolute paths: /data:/srv:ro"
            )
        return cls(source, target, mode == "ro")


@dataclass(frozen=True, slots=True)
class Container:
    """How a container is to differ from what its image's configuration says; what is None or empty is the image's.

    ``command`` are the words that follow the entrypoint, ``env`` holds "NAME=value", ``user`` is "user", "uid" or
    either with ":group". ``add_capabilities`` and ``drop_capabilities`` are names with or without ``CAP_``, or "ALL".
    ``confined`` puts the default filter of system calls (`layerfs.runtime.seccomp`) in place.
    """

    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    workdir: str | None = None
    user: str | None = None
    hostname: str = "layerfs"
    terminal: bool = False
    network: Network = Network.NONE
    read_only: bool = False
    limits: Limits = _UNLIMITED
    binds: tuple[Bind, ...] = ()
    add_capabilities: tuple[str, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    confined: bool = True

    def __post_init__(self) -> None:
        check_words("the command", (*self.command, *(self.entrypoint or ())))
        check_words("a variable", self.env)
        for text in self.env:
            if text.startswith("=") or "=" not in text:
                raise InvalidArgument(f"{text!r} is no variable", hint="write it as NAME=VALUE")


def check_words(what: str, words: Iterable[str]) -> None:
    """Raise `InvalidArgument` for what no process can be given: execve(2) takes strings without NUL."""
    for word in words:
        if "\0" in word:
            raise InvalidArgument(f"{what} holds a NUL character: {word!r}")
