"""Layers unpacked *apart*, without those below them: what such a layer may not need, and what it gets afterwards."""

from __future__ import annotations

import os
import stat

from layerfs.contract import LayerRoot
from layerfs.errors import FailedPrecondition, os_error
from layerfs.layer import attributes

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class LowerNeeded(FailedPrecondition):
    """Report a layer that says something about what is below it, so that it must be unpacked in order.

    These are layers with whiteouts, with hard links to lower files, and with files in directories that they do not list
    and that may be anything below: a directory with attributes of its own, or a symbolic link.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} depends on the layers below, which are not in view", hint="unpack the layers one after the other"
        )


def adopt_root(root: LayerRoot, below: LayerRoot) -> None:
    """Give a layer's root directory the attributes of the one below, for a layer that does not list it.

    The topmost root is the one that an overlay shows.
    """
    try:
        _adopt(root, below)
    except OSError as error:
        raise os_error(f"give {root.path} the attributes of the layer below", error) from error


def _adopt(root: LayerRoot, below: LayerRoot) -> None:
    source = os.open(below.path, _DIRECTORY)
    try:
        status = os.fstat(source)
        xattrs = attributes.from_disk(attributes.read(source), below.whiteouts)
    finally:
        os.close(source)
    fd = os.open(root.path, _DIRECTORY)
    try:
        os.fchown(fd, status.st_uid, status.st_gid)
        attributes.replace(fd, attributes.to_disk(xattrs, root.whiteouts), root.whiteouts, lenient=False)
        os.fchmod(fd, stat.S_IMODE(status.st_mode))
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(fd)
