"""An image that comes from a registry, or from the first of its mirrors that has it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from typing import BinaryIO, Final, cast

from layerfs.errors import LayerfsError, NotFound, OperationFailed
from layerfs.image.descriptor import Descriptor
from layerfs.image.manifest import NamedImage
from layerfs.image.platform import Platform
from layerfs.image.reference import Reference
from layerfs.image.selection import ReadDocument, select
from layerfs.layer.digest import Digest
from layerfs.registry.options import Options
from layerfs.registry.repository import Repository
from layerfs.registry.transport import Transport

_LOG: Final = logging.getLogger(__name__)


class RegistryImage:
    """One image of a registry; its blobs are asked for where its manifest was found, then at the other hosts."""

    def __init__(self, reference: Reference, repositories: Sequence[Repository]) -> None:
        self._reference = reference
        self._repositories = list(repositories)
        self._sizes: dict[Digest, Descriptor] = {}

    def image(self, platform: Platform | None = None) -> NamedImage:
        """Return the image, where it is an index that of the platform (the host's by default).

        Raise `NotFound` where no host has it, and what `layerfs.image.selection.select` raises.
        """
        wanted = str(self._reference.digest or self._reference.tag)
        errors: list[LayerfsError] = []
        for repository in tuple(self._repositories):
            try:
                descriptor, raw = repository.manifest(wanted)
            except (NotFound, OperationFailed) as error:
                _LOG.info("%s", error)
                errors.append(error)
                continue
            self._repositories.remove(repository)
            self._repositories.insert(0, repository)
            manifest = select([descriptor], self._reader(descriptor, raw), platform, str(self._reference))
            self._sizes = {blob.digest: blob for blob in manifest.blobs}
            return NamedImage((str(self._reference),), manifest)
        raise errors[-1]

    def open(self, digest: Digest) -> BinaryIO:
        """Open a blob of the image; its bytes are not verified yet."""
        first, *others = self._repositories
        if others and not first.has(digest):
            first = next((other for other in others if other.has(digest)), first)
        return cast("BinaryIO", first.blob(self._sizes[digest]))

    def again(self, blob: Descriptor, *, document: bool = False) -> BinaryIO:
        """Open a blob by its digest at the first host that has it; a manifest is a ``document``. Its bytes may lie."""
        errors: list[LayerfsError] = []
        for repository in self._repositories:
            try:
                if document:
                    return BytesIO(repository.manifest(str(blob.digest))[1])
                if repository.has(blob.digest):
                    return cast("BinaryIO", repository.blob(blob))
            except (NotFound, OperationFailed) as error:
                errors.append(error)
        raise errors[-1] if errors else NotFound(f"{self._reference.repository} has no blob {blob.digest}")

    def _reader(self, first: Descriptor, raw: bytes) -> ReadDocument:
        def read(descriptor: Descriptor) -> bytes:
            if descriptor.digest == first.digest:
                return raw
            return self._repositories[0].manifest(str(descriptor.digest))[1]

        return read


@contextmanager
def open_registry(reference: Reference, options: Options) -> Iterator[RegistryImage]:
    """Speak to the registry of an image, and to its mirrors, until the block ends."""
    with ExitStack() as stack:
        repositories = []
        for host in options.hosts(reference.domain):
            transport = Transport(host, options)
            stack.callback(transport.close)
            repositories.append(Repository(transport, reference.path))
        yield RegistryImage(reference, repositories)
