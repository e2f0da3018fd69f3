"""Who keeps a mount busy, for the hint of an error (what fuser(1) shows)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from layerfs.kernel import mountinfo

_SHOWN = 3


def busy_hint(target: Path) -> str:
    """Say what keeps the mount at ``target`` busy, as far as this user may see, and what to do about it."""
    inner = mountinfo.below(target)
    if inner:
        return f"{inner[-1].path} is mounted inside it: unmount that first"
    found = list(holders(target))
    if not found:
        return f"find who uses it (`fuser -vm {target}`) and try again, or unmount it lazily"
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"used by {', '.join(found[:_SHOWN])}{more}: end that, then try again"


def holders(target: Path) -> Iterator[str]:
    """Name the processes that work in ``target``, run from it or have a file of it open: "bash (pid 7)"."""
    place = os.path.realpath(target)
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and any(_inside(name, place) for name in _open_names(entry.path)):
            yield f"{_read(f'{entry.path}/comm').strip()} (pid {entry.name})"


def _inside(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place.rstrip('/')}/")


def _open_names(process: str) -> Iterator[str]:
    """List what a process uses; what is not ours to see, or ended meanwhile, is left out."""
    for link in ("cwd", "root", "exe"):
        yield _link(f"{process}/{link}")
    try:
        descriptors = os.listdir(f"{process}/fd")
    except OSError:
        descriptors = []
    for descriptor in descriptors:
        yield _link(f"{process}/fd/{descriptor}")
    for line in _read(f"{process}/maps").splitlines():
        yield line.partition("/")[1] + line.partition("/")[2]


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
