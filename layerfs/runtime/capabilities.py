"""The capabilities of a container: what its root may do (capabilities(7))."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from layerfs.errors import InvalidArgument

DEFAULT: Final = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
"""What package managers and ordinary services take, and nothing that reaches beyond the container; Docker's choice."""

_MORE: Final = (
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_DAC_READ_SEARCH",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_NET_ADMIN",
    "CAP_NET_BROADCAST",
    "CAP_PERFMON",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
)
_EVERY: Final = frozenset((*DEFAULT, *_MORE))
_ALL: Final = "CAP_ALL"


def chosen(add: Iterable[str] = (), drop: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the default set with some more and some less, sorted; "ALL" is every one. What is added wins.

    Raise `InvalidArgument` for a name that Linux does not have.
    """
    added, dropped = set(map(_full, add)), set(map(_full, drop))
    start = _EVERY if _ALL in added else frozenset(DEFAULT)
    left = frozenset[str]() if _ALL in dropped and _ALL not in added else start - dropped
    return tuple(sorted((left | added) - {_ALL}))


def _full(name: str) -> str:
    full = name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"
    if full != _ALL and full not in _EVERY:
        raise InvalidArgument(f"there is no capability {name!r}", hint="capabilities(7) lists them, such as NET_ADMIN")
    return full
