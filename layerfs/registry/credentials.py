"""Credentials for registries, where docker and podman keep them.

``$REGISTRY_AUTH_FILE``, ``$XDG_RUNTIME_DIR/containers/auth.json`` (containers-auth.json(5)) and ``config.json`` in
``$DOCKER_CONFIG`` or ``~/.docker`` (docker docs, "docker login") are read, the first that knows the host wins. A
program ``docker-credential-NAME`` is asked where one is named.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from layerfs import privilege, process
from layerfs.errors import CommandFailed, Corrupt
from layerfs.image.documents import Fields

_LEGACY: Final = {"registry-1.docker.io": ("https://index.docker.io/v1/", "index.docker.io", "docker.io")}
"""Under which keys docker keeps the credentials of a host that is not named like its domain."""
_TOKEN_USER: Final = "<token>"  # noqa: S105  what a helper says instead of a name (docker-credential-helpers)
_MOST: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password, or an identity token in place of both."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """Return the value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode("ascii")


def find_credentials(host: str) -> Credentials | None:
    """Return the credentials for a host, None for none; raise `Corrupt` for a file that cannot be understood."""
    for path in _files():
        try:
            raw = path.read_bytes()[:_MOST]
        except OSError:
            continue
        found = _in_file(Fields.parse(raw, str(path)), host)
        if found is not None:
            return found
    return None


def _files() -> Iterator[Path]:
    environment = privilege.environment()
    named = environment.get("REGISTRY_AUTH_FILE")
    if named:
        yield Path(named)
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime:
        yield Path(runtime, "containers/auth.json")
    yield Path(environment.get("DOCKER_CONFIG") or privilege.home() / ".docker", "config.json")


def _in_file(config: Fields, host: str) -> Credentials | None:
    keys = (host, *_LEGACY.get(host, ()))
    helpers = config.text_map("credHelpers")
    for key in keys:
        if key in helpers:
            return _ask(helpers[key], key)
    auths = config.child("auths")
    for key in (*keys, f"https://{host}", f"https://{host}/"):
        entry = auths.child(key) if auths else None
        found = _entry(entry) if entry else None
        if found is not None:
            return found
    store = config.text("credsStore", "")
    return next((found for key in keys if (found := _ask(store, key)) is not None), None) if store else None


def _entry(entry: Fields) -> Credentials | None:
    token = entry.text("identitytoken", "")
    text = entry.text("auth", "")
    if not text:
        user, password = entry.text("username", ""), entry.text("password", "")
        return Credentials(user, password, token) if user or token else None
    user = password = colon = ""
    with suppress(binascii.Error, UnicodeDecodeError):
        user, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
    if not colon:
        raise Corrupt(f"{entry.name('auth')} is not user:password in base64", hint="log in again: docker login")
    return Credentials(user, password.rstrip("\0"), token)


def _ask(helper: str, key: str) -> Credentials | None:
    """Ask a helper; one that has nothing for the host says so by failing (docker-credential-helpers, "get")."""
    if "/" in helper or not helper:
        raise Corrupt(f"{helper!r} is not the name of a credential helper", hint="it names docker-credential-NAME")
    program = f"docker-credential-{helper}"
    try:
        said = process.run([program, "get"], package=program, given=key)
    except CommandFailed:
        return None
    answer = Fields.parse(said.encode(), f"answer of {program}")
    user, secret = answer.text("Username", ""), answer.text("Secret", "")
    return Credentials(identity_token=secret) if user == _TOKEN_USER else Credentials(user, secret)
