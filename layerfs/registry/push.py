"""Images to a registry: blobs that it lacks, several at a time, then the manifest that names them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import BinaryIO, cast

from layerfs.errors import InvalidArgument
from layerfs.events import Listener, Progress, ignore
from layerfs.image.blobs import BlobStore
from layerfs.image.descriptor import Descriptor
from layerfs.image.manifest import Manifest
from layerfs.image.reference import Reference
from layerfs.layer.digest import Digest
from layerfs.registry.options import Options, registry_host
from layerfs.registry.repository import Repository
from layerfs.registry.transport import Transport

_ACTION = "push"


def push_image(
    manifest: Manifest,
    target: Reference,
    blobs: BlobStore,
    *,
    elsewhere: Mapping[Digest, Iterable[str]],
    options: Options,
    listener: Listener = ignore,
) -> None:
    """Push an image under a name; what the repository has is not sent again.

    ``elsewhere`` are other repositories of the same registry that may have a blob, which it then takes from there.
    """
    if target.digest is not None:
        raise InvalidArgument(f"{target} names a digest, which follows from the image", hint="push it to a tag")
    with closing(Transport(registry_host(target.domain), options)) as transport:
        repository = Repository(transport, target.path)
        sender = _Sender(repository, blobs, elsewhere, listener)
        with ThreadPoolExecutor(options.parallel, thread_name_prefix="layerfs-push") as pool:
            for _ in pool.map(sender.send, dict.fromkeys(manifest.blobs)):
                pass
        repository.put_manifest(target.tag, manifest.raw, manifest.media_type)


class _Heard(io.RawIOBase):
    """A blob of the store, whose reading is told of."""

    def __init__(self, stream: BinaryIO, blob: Descriptor, listener: Listener) -> None:
        super().__init__()
        self._stream = stream
        self._blob = blob
        self._listener = listener
        self._done = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._done += len(data)
        if self._done < self._blob.size:
            self._listener(Progress(_ACTION, str(self._blob.digest), self._done, self._blob.size))
        return data

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Sender:
    def __init__(
        self, repository: Repository, blobs: BlobStore, elsewhere: Mapping[Digest, Iterable[str]], listener: Listener
    ) -> None:
        self._repository = repository
        self._blobs = blobs
        self._elsewhere = elsewhere
        self._listener = listener

    def send(self, blob: Descriptor) -> None:
        """Make sure that the repository has a blob."""
        self._blobs.size(blob.digest)  # a blob that is missing here is known before anything is sent
        if not self._repository.has(blob.digest) and not self._mounted(blob):
            self._repository.put(
                blob, lambda: cast("BinaryIO", _Heard(self._blobs.open(blob.digest), blob, self._listener))
            )
        self._listener(Progress(_ACTION, str(blob.digest), blob.size, blob.size))

    def _mounted(self, blob: Descriptor) -> bool:
        others = (path for path in self._elsewhere.get(blob.digest, ()) if path != self._repository.path)
        return any(self._repository.mount(blob.digest, path) for path in others)
