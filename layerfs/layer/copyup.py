"""Copy one file up from the lower layers, as an overlay does before the first change to it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

from layerfs.contract import Whiteouts
from layerfs.layer import attributes

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_STEP = 1 << 30
_PIECE = 1 << 20
_NO_COPY_RANGE = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


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
            os.ftruncate(target, size)
            end = 0
            while (start := _seek(source, end, os.SEEK_DATA)) is not None:
                end = _seek(source, start, os.SEEK_HOLE) or size
                _copy_range(source, target, start, end)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _seek(fd: int, offset: int, whence: int) -> int | None:
    """Return where the next data or hole starts; None behind the last one."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    """Copy bytes inside the kernel where it can: not from an overlay, which the lower layers are, to its upper file."""
    inside = True
    while start < end:
        copied = 0
        if inside:
            try:
                copied = os.copy_file_range(source, target, min(_STEP, end - start), start, start)
            except OSError as error:
                if error.errno not in _NO_COPY_RANGE:
                    raise
                inside = False
        if not copied:  # also where copy_file_range(2) stops early without an error, as it may
            block = os.pread(source, min(_PIECE, end - start), start)
            if not block:
                return
            copied = os.pwrite(target, block, start)
        start += copied
