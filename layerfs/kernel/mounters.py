"""Mounts that a program makes rather than the kernel alone: file systems of type "fuse.NAME".

A Python package offers one by an entry point of ``layerfs.mounters`` named like the type; every other type is left to
mount(8), which calls the program ``mount.fuse.NAME`` or libfuse's ``mount.fuse`` for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from layerfs import entrypoints, process
from layerfs.contract import Mount
from layerfs.errors import Unsupported

Mounter = Callable[[str, Sequence[str], Path], None]
"""Mount a source with options at a directory; when it returns, the file system is there and answers."""

_PREFIX = "fuse."


def is_served(mount: Mount) -> bool:
    """Tell whether a process stands behind the mount, so that it must be unmounted before that process may end."""
    return mount.type.startswith(_PREFIX)


def perform(mount: Mount, target: Path) -> None:
    """Perform a mount of `is_served`; raise `LayerfsError`."""
    mounter = _installed(mount.type)
    if mounter is not None:
        mounter(mount.source, mount.options, target)
        return
    options = ("-o", ",".join(mount.options)) if mount.options else ()
    process.run(["mount", "-t", mount.type, *options, "--", mount.source, str(target)], package="mount")


@cache  # looking through what is installed takes as long as the mount
def _installed(type_: str) -> Mounter | None:
    found = entrypoints.find("layerfs.mounters").get(type_)
    if found is None:
        return None
    try:
        mounter: Mounter = found.load()
    except ImportError as error:
        raise Unsupported(f"the file system {type_!r} cannot be loaded: {error}") from error
    return mounter


def release(target: Path, *, lazy: bool) -> None:
    """Unmount what an ordinary user mounted, which fusermount3 does for them; raise `CommandFailed`."""
    process.run(["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(target)], package="fuse3")
