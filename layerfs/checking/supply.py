"""Where blobs come from a second time: files that hold the image, and the registries that its names say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from layerfs.errors import LayerfsError, NotFound
from layerfs.events import Listener
from layerfs.image.descriptor import Descriptor
from layerfs.image.reference import Reference
from layerfs.image.sources import open_source
from layerfs.layer.digest import Digest
from layerfs.metadata import images
from layerfs.parts import Parts
from layerfs.registry.options import Options
from layerfs.registry.pull import open_registry

Opened = Callable[[], AbstractContextManager[BinaryIO]]


class Supply:
    """Bring blobs again; ``options`` say how registries are asked, None asks none, ``files`` are images to look in."""

    def __init__(self, parts: Parts, options: Options | None, files: Sequence[Path], listener: Listener) -> None:
        self._parts = parts
        self._options = options
        self._files = files
        self._listener = listener

    def places(self, digest: str) -> list[str]:
        """Return where a blob would be looked for, as people call it."""
        names = self._names(digest) if self._options is not None else []
        return [*map(str, self._files), *dict.fromkeys(name.repository for name in names)]

    def bring(self, digest: Digest) -> None:
        """Bring a blob, verified, and only then in place of the one that is there; raise what kept it from coming."""
        with self._parts.database.read() as connection:
            size = images.blob_sizes(connection).get(digest)
            is_manifest = images.find(connection, digest) is not None
        if size is None:
            raise NotFound(f"no image needs the blob {digest} any more", hint="`layerfs prune --force` removes it")
        blob = Descriptor("", digest, size)
        raised: LayerfsError = NotFound(
            f"nothing that was asked has the blob {digest}", hint="name a file that holds its image: --from SOURCE"
        )
        for opened in self._ways(blob, is_manifest=is_manifest):
            try:
                with opened() as stream, self._parts.blobs.writer() as writer:
                    writer.take(stream, blob, self._listener, action="pull")
                    writer.commit(digest)
            except LayerfsError as error:
                raised = error
            else:
                return
        raise raised

    def _ways(self, blob: Descriptor, *, is_manifest: bool) -> Iterator[Opened]:
        for path in self._files:
            yield partial(_in_file, path, blob.digest)
        if self._options is not None:
            for name in self._names(blob.digest):
                yield partial(self._in_registry, name, blob, is_manifest=is_manifest)

    @contextmanager
    def _in_registry(self, name: Reference, blob: Descriptor, *, is_manifest: bool) -> Iterator[BinaryIO]:
        with ExitStack() as stack:
            registry = stack.enter_context(open_registry(name, self._options or Options()))
            yield stack.enter_context(registry.again(blob, document=is_manifest))

    def _names(self, digest: str) -> list[Reference]:
        """Return the names of the images that have a blob, at whose registries it may be."""
        with self._parts.database.read() as connection:
            found = [
                images.tags(connection, row.digest)
                for row in images.every(connection)
                if digest in {row.digest, row.config, *(layer.blob for layer in images.layers(connection, row.digest))}
            ]
        return [Reference.parse(name) for names in found for name in names]


@contextmanager
def _in_file(path: Path, digest: Digest) -> Iterator[BinaryIO]:
    with open_source(path) as source:
        with suppress(LayerfsError):  # an archive of `docker save` knows its blobs once it was looked through
            source.images()
        with source.open(digest) as stream:
            yield stream
