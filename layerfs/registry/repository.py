"""One repository of a registry: its manifests and blobs, by the verbs of the distribution specification."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import MappingProxyType
from typing import BinaryIO, Final
from urllib.parse import quote, urlencode, urlsplit

from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from layerfs.errors import Corrupt, NotFound, OperationFailed
from layerfs.image import media_types
from layerfs.image.descriptor import Descriptor
from layerfs.image.documents import MAX_DOCUMENT, Fields
from layerfs.layer.digest import Digest
from layerfs.registry.stream import BlobStream
from layerfs.registry.transport import Transport

_ACCEPT: Final = ", ".join(sorted(media_types.MANIFESTS | media_types.INDEXES))
_NONE: Final[Mapping[str, str]] = MappingProxyType({})
_OCTETS: Final = "application/octet-stream"
_CREATED, _PARTIAL = 201, 206
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class Repository:
    """A repository, at one host."""

    def __init__(self, transport: Transport, path: str) -> None:
        self._transport = transport
        self.path = path
        self._root = f"/v2/{quote(path)}"

    def __str__(self) -> str:
        return f"{self._transport.host}/{self.path}"

    def manifest(self, reference: str) -> tuple[Descriptor, bytes]:
        """Return the descriptor and the bytes of a manifest or index, by tag or digest; raise `Corrupt` for others."""
        what = f"manifest {reference} of {self}"
        with self._asked("GET", f"/manifests/{quote(reference, safe=':')}", headers={"Accept": _ACCEPT}) as response:
            raw = _read(response, MAX_DOCUMENT + 1, what)
        if len(raw) > MAX_DOCUMENT:
            raise Corrupt(f"{what} has more than the {MAX_DOCUMENT} bytes that a document may have")
        digest = Digest.of(raw)
        said = response.headers.get("Docker-Content-Digest") or str(digest)
        for expected in {said, reference if reference.startswith("sha256:") else said}:
            if expected != digest:
                raise Corrupt(
                    f"{what} has the digest {digest}, not {expected[:80]}", hint="the registry or the way is broken"
                )
        own = Fields.parse(raw, what).text("mediaType", "")
        header = response.headers.get("Content-Type", "").partition(";")[0].strip()
        return Descriptor(own or header, digest, len(raw)), raw

    def blob(self, descriptor: Descriptor) -> BlobStream:
        """Open a blob; its bytes are not verified yet."""
        return BlobStream(partial(self._blob_from, descriptor), self._transport, descriptor, str(self))

    @contextmanager
    def _blob_from(self, descriptor: Descriptor, start: int) -> Iterator[tuple[BaseHTTPResponse, int]]:
        """Give the answer that holds a blob from a byte on, and the byte at which it really starts."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        asked = self._asked("GET", f"/blobs/{descriptor.digest}", headers=headers, accept=frozenset({200, _PARTIAL}))
        with asked as response:
            match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            yield response, int(match[1]) if match and response.status == _PARTIAL else 0

    def has(self, digest: Digest) -> bool:
        """Tell whether the repository has a blob."""
        try:
            with self._asked("HEAD", f"/blobs/{digest}"):
                return True
        except NotFound:
            return False

    def mount(self, digest: Digest, source: str) -> bool:
        """Take a blob over from another repository of the registry, if it lets one; tell whether it did."""
        query = urlencode({"mount": digest, "from": source})
        scope = f"repository:{self.path}:pull,push repository:{source}:pull"
        with self._asked("POST", f"/blobs/uploads/?{query}", accept=frozenset({201, 202}), scope=scope) as response:
            if response.status == _CREATED:
                return True
            place = self._place(response)
        with self._asked("DELETE", place, accept=frozenset(range(200, 500))):
            return False

    def put(self, descriptor: Descriptor, opened: Callable[[], BinaryIO]) -> None:
        """Upload a blob whole, in one request once the registry has said where to."""
        with self._asked("POST", "/blobs/uploads/", accept=frozenset({202})) as response:
            place = self._place(response)
        url = f"{place}{'&' if urlsplit(place).query else '?'}{urlencode({'digest': descriptor.digest})}"
        headers = {"Content-Type": _OCTETS, "Content-Length": str(descriptor.size)}
        with self._asked("PUT", url, headers=headers, body=opened, accept=frozenset({201, 204})) as response:
            self._check_digest(response, descriptor.digest)

    def put_manifest(self, reference: str, raw: bytes, media_type: str) -> None:
        """Upload a manifest under a tag or its digest."""
        path = f"/manifests/{quote(reference, safe=':')}"
        headers = {"Content-Type": media_type}
        with self._asked("PUT", path, headers=headers, body=lambda: raw, accept=frozenset({201, 202})) as response:
            self._check_digest(response, Digest.of(raw))

    def _asked(
        self,
        method: str,
        path: str,
        *,
        scope: str = "",
        headers: Mapping[str, str] = _NONE,
        body: Callable[[], BinaryIO | bytes] | None = None,
        accept: frozenset[int] = frozenset({200}),
    ) -> AbstractContextManager[BaseHTTPResponse]:
        """Send a request below this repository, or to a place that the registry named; see `Transport.request`."""
        actions = "pull" if method in {"GET", "HEAD"} else "pull,push"
        place = path if "://" in path or path.startswith("/v2/") else self._root + path
        wanted = scope or f"repository:{self.path}:{actions}"
        return self._transport.request(method, place, scope=wanted, headers=headers, body=body, accept=accept)

    def _place(self, response: BaseHTTPResponse) -> str:
        place = response.headers.get("Location", "")
        if not place.startswith(("/", "http://", "https://")):
            raise OperationFailed(f"the registry of {self} does not say where to upload to")
        return place

    def _check_digest(self, response: BaseHTTPResponse, digest: Digest) -> None:
        said = response.headers.get("Docker-Content-Digest")
        if said and said != digest:
            raise Corrupt(f"{self} took {digest} for {said[:80]}", hint="the registry or the way is broken: push again")


def _read(response: BaseHTTPResponse, most: int, what: str) -> bytes:
    try:
        return response.read(most)
    except HTTPError as error:
        raise OperationFailed(f"{what} does not come through: {error}", hint="try again later") from error
