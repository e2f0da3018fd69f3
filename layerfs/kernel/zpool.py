"""ZFS pools on a file, for a store on a pool of its own (zpool(8)).

The pool's name is written beside the file, for it belongs to the whole host and cannot be that of the store. Nothing
but us imports the pool: it is in no cache file.
"""

from __future__ import annotations

import os
from pathlib import Path

from layerfs import process
from layerfs.errors import Busy, CommandFailed, Corrupt, Unsupported

_PACKAGE = "zfsutils-linux"
_PROPERTIES = ("mountpoint=legacy", "atime=off", "xattr=sa", "acltype=posix")


def create(image: Path) -> None:
    """Make a pool on a file, and leave it imported; raise `Unsupported` where the kernel has no ZFS."""
    record(image).write_text(create_on(image) + "\n", encoding="ascii")


def create_on(device: Path) -> str:
    """Make a pool on a file or block device and return its name, which nobody remembers; errors as for `create`."""
    if not Path("/dev/zfs").exists():
        raise Unsupported("this kernel has no ZFS: there is no /dev/zfs", hint="modprobe zfs")
    name = f"layerfs-{os.urandom(6).hex()}"
    options = (word for one in _PROPERTIES for word in ("-O", one))
    process.run(["zpool", "create", "-o", "cachefile=none", *options, name, str(device)], package=_PACKAGE)
    return name


def destroy(name: str) -> None:
    """Destroy a pool with all that is in it (zpool-destroy(8))."""
    process.run(["zpool", "destroy", "-f", name], package=_PACKAGE)


def attach(image: Path) -> str:
    """Import the pool on a file unless that is done, and return its name, which is that of its root file system."""
    name = _name(image)
    if not _is_imported(name):
        try:
            process.run(["zpool", "import", "-N", "-o", "cachefile=none", "-d", str(image), name], package=_PACKAGE)
        except CommandFailed:
            if not _is_imported(name):  # by somebody else, meanwhile
                raise
    return name


def detach(image: Path) -> bool:
    """Export the pool on a file; return False where it was not imported, raise `Busy` while it is in use."""
    name = _name(image)
    if not _is_imported(name):
        return False
    try:
        process.run(["zpool", "export", name], package=_PACKAGE)
    except CommandFailed as error:
        raise Busy(f"the pool {name} of {image} is in use: {error.message}", hint="unmount what is mounted") from error
    return True


def _name(image: Path) -> str:
    try:
        return record(image).read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise Corrupt(f"{record(image)}, which names the pool of {image}, is missing") from error


def record(image: Path) -> Path:
    """Return the file that holds the name of the pool on an image."""
    return image.with_suffix(".pool")


def _is_imported(name: str) -> bool:
    return name in process.run(["zpool", "list", "-H", "-o", "name"], package=_PACKAGE).split()
