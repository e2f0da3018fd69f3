"""Copy one file up from the lower layers, as an overlay does before the first change to it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

from layerfs.contract import Whiteouts
from layerfs.kernel.filedata import copy_data
from layerfs.layer import attributes

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_up(
    below: int, directory: int, name: bytes, xattrs: Mapping[bytes, bytes], whiteouts: Whiteouts, *, lenient: bool
) -> None:
    """Copy the file that ``below`` holds by O_PATH, and that is no directory, to ``name`` in an open directory.

    Content with its holes, owner, mode and times come along, and ``xattrs`` as a layer carries them; ``lenient`` leaves
    out what the kernel refuses to an ordinary user.
    """
    status = os.fstat(below)
    if stat.S_ISREG(status.st_mode):
        _copy_content(below, directory, name, status.st_size)
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(b"", dir_fd=below), name, dir_fd=directory)
    else:
        os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=directory)
    try:
        os.chown(name, status.st_uid, status.st_gid, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if not lenient or error.errno not in (errno.EINVAL, errno.EPERM):
            raise
    if not stat.S_ISLNK(status.st_mode):
        on_disk = attributes.to_disk(xattrs, whiteouts)
        attributes.replace(attributes.proc_path(directory, name), on_disk, whiteouts, lenient=lenient)
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=directory)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=directory, follow_symlinks=False)


def _copy_content(below: int, directory: int, name: bytes, size: int) -> None:
    """Copy the data of a regular file, and leave out its holes."""
    source = os.open(b"/proc/self/fd/%d" % below, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(name, _CREATE, 0o600, dir_fd=directory)
        try:
            copy_data(source, target, size)
        finally:
            os.close(target)
    finally:
        os.close(source)
