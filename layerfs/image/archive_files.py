"""The files of an image in a tar archive, which is read in place.

Only regular files are read. Symbolic links are remembered, because old docker-archives name a layer that is there
already by one, and resolved only by who asks for it, inside the archive.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, cast

from layerfs.errors import Corrupt, InvalidArgument, NotFound, Unsupported
from layerfs.image.files import NO_IMAGE_HINT, irregular

MAX_ENTRIES: Final = 100_000
"""Entries of one archive."""
MAX_EXTENSION: Final = 1 << 20
"""Bytes of one extended header."""
_BLOCK: Final = tarfile.BLOCKSIZE
_EXTENSIONS: Final = frozenset(
    {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
)
_KINDS: Final = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE})
_MAX_LINKS: Final = 8
_DECIMAL: Final = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where an archive has the bytes of a file; ``kind`` is a type of tarfile, ``link`` a symbolic link's target."""

    kind: bytes
    offset: int
    size: int
    link: str = ""


class ArchiveFiles:
    """The files of a tar archive, found by one pass over its headers and read in place.

    Where a name comes twice the last one counts, as for tar itself, except that a document (a name without "/") may
    come only once. The file must be seekable and must not change; it is closed with this object.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        self.where = where
        self._file = file
        self._entries: dict[str, _Entry] = {}
        for name, entry in _scan(file.fileno(), where):
            if name in self._entries and "/" not in name and entry.kind != tarfile.DIRTYPE:
                raise Corrupt(f"{where} has {name} twice: which one counts is not defined")
            if len(self._entries) >= MAX_ENTRIES:
                raise Corrupt(f"{where} has more than {MAX_ENTRIES} entries")
            self._entries[name] = entry

    def has(self, name: str) -> bool:
        """Tell whether something has this name."""
        return name in self._entries

    def size(self, name: str) -> int:
        """Return the size in bytes; raise as `open` does."""
        return self._regular(name).size

    def open(self, name: str) -> BinaryIO:
        """Open a file; several may be read at once."""
        entry = self._regular(name)
        window = _Window(self._file.fileno(), entry.offset, entry.size, f"{name} in {self.where}")
        return cast("BinaryIO", io.BufferedReader(window, _BLOCK * 256))

    def resolve(self, name: str) -> str:
        """Return the name of the file that a chain of symbolic links inside the archive ends at.

        Raise `Corrupt` where it leaves the archive or does not end; a name that is not there is returned as it is.
        """
        for _ in range(_MAX_LINKS):
            entry = self._entries.get(name)
            if entry is None or entry.kind != tarfile.SYMTYPE:
                return name
            joined = entry.link if entry.link.startswith("/") else posixpath.join(posixpath.dirname(name), entry.link)
            name = inner_name(joined, f"the symbolic link {name} in {self.where}")
        raise Corrupt(f"{name} in {self.where} is a symbolic link that does not end")

    def close(self) -> None:
        """Release the archive."""
        self._file.close()

    def _regular(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise NotFound(f"{self.where} has no {name}")
        if entry.kind not in tarfile.REGULAR_TYPES:
            raise irregular(name, self.where)
        return entry


class _Window(io.RawIOBase):
    """A part of a file, with a position of its own."""

    def __init__(self, descriptor: int, offset: int, size: int, what: str) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._at = offset
        self._end = offset + size
        self._what = what

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's Buffer is 3.12's
        wanted = min(len(buffer), self._end - self._at)
        count = os.preadv(self._descriptor, [memoryview(buffer)[:wanted]], self._at) if wanted else 0
        if wanted and not count:
            raise Corrupt(f"{self._what} is cut off")
        self._at += count
        return count


def inner_name(name: str, what: str) -> str:
    """Return a stranger's path in its shortest form; raise `Corrupt` where it is absolute or leaves the archive."""
    short = posixpath.normpath(name)
    if not name or name.startswith("/") or short == ".." or short.startswith("../") or "\0" in name:
        raise Corrupt(f"{what} leads out of the archive: {name[:200]!r}")
    return short


def _scan(descriptor: int, where: str) -> Iterator[tuple[str, _Entry]]:
    """Yield the entries of an archive; raise `Corrupt` where it is cut off or damaged, `InvalidArgument` if no tar."""
    total = os.fstat(descriptor).st_size
    offset = 0
    extended: dict[str, str] = {}
    while offset < total:
        block = os.pread(descriptor, _BLOCK, offset)
        if not block.strip(b"\0"):
            return
        info = _header(block, offset, where)
        data = offset + _BLOCK
        size = _size(info, extended, where)
        if size > total - data:
            raise Corrupt(f"{where} is cut off in the middle of {info.name[:200]!r}")
        offset = data + -(-size // _BLOCK) * _BLOCK
        if info.type in _EXTENSIONS:
            extended |= _extension(descriptor, info.type, data, size, where)
            continue
        name = inner_name(extended.get("path", info.name).rstrip("/") or ".", f"an entry of {where}")
        link = extended.get("linkpath", info.linkname)
        extended = {}
        yield name, _Entry(_kind(info, name, where), data, size, link)


def _header(block: bytes, offset: int, where: str) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if offset == 0:
            raise InvalidArgument(f"{where} is no tar archive", hint=NO_IMAGE_HINT) from error
        raise Corrupt(f"{where} is damaged at byte {offset}: {error}") from error


def _kind(info: tarfile.TarInfo, name: str, where: str) -> bytes:
    if info.type not in _KINDS:
        raise Unsupported(f"{name} in {where} is a hard link, a device or of another type that no image archive has")
    return info.type


def _size(info: tarfile.TarInfo, extended: dict[str, str], where: str) -> int:
    if info.type in _EXTENSIONS:
        size = info.size
    elif info.type not in tarfile.REGULAR_TYPES:
        size = 0
    elif "size" in extended:
        size = int(extended["size"]) if _DECIMAL.fullmatch(extended["size"]) else -1
    else:
        size = info.size
    if size < 0:
        raise Corrupt(f"{info.name[:200]!r} in {where} has a malformed size")
    return size


def _extension(descriptor: int, kind: bytes, offset: int, size: int, where: str) -> dict[str, str]:
    """Return what an extended header says of the entry after it: its path, its link's target, its size."""
    if size > MAX_EXTENSION:
        raise Corrupt(f"{where} has an extended header of {size} bytes")
    data = os.pread(descriptor, size, offset)
    if kind == tarfile.XGLTYPE:
        return {}  # of all entries: comments, times and owners, which no file of an image archive needs
    if kind in {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}:
        key = "path" if kind == tarfile.GNUTYPE_LONGNAME else "linkpath"
        return {key: os.fsdecode(data.partition(b"\0")[0])}
    found = dict(_records(data, where))
    if any(key.startswith("GNU.sparse") for key in found):
        raise Unsupported(f"{where} has a sparse entry, which no image archive has")
    return {key: value for key, value in found.items() if key in {"path", "linkpath", "size"}}


def _records(data: bytes, where: str) -> Iterator[tuple[str, str]]:
    r"""Yield the records "LENGTH KEY=VALUE\n" of a PAX header (POSIX pax, "pax Extended Header")."""
    while data.strip(b"\0"):
        digits, space, _ = data[:20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        key, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or length > len(data) or data[length - 1 : length] != b"\n":
            raise Corrupt(f"{where} has a malformed extended header")
        yield os.fsdecode(key), os.fsdecode(value)
        data = data[length:]
