"""OCI image layouts as sources (image-spec image-layout.md): ``oci-layout``, ``index.json``, ``blobs/sha256/…``."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from layerfs.errors import Corrupt, InvalidArgument, NotFound, Unsupported
from layerfs.image.blobs import read_document
from layerfs.image.descriptor import Descriptor
from layerfs.image.documents import MAX_DOCUMENT, Fields, shown
from layerfs.image.files import ArchiveFormat, DirectoryFiles, Files
from layerfs.image.manifest import Index, NamedImage, is_attestation
from layerfs.image.media_types import NotAnImage
from layerfs.image.platform import Platform
from layerfs.image.reference import Reference
from layerfs.image.selection import select
from layerfs.layer.digest import Digest

LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
LAYOUT_VERSION: Final = "1.0.0"
REF_NAME: Final = "org.opencontainers.image.ref.name"
"""A tag or a full name (image-spec annotations.md)."""
CONTAINERD_NAME: Final = "io.containerd.image.name"
"""The full name, as containerd and Docker since 25 write it."""

_ENDINGS: Final = re.compile(r"(?:\.(?:tar|tgz|gz|zst|oci|docker))+$", re.IGNORECASE)
_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9]+")
_LONGEST_STEM: Final = 128
_LOG: Final = logging.getLogger(__name__)


def blob_name(digest: Digest) -> str:
    """Return the name of a blob's file in a layout."""
    return f"blobs/sha256/{digest.hex}"


def repository_of(path: Path) -> str:
    """Return the name of a repository made of a file's name, for images that are named by a tag only."""
    stem = _ENDINGS.sub("", path.resolve().name).lower()
    return _NOT_IN_NAMES.sub("-", stem).strip("-")[:_LONGEST_STEM].strip("-") or "image"


class OciLayout:
    """The images of a layout; ``repository`` goes before names that are only a tag."""

    def __init__(self, files: Files, repository: str) -> None:
        self._files = files
        self._repository = repository
        self.format = ArchiveFormat.OCI_DIR if isinstance(files, DirectoryFiles) else ArchiveFormat.OCI_ARCHIVE
        _check_version(files)

    def images(self, platform: Platform | None = None) -> tuple[NamedImage, ...]:
        """Return the images; see `layerfs.image.sources.Source`."""
        what = f"{INDEX_FILE} of {self._files.where}"
        index = Index.parse(read_whole(self._files, INDEX_FILE), what=what)
        found: list[NamedImage] = []
        refusal = NotAnImage(f"{self._files.where} holds no images: its {INDEX_FILE} names none")
        for names, candidates in group(index.manifests, self._repository, what):
            title = names[0] if names else str(candidates[0].digest)
            try:
                found.append(NamedImage(names, select(candidates, self._read, platform, title)))
            except NotAnImage as error:
                _LOG.debug("%s is passed over: %s", title, error)
                refusal = error
        if not found:
            raise refusal
        return tuple(found)

    def open(self, digest: Digest) -> BinaryIO:
        """Open a blob; raise `NotFound` where it is missing."""
        return self._files.open(blob_name(digest))

    def _read(self, descriptor: Descriptor) -> bytes:
        with self.open(descriptor.digest) as stream:
            return read_document(stream, descriptor, f"blob {descriptor.digest} of {self._files.where}")


def read_whole(files: Files, name: str) -> bytes:
    """Return a document that has no digest; raise `Corrupt` where it is missing or has more than 4 MiB."""
    try:
        with files.open(name) as stream:
            raw = stream.read(MAX_DOCUMENT + 1)
    except NotFound as error:
        raise Corrupt(error.message) from error
    if len(raw) > MAX_DOCUMENT:
        raise Corrupt(f"{name} of {files.where} has more than the {MAX_DOCUMENT} bytes that a document may have")
    return raw


def group(
    entries: Sequence[Descriptor], repository: str, what: str
) -> Iterator[tuple[tuple[str, ...], tuple[Descriptor, ...]]]:
    """Yield the images of an index.json: their names, and a descriptor for each platform.

    Entries of one digest are one image with several names. Entries of the same names, or without names, are one image
    for several platforms if each says its own. Raise `Corrupt` where a name stands for two images otherwise.
    """
    named: dict[Digest, tuple[Descriptor, list[str]]] = {}
    for entry in entries:
        if not is_attestation(entry):
            _, names = named.setdefault(entry.digest, (entry, []))
            names.extend(name for name in names_of(entry, repository) if name not in names)
    grouped: dict[tuple[str, ...], list[Descriptor]] = {}
    for entry, names in named.values():
        grouped.setdefault(tuple(sorted(names)), []).append(entry)
    _check_names(list(grouped), what)
    for names_of_all, candidates in grouped.items():
        yield from ((names_of_all, part) for part in _split(names_of_all, candidates, what))


def _split(names: tuple[str, ...], candidates: list[Descriptor], what: str) -> Iterator[tuple[Descriptor, ...]]:
    platforms = {candidate.platform for candidate in candidates}
    if len(candidates) == 1 or (None not in platforms and len(platforms) == len(candidates)):
        yield tuple(candidates)
    elif names:
        raise Corrupt(f"{what} gives the name {names[0]} to {len(candidates)} images")
    else:
        yield from ((candidate,) for candidate in candidates)


def _check_names(groups: Sequence[tuple[str, ...]], what: str) -> None:
    seen: set[str] = set()
    for names in groups:
        for name in names:
            if name in seen:
                raise Corrupt(f"{what} gives the name {name} to several images")
            seen.add(name)


def names_of(entry: Descriptor, repository: str) -> Iterator[str]:
    """Yield the full name that annotations give to an entry of an index.json, or nothing where they give none.

    ``repository`` goes before a name that is only a tag. A name that can be no reference counts as none.
    """
    name = entry.annotations.get(CONTAINERD_NAME) or entry.annotations.get(REF_NAME, "")
    if not name:
        return
    only_tag = not set(name) & set("/:@")
    try:
        yield str(Reference.parse(repository).with_tag(name) if only_tag else Reference.parse(name))
    except InvalidArgument as error:
        _LOG.info("a name is passed over: %s", error)


def _check_version(files: Files) -> None:
    fields = Fields.parse(read_whole(files, LAYOUT_FILE), f"{LAYOUT_FILE} of {files.where}")
    version = fields.text("imageLayoutVersion")
    if version != LAYOUT_VERSION:
        raise Unsupported(f"{files.where} is an OCI layout of the unknown version {shown(version)}")
