"""Who one is to a registry: basic credentials, or a token from where the registry sends one for it.

Source: distribution docs, "Token Authentication Specification" and "OAuth2 Token Authentication"; RFC 9110, 11.6.1.
"""

from __future__ import annotations

import re
import threading
from typing import Final
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from layerfs.errors import Corrupt, PermissionDenied
from layerfs.image.documents import MAX_DOCUMENT, Fields
from layerfs.registry.credentials import Credentials
from layerfs.registry.options import Options

_PARAMETER: Final = re.compile(r'([A-Za-z_]+)="((?:[^"\\]|\\.)*)"|([A-Za-z_]+)=([^",\s]+)')
_CLIENT: Final = "layerfs"
_OK: Final = 200


class Authorizer:
    """Answer the challenges of one host, and remember the answers."""

    def __init__(self, host: str, options: Options, pool: urllib3.PoolManager) -> None:
        self._host = host
        self._options = options
        self._pool = pool
        self._lock = threading.Lock()
        self._headers: dict[str, str] = {}

    def header(self, scope: str) -> dict[str, str]:
        """Return what to say without being asked, for this scope or for all."""
        value = self._headers.get(scope) or self._headers.get("")
        return {"Authorization": value} if value else {}

    def answer(self, challenge: str, scope: str, *, refused: bool) -> dict[str, str]:
        """Return the answer to a challenge; ``refused`` tells that what we said was not enough.

        Raise `PermissionDenied` where there is none, and `Corrupt` for a challenge that nobody can answer.
        """
        kind, _, rest = challenge.strip().partition(" ")
        with self._lock:
            credentials = self._options.find(self._host)
            if kind.lower() == "bearer":
                self._headers[scope] = f"Bearer {self._token(_parameters(rest), scope, credentials)}"
            elif kind.lower() == "basic" and credentials is not None and not refused:
                self._headers[""] = credentials.basic
            elif kind.lower() == "basic":
                words = "refuses the credentials" if refused else "wants credentials"
                raise PermissionDenied(f"the registry {self._host} {words}", hint=f"log in: docker login {self._host}")
            else:
                raise Corrupt(f"the registry {self._host} asks for {kind[:40]!r}, which is no way that is known here")
            return self.header(scope)

    def _token(self, parameters: dict[str, str], scope: str, credentials: Credentials | None) -> str:
        realm = parameters.get("realm", "")
        parts = urlsplit(realm)
        plain = parts.scheme == "http" and self._options.allows_plain(parts.netloc)
        if parts.scheme != "https" and not plain:
            raise PermissionDenied(
                f"the registry {self._host} sends one for a token to {realm[:200]!r}, which is not encrypted"
            )
        asked = {"service": parameters.get("service", ""), "scope": parameters.get("scope") or scope}
        try:
            if credentials is not None and credentials.identity_token:
                answer = self._exchange(realm, asked, credentials)
            else:
                headers = {"Authorization": credentials.basic} if credentials is not None else {}
                query = urlencode({name: value for name, value in asked.items() if value})
                url = f"{realm}{'&' if parts.query else '?'}{query}"
                answer = self._pool.request("GET", url, headers=headers, redirect=False, preload_content=False)
            raw = answer.read(MAX_DOCUMENT)
            answer.release_conn()
        except HTTPError as error:
            raise PermissionDenied(f"no token is to be had from {parts.netloc}: {error}") from error
        if answer.status != _OK:
            raise PermissionDenied(
                f"{parts.netloc} gives no token for {self._host}: {answer.status} {answer.reason}",
                hint=f"log in: docker login {self._host}",
            )
        fields = Fields.parse(raw, f"token of {parts.netloc}")
        token = fields.text("token", "") or fields.text("access_token")
        if not token.isascii() or not token.isprintable():
            raise Corrupt(f"the token of {parts.netloc} cannot be a header")
        return token

    def _exchange(self, realm: str, asked: dict[str, str], credentials: Credentials) -> urllib3.BaseHTTPResponse:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": credentials.identity_token,
            "client_id": _CLIENT,
            **asked,
        }
        return self._pool.request(
            "POST",
            realm,
            body=urlencode(form),
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            redirect=False,
            preload_content=False,
        )


def _parameters(text: str) -> dict[str, str]:
    """Return the parameters of a challenge: ``realm="https://…",service="…"``."""
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(text):
        name = match[1] or match[3]
        found.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", match[2]) if match[1] else match[4])
    return found
