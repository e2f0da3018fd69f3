"""The files that an image comes in: a directory, or a tar archive (`layerfs.image.archive_files`).

Only regular files are read. A directory's symbolic links are refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Final, Protocol, cast

from layerfs.errors import NotFound, Unsupported, os_error
from layerfs.kernel import syscalls

NO_IMAGE_HINT: Final = "layerfs reads OCI layouts (directory or tar) and archives of `docker save`"
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_STAY: Final = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS


class ArchiveFormat(StrEnum):
    """The forms in which images come and go."""

    OCI_DIR = "oci-dir"
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"


class Files(Protocol):
    """Named regular files; names are relative, with "/" between, and ``where`` is how errors name the whole."""

    where: str

    def has(self, name: str) -> bool:
        """Tell whether something has this name."""
        ...

    def size(self, name: str) -> int:
        """Return the size in bytes; raise as `open` does."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a file; raise `NotFound` where there is none, and `Unsupported` where it is no regular file."""
        ...

    def close(self) -> None:
        """Release what is open; doing it twice is no error."""
        ...


class DirectoryFiles:
    """The files below a directory."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(f"open {path}", error) from error

    def has(self, name: str) -> bool:
        """Tell whether something has this name."""
        try:
            os.stat(name, dir_fd=self._root, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise os_error(f"look for {name} in {self.where}", error) from error
        return True

    def size(self, name: str) -> int:
        """Return the size in bytes; raise as `open` does."""
        with self.open(name) as file:
            return os.fstat(file.fileno()).st_size

    def open(self, name: str) -> BinaryIO:
        """Open a file, following no symbolic link below the directory."""
        try:
            descriptor = syscalls.openat2(self._root, os.fsencode(name), _READ, resolve=_STAY)
        except OSError as error:
            raise self._refusal(name, error) from error
        file = cast("BinaryIO", os.fdopen(descriptor, "rb", 0))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise irregular(name, self.where)
        return file

    def close(self) -> None:
        """Release the directory."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def _refusal(self, name: str, error: OSError) -> Exception:
        if isinstance(error, FileNotFoundError):
            return NotFound(f"{self.where} has no {name}")
        if any(self._is_link(part) for part in _prefixes(name)):
            return Unsupported(
                f"{name} in {self.where} is a symbolic link", hint="copy the directory with its links resolved: cp -rL"
            )
        return os_error(f"open {name} in {self.where}", error)

    def _is_link(self, name: str) -> bool:
        try:
            return stat.S_ISLNK(os.stat(name, dir_fd=self._root, follow_symlinks=False).st_mode)
        except OSError:
            return False


def irregular(name: str, where: str) -> Unsupported:
    """Say that something is no regular file."""
    return Unsupported(f"{name} in {where} is no regular file (but a link, a directory or a device)")


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split("/")
    for count in range(1, len(parts) + 1):
        yield "/".join(parts[:count])
