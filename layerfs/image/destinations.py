"""Destinations: the archives and directories that images are exported to.

The same images make the same bytes. Blobs go out byte for byte, verified once more on their way. Nothing has the
destination's name before it is whole and synced, and nothing is left where an export fails.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from layerfs.errors import Corrupt, InvalidArgument
from layerfs.events import Listener, ignore
from layerfs.image.blobs import BlobStore, verified
from layerfs.image.config import ImageConfig
from layerfs.image.descriptor import Descriptor
from layerfs.image.docker_archive import MANIFEST_FILE
from layerfs.image.documents import parse_document, write_document
from layerfs.image.files import ArchiveFormat, DirectoryFiles
from layerfs.image.manifest import Index, NamedImage
from layerfs.image.oci_layout import (
    CONTAINERD_NAME,
    INDEX_FILE,
    LAYOUT_FILE,
    LAYOUT_VERSION,
    REF_NAME,
    OciLayout,
    blob_name,
    names_of,
    read_whole,
    repository_of,
)
from layerfs.image.reference import Reference, familiar, normalize
from layerfs.image.sinks import ArchiveSink, DirectorySink, Sink, new_archive, new_directory
from layerfs.layer.compression import MAGIC_BYTES, decompress, detect
from layerfs.layer.digest import Digest

_LAYOUT: Final = write_document({"imageLayoutVersion": LAYOUT_VERSION})
_ACTION: Final = "export"


def write_images(
    form: ArchiveFormat,
    images: Sequence[NamedImage],
    blobs: BlobStore,
    destination: Path,
    *,
    listener: Listener = ignore,
) -> None:
    """Write images in one of the three forms; see the functions for each."""
    writers = {
        ArchiveFormat.OCI_DIR: write_oci_layout_dir,
        ArchiveFormat.OCI_ARCHIVE: write_oci_archive,
        ArchiveFormat.DOCKER_ARCHIVE: write_docker_archive,
    }
    writers[form](images, blobs, destination, listener=listener)


def write_oci_layout_dir(
    images: Sequence[NamedImage], blobs: BlobStore, destination: Path, *, listener: Listener = ignore
) -> None:
    """Write an OCI layout as a directory, or add to one that is there: a name that it has goes to the new image.

    Raise `AlreadyExists` where the destination is something else, and not empty.
    """
    entries = _entries(images, blobs)
    if (destination / LAYOUT_FILE).exists():
        _add_to_layout(images, entries, blobs, destination, listener)
        return
    with new_directory(destination) as sink:
        sink.add(LAYOUT_FILE, _LAYOUT)
        _write_blobs(images, blobs, sink, listener)
        sink.add(INDEX_FILE, Index.build(entries).raw)


def write_oci_archive(
    images: Sequence[NamedImage], blobs: BlobStore, destination: Path, *, listener: Listener = ignore
) -> None:
    """Write an OCI layout as a tar; raise `AlreadyExists` where the destination is there."""
    entries = _entries(images, blobs)
    with new_archive(destination) as sink:
        sink.add(LAYOUT_FILE, _LAYOUT)
        _write_blobs(images, blobs, sink, listener)
        sink.add(INDEX_FILE, Index.build(entries).raw)


def write_docker_archive(
    images: Sequence[NamedImage], blobs: BlobStore, destination: Path, *, listener: Listener = ignore
) -> None:
    """Write what `docker save` writes and `docker load` reads; raise `AlreadyExists` where the destination is there.

    Layers are uncompressed and named by their DiffID, configurations are byte for byte. Names by digest are left out:
    the form has none.
    """
    _check_names(images)
    with new_archive(destination) as sink:
        records = [_write_docker_image(image, blobs, sink, listener) for image in _merged(images)]
        sink.add(MANIFEST_FILE, write_document(records))


def _entries(images: Sequence[NamedImage], blobs: BlobStore) -> list[Descriptor]:
    """Return the entries of an index.json: one for each name of each image."""
    _check_names(images)
    entries: list[Descriptor] = []
    for image in _merged(images):
        config = ImageConfig.parse(blobs.read(image.manifest.config))
        platform = config.platform if config.os and config.architecture else None
        descriptor = replace(image.manifest.descriptor, platform=platform)
        names = [normalize(name) for name in image.names]
        entries += [descriptor.with_annotations({CONTAINERD_NAME: name, REF_NAME: familiar(name)}) for name in names]
        if not names:
            entries.append(descriptor)
    return entries


def _merged(images: Sequence[NamedImage]) -> Iterator[NamedImage]:
    """Yield each image once, with all its names."""
    names: dict[Digest, dict[str, None]] = {}
    manifests = {image.manifest.digest: image.manifest for image in images}
    for image in images:
        names.setdefault(image.manifest.digest, {}).update(dict.fromkeys(image.names))
    for digest, manifest in manifests.items():
        yield NamedImage(tuple(names[digest]), manifest)


def _check_names(images: Sequence[NamedImage]) -> None:
    if not images:
        raise InvalidArgument("there are no images to export")
    owner: dict[str, Digest] = {}
    for image in images:
        for name in image.names:
            if owner.setdefault(normalize(name), image.manifest.digest) != image.manifest.digest:
                raise InvalidArgument(f"the name {name} is given to two images")


def _write_blobs(
    images: Sequence[NamedImage],
    blobs: BlobStore,
    sink: Sink,
    listener: Listener,
    present: frozenset[str] = frozenset(),
) -> None:
    """Write every blob of the images once, and their manifests, except those whose files are there."""
    done = set(present)
    for image in images:
        for blob in image.manifest.blobs:
            name = blob_name(blob.digest)
            if name not in done:
                done.add(name)
                with blobs.open(blob.digest) as stream:
                    chunks = verified(stream, blob, f"blob {blob.digest}", listener, action=_ACTION)
                    sink.add_stream(name, blob.size, chunks)
        name = blob_name(image.manifest.digest)
        if name not in done:
            done.add(name)
            sink.add(name, image.manifest.raw)


def _add_to_layout(
    images: Sequence[NamedImage], entries: list[Descriptor], blobs: BlobStore, destination: Path, listener: Listener
) -> None:
    files = DirectoryFiles(destination)
    with contextlib.closing(files):
        OciLayout(files, "image")  # refuses a layout of another version
        index = _with_entries(read_whole(files, INDEX_FILE), entries, destination)
        named = {blob_name(blob.digest): blob.size for image in images for blob in _all_blobs(image)}
        present = frozenset(name for name, size in named.items() if files.has(name) and files.size(name) == size)
    with DirectorySink.existing(destination) as sink:
        _write_blobs(images, blobs, sink, listener, present)
        sink.add(INDEX_FILE, index)


def _all_blobs(image: NamedImage) -> tuple[Descriptor, ...]:
    return (*image.manifest.blobs, image.manifest.descriptor)


def _with_entries(raw: bytes, entries: Sequence[Descriptor], destination: Path) -> bytes:
    """Return an index.json with further entries; those that they replace are dropped, the others stay as they are."""
    what = f"{INDEX_FILE} of {destination}"
    repository = repository_of(destination)
    old = Index.parse(raw, what=what).manifests
    taken = {name for entry in entries for name in names_of(entry, repository)}
    digests = {entry.digest for entry in entries}
    made = parse_document(raw, what)
    kept = [
        document
        for document, entry in zip(made["manifests"], old, strict=True)
        if not _is_replaced(entry, set(names_of(entry, repository)), taken, digests)
    ]
    made["manifests"] = [*kept, *(entry.to_document() for entry in entries)]
    return write_document(made)


def _is_replaced(entry: Descriptor, names: set[str], taken: set[str], digests: set[Digest]) -> bool:
    return bool(names & taken) if names else entry.digest in digests


def _write_docker_image(image: NamedImage, blobs: BlobStore, sink: ArchiveSink, listener: Listener) -> dict[str, Any]:
    """Write what an image needs and the archive has not, and return its record in manifest.json."""
    config = ImageConfig.parse(blobs.read(image.manifest.config))
    image.manifest.check_config(config)
    for blob, diff_id in zip(image.manifest.layers, config.diff_ids, strict=True):
        name = f"{diff_id.hex}.tar"
        if not sink.has(name):
            sink.add_unsized(name, _uncompressed(blobs, blob, diff_id, listener))
    config_name = f"{config.digest.hex}.json"
    if not sink.has(config_name):
        sink.add(config_name, config.raw)
    references = [Reference.parse(name) for name in image.names]
    return {
        "Config": config_name,
        "RepoTags": [replace(name, digest=None).familiar for name in references if name.tag] or None,
        "Layers": [f"{diff_id.hex}.tar" for diff_id in config.diff_ids],
    }


def _uncompressed(blobs: BlobStore, blob: Descriptor, diff_id: Digest, listener: Listener) -> Iterator[bytes]:
    """Yield the tar of a layer; raise `Corrupt` where the blob or the tar is not what its digest says."""
    hashed = hashlib.sha256()
    with blobs.open(blob.digest) as stream:
        compression = detect(stream.read(MAGIC_BYTES))
        stream.seek(0)
        chunks = verified(stream, blob, f"blob {blob.digest}", listener, action=_ACTION)
        for block in decompress(chunks, compression):
            hashed.update(block)
            yield block
    if f"sha256:{hashed.hexdigest()}" != diff_id:
        raise Corrupt(f"the layer {blob.digest} unpacks to sha256:{hashed.hexdigest()}; its image says {diff_id}")
