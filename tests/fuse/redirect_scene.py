"""A layer with one file, an upper directory in which that file is redirected, and what opens them as a union does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerfs_fuse.redirect.file import RedirectedFile
from layerfs_fuse.redirect.store import Redirects

BLOCK = 4096
USER = b"user.overlay."


def pattern(size: int, seed: int = 1) -> bytes:
    """Return bytes in which every block, and every place in it, is different."""
    unit = bytes((seed + 7 * at + at // 251) % 255 + 1 for at in range(BLOCK + 13))
    return (unit * (size // len(unit) + 1))[:size]


class Scene:
    """Directories below ``root``: two layers, of which the upper one has the file ``dir/file``, upper and work."""

    def __init__(self, root: Path, content: bytes) -> None:
        self.layers = (root / "layer-0", root / "layer-1")
        self.upper, self.work = root / "upper", root / "work"
        for path in (*self.layers, self.upper, self.work, self.work / "work"):
            path.mkdir(parents=True)
        self.lower = self.layers[1] / "dir" / "file"
        self.lower.parent.mkdir()
        self.lower.write_bytes(content)
        self.file = self.upper / "file"

    @property
    def maps(self) -> Path:
        return self.work / "redirect"

    @contextmanager
    def redirects(self, *, volatile: bool = False) -> Iterator[Redirects]:
        """Open what a union has, and close it properly."""
        held = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (self.upper, self.work, *self.layers)]
        try:
            redirects = Redirects(held[0], held[1], USER, held[2:], volatile=volatile)
            try:
                yield redirects
            finally:
                redirects.close()
        finally:
            for fd in held:
                os.close(fd)

    def begin(self, redirects: Redirects) -> bool:
        """Make the upper file; as a union does, in the working directory first."""
        fresh = self.work / "work" / "fresh"
        lower, fd = os.open(self.lower, os.O_RDONLY), os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            begun = redirects.begin(fd, lower, 1, b"dir/file")
        finally:
            os.close(fd)
            os.close(lower)
        fresh.rename(self.file)
        return begun

    @contextmanager
    def opened(self, redirects: Redirects, path: Path | None = None) -> Iterator[RedirectedFile]:
        """Open the upper file, which must be redirected."""
        fd = os.open(path or self.file, os.O_PATH)
        try:
            file = redirects.open(fd)
        finally:
            os.close(fd)
        try:
            yield file
        finally:
            file.release()

    @contextmanager
    def redirected(self, *, volatile: bool = False) -> Iterator[RedirectedFile]:
        """Make the upper file if it is not there yet, and open it."""
        with self.redirects(volatile=volatile) as redirects:
            if not self.file.exists():
                assert self.begin(redirects)
            with self.opened(redirects) as file:
                yield file

    def content(self) -> bytes:
        """Return what a new union shows of the file."""
        with self.redirected() as file:
            return read_all(file)


def read_all(file: RedirectedFile) -> bytes:
    """Return the whole content."""
    return file.read(file.status().st_size + 1, 0)
