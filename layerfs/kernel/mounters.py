"""Mounts that a program makes rather than the kernel alone: file systems of type "fuse.NAME".

A Python package offers one by an entry point of ``layerfs.mounters`` named like the type; every other type is left to
mount(8), which calls the program ``mount.fuse.NAME`` or libfuse's ``mount.fuse`` for it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
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


def for_helper(mount: Mount) -> Mount:
    r"""Return a mount in the form of those who leave it to libfuse's ``mount.fuse``, as containerd does.

    That program takes "fuse.NAME" for a server NAME, and the types of layerfs are no servers but programs
    ``mount.fuse.NAME``: so it is told to start this one by its path, beside the running Python first. A comma
    inside an option is escaped by ``\``, for the options are joined by commas on their way.
    """
    program = _program(f"mount.{mount.type}") if is_served(mount) else None
    if program is None:
        return mount
    helper = _helper()
    return replace(mount, type=helper + program, options=tuple(option.replace(",", "\\,") for option in mount.options))


@cache
def _helper() -> str:
    return "fuse3." if shutil.which("mount.fuse3") else _PREFIX


@cache
def _program(name: str) -> str | None:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


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
