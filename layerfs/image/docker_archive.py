"""Archives of `docker save` as sources: ``manifest.json`` lists configurations and layers by path, without digests.

The form is moby's image/spec/v1.2.md, "Combined Image JSON + Filesystem Changeset Format". An OCI manifest is made for
each image; its configuration is kept byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import BinaryIO, Final

from layerfs.errors import Corrupt, NotFound, Unsupported
from layerfs.image import media_types
from layerfs.image.archive_files import ArchiveFiles, inner_name
from layerfs.image.blobs import CHUNK
from layerfs.image.config import ImageConfig
from layerfs.image.descriptor import Descriptor
from layerfs.image.documents import MAX_ITEMS, Fields, parse_document
from layerfs.image.files import ArchiveFormat
from layerfs.image.manifest import Manifest, NamedImage
from layerfs.image.oci_layout import read_whole
from layerfs.image.platform import Platform
from layerfs.image.reference import normalize
from layerfs.layer.compression import MAGIC_BYTES, Compression, detect
from layerfs.layer.digest import Digest

MANIFEST_FILE: Final = "manifest.json"


class DockerArchive:
    """The images of an archive of `docker save`."""

    def __init__(self, files: ArchiveFiles) -> None:
        self.format = ArchiveFormat.DOCKER_ARCHIVE
        self._files = files
        self._names: dict[Digest, str] = {}
        self._layers: dict[str, Descriptor] = {}

    def images(self, platform: Platform | None = None) -> tuple[NamedImage, ...]:
        """Return the images; see `layerfs.image.sources.Source`. Compressed layers are read through to name them."""
        what = f"{MANIFEST_FILE} of {self._files.where}"
        entries = parse_document(read_whole(self._files, MANIFEST_FILE), what)
        if not isinstance(entries, list) or not entries:
            raise Corrupt(f"{what} is no list of images")
        if len(entries) > MAX_ITEMS:
            raise Corrupt(f"{what} has {len(entries)} images: more than {MAX_ITEMS}")
        found: dict[Digest, NamedImage] = {}
        for place, entry in enumerate(entries):
            image = self._image(Fields(entry, f"{what}: [{place}]"), platform)
            same = found.get(image.manifest.digest)
            names = tuple(dict.fromkeys((*(same.names if same else ()), *image.names)))
            found[image.manifest.digest] = NamedImage(names, image.manifest)
        _check_names(found.values(), what)
        return tuple(found.values())

    def open(self, digest: Digest) -> BinaryIO:
        """Open a blob of the images that `images` returned; raise `NotFound` for others."""
        name = self._names.get(digest)
        if name is None:
            raise NotFound(f"{self._files.where} has no blob {digest}")
        return self._files.open(name)

    def _image(self, fields: Fields, platform: Platform | None) -> NamedImage:
        config = self._config(fields)
        if platform is not None and config.platform not in platform.accepts():
            raise NotFound(f"{self._files.where} has an image for {config.platform}, not for {platform}")
        layers = fields.texts("Layers", required=True)
        if len(layers) != len(config.diff_ids):
            raise Corrupt(
                f"{fields.name('Layers')} has {len(layers)} layers, "
                f"but the configuration {config.digest} has {len(config.diff_ids)} in rootfs.diff_ids"
            )
        if not layers:
            raise Unsupported(f"{fields.name('Layers')} is empty, so there is no root file system in the image")
        descriptors = [
            self._layer(layer, diff_id, fields.name(f"Layers[{place}]"))
            for place, (layer, diff_id) in enumerate(zip(layers, config.diff_ids, strict=True))
        ]
        names = [
            fields.convert(f"RepoTags[{place}]", normalize, tag) for place, tag in enumerate(fields.texts("RepoTags"))
        ]
        return NamedImage(tuple(names), Manifest.build(config.descriptor(), descriptors))

    def _config(self, fields: Fields) -> ImageConfig:
        """Return the configuration; raise `Corrupt` where its path says another digest than its bytes have."""
        name = inner_name(fields.text("Config"), fields.name("Config"))
        config = ImageConfig.parse(read_whole(self._files, name), f"{name} of {self._files.where}")
        stated = name.rpartition("/")[2].removesuffix(".json").removeprefix("sha256:")
        if len(stated) == len(config.digest.hex) and stated != config.digest.hex:
            raise Corrupt(f"{name} of {self._files.where} has other bytes than its name says: {config.digest}")
        self._names[config.digest] = name
        return config

    def _layer(self, path: str, diff_id: Digest, where: str) -> Descriptor:
        """Return the descriptor of a layer: a plain one's digest is its DiffID, a compressed one's is counted."""
        name = self._files.resolve(inner_name(path, where))
        try:
            compression = self._compression(name)
        except NotFound as error:
            raise Corrupt(f"{where} names {path}, which is not in the archive") from error
        if compression is Compression.NONE:
            descriptor = Descriptor(media_types.OCI_LAYER, diff_id, self._files.size(name))
        elif name in self._layers:
            descriptor = self._layers[name]
        else:
            descriptor = self._layers[name] = self._hash(name, media_types.LAYER_MEDIA_TYPES[compression])
        self._names[descriptor.digest] = name
        return descriptor

    def _compression(self, name: str) -> Compression:
        with self._files.open(name) as stream:
            return detect(stream.read(MAGIC_BYTES))

    def _hash(self, name: str, media_type: str) -> Descriptor:
        hashed = hashlib.sha256()
        with self._files.open(name) as stream:
            while chunk := stream.read(CHUNK):
                hashed.update(chunk)
        return Descriptor(media_type, Digest(f"sha256:{hashed.hexdigest()}"), self._files.size(name))


def _check_names(images: Iterable[NamedImage], what: str) -> None:
    seen: set[str] = set()
    for image in images:
        for name in image.names:
            if name in seen:
                raise Corrupt(f"{what} gives the name {name} to several images")
            seen.add(name)
