"""Requests to one registry: TLS, pauses and tries again, redirects, and who one is.

What a registry answers is a stranger's: redirects lead nowhere without TLS that TLS led from, take no credentials to
another host, and end; what cannot be understood is an error that says who said what.
"""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import BinaryIO, Final
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError, SSLError
from urllib3.response import BaseHTTPResponse

from layerfs.errors import Busy, LayerfsError, NotFound, OperationFailed, PermissionDenied
from layerfs.image.documents import Fields
from layerfs.registry.auth import Authorizer
from layerfs.registry.options import Options

_BLOCK: Final = 1 << 20
"""Bytes that are sent at once."""
_REDIRECTS: Final = 5
_PAUSE, _LONGEST_PAUSE = 0.25, 60.0
"""Seconds before the second try, and before any."""
_AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that may be others in a moment."""
_REDIRECTED: Final = frozenset({301, 302, 303, 307, 308})
_UNAUTHORIZED: Final = 401
_LONGEST_ERROR: Final = 64 << 10
_NONE: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked: see `Transport.request`."""

    method: str
    path: str
    scope: str
    headers: Mapping[str, str]
    body: Callable[[], BinaryIO | bytes] | None


class Transport:
    """Requests to one host; safe for several threads. ``sleep`` waits for seconds."""

    def __init__(self, host: str, options: Options, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.host = host
        self._options = options
        self._sleep = sleep
        self._pool = urllib3.PoolManager(
            num_pools=8,
            blocksize=_BLOCK,
            maxsize=options.parallel + 1,
            retries=False,
            timeout=urllib3.Timeout(options.timeout),
            ca_certs=str(options.ca_file) if options.ca_file else None,
            ssl_context=None if options.ca_file else ssl.create_default_context(),
        )
        self._authorizer = Authorizer(host, options, self._pool)
        self._finding = threading.Lock()
        self._base = ""

    @contextmanager
    def request(
        self,
        method: str,
        path: str,
        *,
        scope: str,
        headers: Mapping[str, str] = _NONE,
        body: Callable[[], BinaryIO | bytes] | None = None,
        accept: frozenset[int] = frozenset({200}),
    ) -> Iterator[BaseHTTPResponse]:
        """Send a request, again where that may help, and give the answer, whose body the block reads.

        ``path`` is one of this registry or an absolute URL that it gave; ``scope`` is what a token is asked for;
        ``body`` is called for each try. Statuses other than ``accept`` raise `NotFound`, `PermissionDenied`, `Busy`
        (too many requests) or `OperationFailed`.
        """
        response = self._tried(_Request(method, path, scope, headers, body))
        try:
            if response.status not in accept:
                raise self._refusal(response, method, path)
            yield response
        finally:
            response.release_conn() if response.closed else response.close()

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def pause(self, number: int, asked: float | None = None) -> None:
        """Wait before try ``number`` (the second is 1): longer each time, by chance, or as long as was asked for."""
        own = _PAUSE * 2.0 ** (number - 1) * random.uniform(0.5, 1.5)  # noqa: S311  only so that not all come at once
        self._sleep(min(_LONGEST_PAUSE, own if asked is None else asked))

    @property
    def tries(self) -> int:
        """Return how often a request is tried."""
        return self._options.tries

    def _tried(self, request: _Request) -> BaseHTTPResponse:
        for number in range(1, self.tries + 1):
            last = number == self.tries
            asked = None
            try:
                response = self._authorized(request)
            except HTTPError as error:
                if last or _is_final(error):
                    raise self._unreachable(error) from error
            else:
                if last or response.status not in _AGAIN:
                    return response
                asked = _seconds(response.headers.get("Retry-After"))
                response.drain_conn()
                response.release_conn()
            self.pause(number, asked)
        raise OperationFailed(f"{self.host} was not asked: no tries are allowed")

    def _authorized(self, request: _Request) -> BaseHTTPResponse:
        """Send a request with what is known of us; a challenge is answered once."""
        own = {**request.headers, **self._authorizer.header(request.scope)}
        response = self._redirected(request, own)
        if response.status != _UNAUTHORIZED:
            return response
        challenge = response.headers.get("WWW-Authenticate", "")
        response.drain_conn()
        response.release_conn()
        answer = self._authorizer.answer(challenge, request.scope, refused="Authorization" in own)
        return self._redirected(request, {**request.headers, **answer})

    def _redirected(self, request: _Request, headers: dict[str, str]) -> BaseHTTPResponse:
        url = request.path if "://" in request.path else self._root() + request.path
        for _ in range(_REDIRECTS + 1):
            self._check_scheme(url)
            response = self._pool.request(
                request.method,
                url,
                headers=headers,
                body=request.body() if request.body else None,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            target = response.headers.get("Location") if response.status in _REDIRECTED else None
            if target is None:
                return response
            response.drain_conn()
            response.release_conn()
            following = urljoin(url, target)
            if urlsplit(following)[:2] != urlsplit(url)[:2]:
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
            url = following
        raise OperationFailed(f"{self.host} redirects without end", hint="its configuration is broken")

    def _root(self) -> str:
        """Return the base of its URLs: with TLS wherever it has that; found out once."""
        with self._finding:
            if not self._base:
                plain = self._options.allows_plain(self.host) and not self._speaks_tls()
                self._base = f"{'http' if plain else 'https'}://{self.host}"
        return self._base

    def _speaks_tls(self) -> bool:
        try:
            self._pool.request("GET", f"https://{self.host}/v2/", redirect=False, preload_content=False).release_conn()
        except HTTPError as error:
            if isinstance(_cause(error), SSLError) and "CERTIFICATE" not in str(error).upper():
                return False
            raise self._unreachable(error) from error
        return True

    def _check_scheme(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme == "https" or (parts.scheme == "http" and self._options.allows_plain(parts.netloc)):
            return
        raise PermissionDenied(
            f"{self.host} leads to {url[:200]!r}, which is not encrypted",
            hint="--plain-http allows that, where nobody else is on the wire",
        )

    def _unreachable(self, error: HTTPError) -> LayerfsError:
        reason = _cause(error)
        hint = "is the name right, and is it reachable from here? --plain-http is for a registry without TLS"
        if "CERTIFICATE" in str(reason).upper():
            hint = "install its certificate on this machine, or name the file: SSL_CERT_FILE"
        return OperationFailed(f"the registry {self.host} does not answer: {reason}", hint=hint)

    def _refusal(self, response: BaseHTTPResponse, method: str, path: str) -> LayerfsError:
        words = (
            f"the registry {self.host} answers {method} {urlsplit(path).path} with {response.status}{_said(response)}"
        )
        match response.status:
            case 401:
                return PermissionDenied(words, hint=f"log in: docker login {self.host}")
            case 403:
                return PermissionDenied(words, hint="this user may not do that there")
            case 404:
                return NotFound(words, hint="is the name right? some registries say so of what one may not see")
            case 429:
                return Busy(words, hint="wait, or log in: it counts requests")
            case _:
                return OperationFailed(words, hint="nothing here can change that: try again later, or another mirror")


def _said(response: BaseHTTPResponse) -> str:
    """Return what a registry says of an error (distribution-spec, "Error Codes"), short and on one line."""
    with suppress(HTTPError, LayerfsError):
        fields = Fields.parse(response.read(_LONGEST_ERROR) or b"{}", "answer")
        texts = [f"{one.text('code', '')} {one.text('message', '')}".strip() for one in fields.children("errors")[:3]]
        if texts:
            return ": " + "; ".join(texts)[:300]
    return f" {response.reason}" if response.reason else ""


def _cause(error: HTTPError) -> BaseException:
    return error.reason if isinstance(error, MaxRetryError) and error.reason else error


def _is_final(error: HTTPError) -> bool:
    return isinstance(_cause(error), SSLError)


def _seconds(text: str | None) -> float | None:
    """Return Retry-After as seconds; a date counts as not said (RFC 9110, 10.2.3)."""
    return float(text) if text and text.isascii() and text.isdecimal() else None
