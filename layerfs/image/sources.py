"""Sources: the archives and directories that images are imported from, told apart by what is in them."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from layerfs.errors import Corrupt, InvalidArgument, Unsupported, os_error
from layerfs.image.files import NO_IMAGE_HINT, ArchiveFormat, DirectoryFiles
from layerfs.image.manifest import NamedImage
from layerfs.image.oci_layout import OciLayout, repository_of
from layerfs.image.platform import Platform
from layerfs.layer.compression import CHUNK, MAGIC_BYTES, Compression, decompress, detect
from layerfs.layer.digest import Digest

if TYPE_CHECKING:  # and imported where an archive is opened: what reads it takes 4 ms, a directory none of it
    from layerfs.image.archive_files import ArchiveFiles

__all__ = ["NamedImage", "Source", "open_source"]


class Source(Protocol):
    """Images that can be imported; closed by leaving its context."""

    format: ArchiveFormat

    def images(self, platform: Platform | None = None) -> tuple[NamedImage, ...]:
        """Return the images, their names in full form; where one is an index, that of the platform (the host's).

        Raise `NotFound` where an image is not there for the platform, `Corrupt` for documents that are malformed or
        not what their digest says, and `Unsupported` for what is no image. What accompanies images (signatures,
        attestations) is passed over.
        """
        ...

    def open(self, digest: Digest) -> BinaryIO:
        """Open a blob that the images name; raise `NotFound` where it is missing. Its bytes are not verified yet."""
        ...


@contextlib.contextmanager
def open_source(path: Path, *, scratch: Path | None = None) -> Iterator[Source]:
    """Open what images are imported from: an OCI layout (directory or tar), or an archive of `docker save`.

    A tar may be compressed by gzip or zstd, and may come through a pipe; it is then unpacked into an unnamed file in
    the directory ``scratch`` (the system's for temporary files by default). Raise `InvalidArgument` for what is none
    of these, `Corrupt` for what is damaged, `NotFound` for what is not there.
    """
    files = _open_files(path, scratch)
    try:
        yield _source(files, repository_of(path))
    finally:
        files.close()


def _source(files: DirectoryFiles | ArchiveFiles, repository: str) -> Source:
    if files.has("oci-layout"):  # first: `docker save` since Docker 25 writes both
        return OciLayout(files, repository)
    if files.has("manifest.json") and not isinstance(files, DirectoryFiles):
        from layerfs.image.docker_archive import DockerArchive  # noqa: PLC0415  see the imports above

        return DockerArchive(files)
    if files.has("repositories"):
        raise Unsupported(
            f"{files.where} is a docker archive without manifest.json, as Docker wrote them before 1.10",
            hint="`docker load` it with a current Docker and `docker save` it again",
        )
    if files.has("manifest.json"):
        raise Unsupported(
            f"{files.where} is not an OCI layout, but may be a directory that skopeo wrote as `dir:`",
            hint="skopeo copy dir:PATH oci:PATH",
        )
    raise InvalidArgument(
        f"{files.where} holds no image: it has no oci-layout and no manifest.json", hint=NO_IMAGE_HINT
    )


def _open_files(path: Path, scratch: Path | None) -> DirectoryFiles | ArchiveFiles:
    try:
        if path.is_dir():
            return DirectoryFiles(path)
        opened = path.open("rb")
    except OSError as error:
        raise os_error(f"open {path}", error) from error
    from layerfs.image.archive_files import ArchiveFiles  # noqa: PLC0415  see the imports above

    with contextlib.ExitStack() as stack:
        stack.push(opened)
        file = _seekable_tar(opened, path, scratch)
        stack.push(file)
        files = ArchiveFiles(file, str(path))
        stack.pop_all()
    return files


def _seekable_tar(file: io.BufferedReader, path: Path, scratch: Path | None) -> BinaryIO:
    """Return the file itself, or an unnamed one with what it holds if it is a pipe or compressed."""
    head = file.peek(MAGIC_BYTES)[:MAGIC_BYTES]
    try:
        compression = detect(head)
    except Unsupported as error:
        raise Unsupported(f"{path}: {error.message}".replace("layers", "archives"), hint=error.hint) from error
    if compression is Compression.NONE and stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    with file:
        return _spool(decompress(iter(lambda: file.read(CHUNK), b""), compression), path, scratch)


def _spool(chunks: Iterable[bytes], path: Path, scratch: Path | None) -> BinaryIO:
    import tempfile  # noqa: PLC0415  only for pipes and compressed archives

    with contextlib.ExitStack() as stack:
        try:
            spool = stack.enter_context(tempfile.TemporaryFile(dir=scratch))
            for chunk in chunks:
                spool.write(chunk)
            spool.flush()
        except OSError as error:
            raise os_error(f"unpack {path}", error) from error
        except Corrupt as error:
            raise Corrupt(f"{path}: {error.message}", hint=error.hint) from error
        stack.pop_all()
    return cast("BinaryIO", spool)
