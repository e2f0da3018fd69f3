"""Sinks: a directory or a tar in the making, which appears under its name when it is whole and synced."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol, Self

from layerfs.errors import AlreadyExists, os_error
from layerfs.tree import fsync_dir

_NEW: Final = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
_FILE_MODE: Final = 0o644
_BLOCK: Final = tarfile.BLOCKSIZE


class Sink(Protocol):
    """Where files go, each once."""

    def add(self, name: str, data: bytes) -> None:
        """Write a small file."""
        ...

    def add_stream(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """Write a file of ``size`` bytes."""
        ...


class DirectorySink:
    """A directory to which files are added, each whole and synced before it has its name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._added: list[Path] = []

    @classmethod
    @contextlib.contextmanager
    def existing(cls, root: Path) -> Iterator[Self]:
        """Add to a directory that is there: what failed takes back what it added."""
        sink = cls(root)
        try:
            yield sink
        except BaseException:
            sink._take_back()
            raise

    def add(self, name: str, data: bytes) -> None:
        """Write a small file; one of this name is replaced."""
        self.add_stream(name, len(data), (data,))

    def add_stream(self, name: str, size: int, chunks: Iterable[bytes]) -> None:  # noqa: ARG002  a tar needs the size
        """Write a file; one of this name is replaced."""
        path = self.root / name
        with _translated(f"write {path}"):
            self._make_parents(name)
            is_new = not path.exists()
            with _written_aside(path) as file:
                for chunk in chunks:
                    file.write(chunk)
        if is_new:
            self._added.append(path)

    def _make_parents(self, name: str) -> None:
        for parent in reversed(Path(name).parents[:-1]):
            directory = self.root / parent
            if not directory.is_dir():
                directory.mkdir()
                self._added.append(directory)

    def _take_back(self) -> None:
        for path in reversed(self._added):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)


class ArchiveSink:
    """A tar to which files are added; its entries have no owner, no time, and one mode."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._names: set[str] = set()

    def has(self, name: str) -> bool:
        """Tell whether the file was added."""
        return name in self._names

    def add(self, name: str, data: bytes) -> None:
        """Write a small file."""
        self.add_stream(name, len(data), (data,))

    def add_stream(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """Write a file of ``size`` bytes."""
        self._directories(name)
        self._file.write(_header(name, size))
        for chunk in chunks:
            self._file.write(chunk)
        self._pad(size)

    def add_unsized(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a file whose size is known at its end: its header is written then."""
        start = self._file.tell()
        size = 0
        self._file.write(_header(name, 0))
        for chunk in chunks:
            self._file.write(chunk)
            size += len(chunk)
        self._file.seek(start)
        self._file.write(_header(name, size))
        self._file.seek(0, os.SEEK_END)
        self._pad(size)
        self._names.add(name)

    def finish(self) -> None:
        """Write the end of the archive: two blocks of zeros (POSIX pax, "ustar Interchange Format")."""
        self._file.write(bytes(2 * _BLOCK))

    def _directories(self, name: str) -> None:
        parts = name.split("/")
        for count in range(1, len(parts)):
            parent = "/".join(parts[:count])
            if parent not in self._names:
                self._names.add(parent)
                self._file.write(_header(parent, 0, kind=tarfile.DIRTYPE))
        self._names.add(name)

    def _pad(self, size: int) -> None:
        self._file.write(bytes(-size % _BLOCK))


@contextlib.contextmanager
def new_archive(destination: Path) -> Iterator[ArchiveSink]:
    """Write a tar that appears when it is whole; raise `AlreadyExists` where something is there.

    A pipe or a device is no obstacle: the whole archive is then written into it.
    """
    special = _is_special(destination)
    if not special and os.path.lexists(destination):
        raise AlreadyExists(f"{destination} is there already", hint="remove it, or export to another name")
    with _translated(f"write {destination}"):
        writing = _through_spool(destination) if special else _written_aside(destination)
        with writing as file:
            sink = ArchiveSink(file)
            yield sink
            sink.finish()


@contextlib.contextmanager
def new_directory(destination: Path) -> Iterator[DirectorySink]:
    """Fill a directory that appears when it is whole, or one that is there and empty.

    Raise `AlreadyExists` where something else is there.
    """
    if os.path.lexists(destination):
        if not _is_empty_directory(destination):
            raise AlreadyExists(
                f"{destination} is there already, and no OCI layout", hint="remove it, or export to another name"
            )
        with DirectorySink.existing(destination) as sink:  # in place: it may be a mount point, or somebody's "."
            yield sink
        return
    with _translated(f"write {destination}"):
        aside = _aside(destination)
        aside.mkdir()
        try:
            yield DirectorySink(aside)
            fsync_dir(aside)
            aside.rename(destination)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        fsync_dir(destination.parent)


@contextlib.contextmanager
def _written_aside(destination: Path) -> Iterator[BinaryIO]:
    """Write a file that has its name when it is whole and synced, and of which nothing is left otherwise."""
    aside = _aside(destination)
    try:
        with os.fdopen(os.open(aside, _NEW, _FILE_MODE), "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.rename(destination)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_dir(destination.parent)


@contextlib.contextmanager
def _through_spool(destination: Path) -> Iterator[BinaryIO]:
    import tempfile  # noqa: PLC0415  only for pipes

    with tempfile.TemporaryFile() as spool:
        yield spool
        spool.seek(0)
        with destination.open("wb") as file:
            shutil.copyfileobj(spool, file, 1 << 20)


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn an ``OSError`` into the error that says what was done."""
    try:
        yield
    except OSError as error:
        raise os_error(what, error) from error


def _aside(destination: Path) -> Path:
    return destination.parent / f".{destination.name[:200]}.{os.urandom(8).hex()}"


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _is_empty_directory(path: Path) -> bool:
    with _translated(f"look into {path}"):
        return path.is_dir() and not any(path.iterdir())


def _header(name: str, size: int, *, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a header; a size of 8 GiB and more is in base 256, which keeps the header one block (GNU, star, Go)."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.type = kind
    info.mode = 0o755 if kind == tarfile.DIRTYPE else _FILE_MODE
    return info.tobuf(tarfile.GNU_FORMAT)
