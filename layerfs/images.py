"""The images of a store: kept as blobs, unpacked as snapshots that images share by ChainID."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from layerfs.errors import FailedPrecondition, InvalidArgument, NotFound
from layerfs.events import Listener, ignore
from layerfs.image.config import ImageConfig
from layerfs.image.files import ArchiveFormat
from layerfs.image.manifest import Manifest, NamedImage
from layerfs.image.platform import Platform
from layerfs.image.reference import Reference, familiar, normalize
from layerfs.layer.digest import Digest
from layerfs.metadata import clones, images
from layerfs.metadata.images import ImageRow, LayerRow
from layerfs.metadata.snapshots import moment
from layerfs.parts import Parts
from layerfs.unpacking import Layer, Unpacker

if TYPE_CHECKING:  # and imported by the methods that use them: a third of the time that a small command takes
    from layerfs.image.sources import Source
    from layerfs.layer.limits import Limits
    from layerfs.leases import Lease
    from layerfs.registry.options import Options

_SHORTEST_PREFIX = 4
"""Hexadecimal digits of a digest that are taken for one rather than for a name."""
_MOST_DOCUMENTS = 128
_FULL = 64
"""Hexadecimal digits of a whole one, which cannot be a name."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the store; ``names`` are sorted and short ("debian:12"), ``size`` is the bytes of its blobs."""

    digest: Digest
    names: tuple[str, ...]
    manifest: Manifest
    config: ImageConfig
    size: int
    imported: datetime

    @property
    def name(self) -> str:
        """Return its first name, or the start of its digest if it has none."""
        return self.names[0] if self.names else self.digest.hex[:12]

    @property
    def top(self) -> str:
        """Return the ChainID of its uppermost layer, which is the name of the snapshot that clones stand on."""
        chain = self.config.chain_ids
        return chain[-1] if chain else ""


@dataclass(frozen=True, slots=True)
class Intake:
    """How images are taken in, wherever they come from.

    ``names`` replace those that a single image has, ``platform`` selects from an index (the host's by default),
    ``unpack`` says whether layers are unpacked now; ``limits`` and ``jobs`` are those of `Images.unpack`. ``lease``
    keeps what comes, also where not all of it does.
    """

    names: Sequence[str] = ()
    platform: Platform | None = None
    unpack: bool = True
    limits: Limits | None = None
    jobs: int | None = None
    lease: Lease | None = None
    listener: Listener = ignore

    def hold_documents(self, manifest: Manifest) -> None:
        """Keep an image and its blobs, which are still to come."""
        if self.lease is not None:
            blobs = (manifest.digest, *(blob.digest for blob in manifest.blobs))
            self.lease.add(blobs=blobs, images=[manifest.digest])

    def hold_layers(self, config: ImageConfig) -> None:
        """Keep the layers of an image, which are still to be unpacked."""
        if self.lease is not None and self.unpack:
            self.lease.add(snapshots=map(str, config.chain_ids))


class Images:
    """Import, find, name, unpack and remove images."""

    def __init__(self, parts: Parts, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._parts = parts
        self._clock = clock
        self._documents: dict[str, tuple[Manifest, ImageConfig]] = {}
        """What was read of images: it never changes under its digest, and reading it is most of a clone's cost."""

    def every(self) -> tuple[Image, ...]:
        """Return all images, the oldest first."""
        with self._parts.database.read() as connection:
            rows = [(row, images.tags(connection, row.digest)) for row in images.every(connection)]
        loaded = (self._load_unless_gone(row, names) for row, names in rows)
        return tuple(image for image in loaded if image is not None)

    def get(self, reference: str) -> Image:
        """Return the image of a name, a digest, or a unique prefix of a digest; raise `NotFound` for others."""
        with self._parts.database.read() as connection:
            row = _find(connection, reference)
            names = images.tags(connection, row.digest)
        image = self._load_unless_gone(row, names)
        if image is None:
            raise _unknown(reference)
        return image

    def import_from(self, path: Path, how: Intake) -> tuple[Image, ...]:
        """Import the images of an archive or layout.

        Every blob is verified. Raise `Corrupt` for bytes that are not what their digest says; nothing of an image that
        fails is kept.
        """
        from layerfs.image.sources import open_source  # noqa: PLC0415  see the imports above

        with open_source(path) as source, self._parts.working():
            found = source.images(how.platform)
            if how.names and len(found) != 1:
                raise InvalidArgument(
                    f"{path} holds {len(found)} images, so they cannot be named {', '.join(how.names)}",
                    hint="import it without names, then `layerfs image tag`",
                )
            imported: list[Image] = []
            for each in found:
                image = self._take_all(source, each.manifest, how)
                if how.unpack:
                    self.unpack(image, limits=how.limits, jobs=how.jobs, listener=how.listener)
                imported.append(self.add(image.manifest, image.config, how.names or each.names))
            return tuple(imported)

    def pull(self, reference: Reference, options: Options, how: Intake) -> Image:
        """Bring an image from its registry; layers are unpacked as they come. The rest is as for `import_from`."""
        from layerfs.fetching import Fetcher  # noqa: PLC0415  see the imports above
        from layerfs.registry.pull import open_registry  # noqa: PLC0415  see the imports above

        blobs = self._parts.blobs
        with (
            self._parts.working(),
            open_registry(reference, options) as registry,
            Fetcher(blobs, registry.open, parallel=options.parallel, listener=how.listener) as fetcher,
        ):
            found = registry.image(how.platform)
            how.hold_documents(found.manifest)
            fetcher.begin(found.manifest.blobs)
            with fetcher.open(found.manifest.config.digest):
                config = ImageConfig.parse(blobs.read(found.manifest.config))
            found.manifest.check_config(config)
            how.hold_layers(config)
            if how.unpack:
                image = Image(found.manifest.digest, (), found.manifest, config, 0, moment(0))
                self.unpack(image, limits=how.limits, jobs=how.jobs, opened=fetcher.open, listener=how.listener)
            fetcher.finish()
            blobs.put_bytes(found.manifest.raw)
            return self.add(found.manifest, config, how.names or found.names)

    def push(self, reference: str, target: Reference, options: Options, *, listener: Listener = ignore) -> None:
        """Send an image to a registry; blobs that other images of that registry have are taken over there."""
        from layerfs.registry.push import push_image  # noqa: PLC0415  see the imports above

        image = self.get(reference)
        elsewhere: dict[Digest, list[str]] = {}
        for other in self.every():
            names = map(Reference.parse, other.names)
            paths = [name.path for name in names if name.domain == target.domain]
            for blob in other.manifest.blobs:
                elsewhere.setdefault(blob.digest, []).extend(paths)
        push_image(image.manifest, target, self._parts.blobs, elsewhere=elsewhere, options=options, listener=listener)

    def add(self, manifest: Manifest, config: ImageConfig, names: Iterable[str]) -> Image:
        """Record an image whose blobs are all there."""
        manifest.check_config(config)
        row = ImageRow(
            manifest.digest,
            manifest.media_type,
            len(manifest.raw),
            manifest.config.digest,
            manifest.config.size,
            self._clock(),
        )
        stacked = zip(manifest.layers, config.diff_ids, config.chain_ids, strict=True)
        layers = [LayerRow(blob.digest, blob.size, diff_id, chain_id) for blob, diff_id, chain_id in stacked]
        with self._parts.database.write() as connection:
            images.put(connection, row, layers, [normalize(name) for name in names])
            row = images.find(connection, row.digest) or row
            tags = images.tags(connection, row.digest)
        self._remember(manifest, config)
        return self._load(row, tags)

    def export_to(
        self, references: Sequence[str], path: Path, form: ArchiveFormat, *, listener: Listener = ignore
    ) -> None:
        """Write images to a file or directory, each under the name by which it is asked for, or under all it has."""
        from layerfs.image.destinations import write_images  # noqa: PLC0415  see the imports above

        named = [self._named(reference) for reference in references]
        write_images(form, named, self._parts.blobs, path, listener=listener)

    def tag(self, reference: str, name: str) -> Image:
        """Give an image one more name."""
        with self._parts.database.write() as connection:
            row = _find(connection, reference)
            images.tag(connection, normalize(name), row.digest)
            names = images.tags(connection, row.digest)
        return self._load(row, names)

    def remove(self, reference: str) -> None:
        """Take a name from an image, and remove the image with its last name; a digest removes it with all names.

        Raise `FailedPrecondition` that lists the clones of an image that has some. Its layers and blobs go with
        `prune`, or right away where nobody else works with the store. An image that a lease names only loses its names.
        """
        # All in one transaction: somebody else may remove it too, or give its name to another image.
        with self._parts.database.write(frees=True) as connection:
            digest = _find(connection, reference).digest
            tags = images.tags(connection, digest)
            name = normalize(reference)
            gone = (name,) if name in tags else tags
            if len(gone) == len(tags):
                _check_unused(reference, clones.of_image(connection, digest))
            for each in gone:
                images.untag(connection, each)
            if len(gone) == len(tags) and digest not in self._parts.leases.held(connection).images:
                images.delete(connection, digest)

    def unpack(
        self,
        image: Image,
        *,
        limits: Limits | None = None,
        jobs: int | None = None,
        opened: Callable[[Digest], BinaryIO] | None = None,
        listener: Listener = ignore,
    ) -> None:
        """Make sure that every layer of an image is there as a snapshot, none of them beyond ``limits``.

        ``jobs`` is the number of layers to unpack at a time, where the driver allows it; ``opened`` is for blobs that
        are still on their way.
        """
        unpacker = Unpacker(self._parts, limits=limits, jobs=jobs, opened=opened, listener=listener)
        if not image.top or unpacker.is_there(image.top):
            return  # and so is every layer below it
        chains = image.config.chain_ids
        stacked = zip(image.manifest.layers, image.config.diff_ids, chains, ("", *chains), strict=False)
        unpacker.run([Layer(*layer) for layer in stacked])

    def _named(self, reference: str) -> NamedImage:
        image = self.get(reference)
        with suppress(InvalidArgument):  # 64 hexadecimal digits are no name
            if familiar(reference) in image.names:
                return NamedImage((reference,), image.manifest)
        return NamedImage(image.names, image.manifest)

    def _take_all(self, source: Source, manifest: Manifest, how: Intake) -> Image:
        """Copy the blobs of an image, and return it as it will be, without names and times."""
        blobs = self._parts.blobs
        how.hold_documents(manifest)
        blobs.put_all([manifest.config], source.open, how.listener)
        config = ImageConfig.parse(blobs.read(manifest.config))
        manifest.check_config(config)
        how.hold_layers(config)
        blobs.put_all(manifest.layers, source.open, how.listener)
        blobs.put_bytes(manifest.raw)
        return Image(manifest.digest, (), manifest, config, 0, moment(0))

    def _read_documents(self, digest: str, media_type: str) -> tuple[Manifest, ImageConfig]:
        manifest = Manifest.parse(self._parts.blobs.read(Digest(digest)), media_type)
        config = ImageConfig.parse(self._parts.blobs.read(manifest.config))
        self._remember(manifest, config)
        return manifest, config

    def _remember(self, manifest: Manifest, config: ImageConfig) -> None:
        if len(self._documents) >= _MOST_DOCUMENTS:
            self._documents.clear()
        self._documents[manifest.digest] = manifest, config

    def _load_unless_gone(self, row: ImageRow, names: tuple[str, ...]) -> Image | None:
        """Return an image, or None where it was removed, with its blobs, since its row was read."""
        try:
            return self._load(row, names)
        except NotFound:
            with self._parts.database.read() as connection:
                if images.find(connection, row.digest) is None:
                    return None
            raise

    def _load(self, row: ImageRow, names: tuple[str, ...]) -> Image:
        manifest, config = self._documents.get(row.digest) or self._read_documents(row.digest, row.media_type)
        size = row.size + sum(blob.size for blob in (manifest.config, *manifest.layers))
        shown = tuple(sorted(familiar(name) for name in names))
        return Image(manifest.digest, shown, manifest, config, size, moment(row.created))


def _find(connection: sqlite3.Connection, reference: str) -> ImageRow:
    digest = _by_digest(connection, reference) or images.tagged(connection, normalize(reference))
    row = images.find(connection, digest) if digest else None
    if row is None:
        raise _unknown(reference)
    return row


def _unknown(reference: str) -> NotFound:
    return NotFound(f"there is no image {reference!r}", hint="`layerfs image ls` lists what is there")


def _by_digest(connection: sqlite3.Connection, text: str) -> str | None:
    """Find an image by its digest or a unique start of it, which a tag of the same letters gives way to."""
    digits = text.removeprefix("sha256:")
    if len(digits) < _SHORTEST_PREFIX or set(digits) - set("0123456789abcdef"):
        return None
    found = images.by_prefix(connection, f"sha256:{digits}")
    if len(digits) < _FULL and images.tagged(connection, normalize(text)):
        return None
    if len(found) > 1:
        raise InvalidArgument(f"several images start with {text!r}", hint="give more digits")
    return found[0] if found else None


def _check_unused(image: str, by: Sequence[str]) -> None:
    if by:
        raise FailedPrecondition(
            f"cannot remove the image {image}: it has the clones {', '.join(by[:5])}",
            hint="remove these first: layerfs rm NAME",
        )
