"""How a registry is spoken to: settings of one pull or push."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from layerfs.image.reference import DEFAULT_DOMAIN
from layerfs.registry.credentials import Credentials, find_credentials

_DOCKER_HUB: Final = "registry-1.docker.io"
"""Where docker.io is a registry (docker docs, "registry-mirror")."""


def _nothing() -> Mapping[str, tuple[str, ...]]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Options:
    """How to speak to registries.

    ``plain_http`` allows HTTP without TLS to hosts other than this one; ``mirrors`` are hosts that are asked before the
    registry itself, by the domain of the image's name; ``parallel`` layers travel at a time; a request is tried
    ``tries`` times, with a pause that doubles; ``timeout`` (seconds) ends a wait for a single answer. ``find`` gives
    the credentials for a host. ``ca_file`` holds further certificates.
    """

    plain_http: bool = False
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=_nothing)
    parallel: int = 3
    tries: int = 5
    timeout: float = 60.0
    find: Callable[[str], Credentials | None] = find_credentials
    ca_file: Path | None = None

    def hosts(self, domain: str) -> tuple[str, ...]:
        """Return the hosts that may have the images of a domain, in the order in which to ask them."""
        return (*self.mirrors.get(domain, ()), registry_host(domain))

    def allows_plain(self, host: str) -> bool:
        """Tell whether HTTP without TLS may be spoken to a host."""
        return self.plain_http or is_loopback(host)


def registry_host(domain: str) -> str:
    """Return the host, with its port if it has one, of the registry for a domain of a reference."""
    return _DOCKER_HUB if domain == DEFAULT_DOMAIN else domain


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, whose wire nobody else reads."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
