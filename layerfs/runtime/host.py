"""What of this host decides how a container is set up: control groups, swap, user namespaces."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from layerfs.errors import Unsupported
from layerfs.kernel import userns
from layerfs.kernel.userns import IdMap, IdRange
from layerfs.runtime.container import Limits
from layerfs.runtime.spec import Host

_GROUPS: Final = Path("/sys/fs/cgroup")
_SYSTEMD: Final = Path("/run/systemd/system")


def host_facts(id_map: IdMap | None, limits: Limits, name: str = "") -> Host:
    """Return what a configuration depends on; ``id_map`` is that of the store, ``name`` that of the container if known.

    An ordinary user is root of a user namespace that the runtime makes, with no other id in it. Raise `Unsupported`
    for limits where no control group can be had to hold them.
    """
    inside = not userns.is_initial()
    ordinary = os.geteuid() != 0
    host = Host(
        machine=os.uname().machine,
        mapping=_own_ids() if ordinary else id_map if not inside else None,
        inside=inside,
        unified=is_unified(),
        swap_counted=_is_swap_counted(),
        cgroup=_group(name) if not (inside or ordinary) or has_session() else "",
    )
    if limits and (inside or ordinary) and not has_session():
        raise Unsupported(
            "an ordinary user has no control group here that could hold the limits",
            hint="run it as root, in a session of systemd with cgroup v2, or without --memory, --cpus and --pids",
        )
    return host


def is_unified() -> bool:
    """Tell whether cgroup v2 holds all controllers."""
    return (_GROUPS / "cgroup.controllers").exists()


def has_session() -> bool:
    """Tell whether systemd gives an ordinary user control groups of their own."""
    bus = os.environ.get("DBUS_SESSION_BUS_ADDRESS") or os.environ.get("XDG_RUNTIME_DIR")
    return os.geteuid() != 0 and is_unified() and _SYSTEMD.exists() and bool(bus)


def _group(name: str) -> str:
    """Return where the group of a container goes: runc(8) reads the form with colons as systemd's."""
    if not name:
        return ""
    return f"user.slice:layerfs:{name}" if has_session() else f"/layerfs/{name}"


def _own_ids() -> IdMap:
    return IdMap((IdRange(0, os.geteuid(), 1),), (IdRange(0, os.getegid(), 1),))


def _is_swap_counted() -> bool:
    """Tell whether memory and swap can be limited together, which takes swap accounting (cgroup-v1/memory.rst)."""
    if is_unified():
        return any(_GROUPS.glob("*/memory.swap.max"))
    return (_GROUPS / "memory" / "memory.memsw.limit_in_bytes").exists()
