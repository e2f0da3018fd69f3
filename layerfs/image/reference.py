"""References: the names of images, as people write them and in the one form that they are kept in.

The grammar and the defaults are those of ``github.com/distribution/reference``: "debian" is
"docker.io/library/debian:latest".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from layerfs.errors import InvalidArgument, Unsupported
from layerfs.layer.digest import Digest

DEFAULT_DOMAIN: Final = "docker.io"
DEFAULT_TAG: Final = "latest"

_LEGACY_DOMAIN: Final = "index.docker.io"
_OFFICIAL: Final = "library/"
_MAX_NAME: Final = 255
"""Characters of domain and path together."""
_MAX_TEXT: Final = 512

_LABEL: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IDENTIFIER: Final = re.compile(r"[a-f0-9]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """The name of an image, with every default filled in.

    ``tag`` is "" where only a digest is named. ``str()`` gives the full form, `familiar` the short one.
    """

    domain: str
    path: str
    tag: str = ""
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read "debian", "localhost:5000/a/b:1", "a/b@sha256:…"; raise `InvalidArgument` that says what is wrong."""
        if len(text) > _MAX_TEXT:
            raise _refusal(text, "it is too long")
        name, at, digest = text.partition("@")
        name, tag = _split_tag(name)
        if _IDENTIFIER.fullmatch(name):
            raise _refusal(text, "64 hexadecimal digits are an id, not a name")
        domain, path = _split_domain(name)
        _check(text, domain, path, tag)
        if at:
            return cls(domain, path, tag or "", _digest(text, digest))
        return cls(domain, path, DEFAULT_TAG if tag is None else tag)

    @property
    def repository(self) -> str:
        """Return the name without tag and digest, in full: "docker.io/library/debian"."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        """Return the shortest text that means the same: "debian:latest"."""
        if self.domain != DEFAULT_DOMAIN:
            return str(self)
        short = self.path.removeprefix(_OFFICIAL)
        return f"{self.path if '/' in short else short}{self._suffix}"

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def with_tag(self, tag: str) -> Reference:
        """Return the reference to another tag of the same repository; raise `InvalidArgument` for what is no tag."""
        if not _TAG.fullmatch(tag):
            raise _refusal(
                tag, "a tag has up to 128 letters, digits, '_', '.' and '-', and starts with none of the last two"
            )
        return replace(self, tag=tag, digest=None)

    def __str__(self) -> str:
        return f"{self.repository}{self._suffix}"


def normalize(name: str) -> str:
    """Return the full form of a name: "docker.io/library/debian:latest" for "debian"; raise `InvalidArgument`."""
    return str(Reference.parse(name))


def familiar(name: str) -> str:
    """Return the short form of a name: "debian:latest" for "docker.io/library/debian:latest"."""
    return Reference.parse(name).familiar


def _split_tag(name: str) -> tuple[str, str | None]:
    """Split at the last colon, unless a "/" follows it: then it is a port."""
    head, colon, tail = name.rpartition(":")
    return (head, tail) if colon and "/" not in tail else (name, None)


def _split_domain(name: str) -> tuple[str, str]:
    """Tell the domain from the path: it has a dot, a colon or a capital, or is "localhost"."""
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        domain, path = DEFAULT_DOMAIN, name
    else:
        domain, path = first, rest
    if domain == _LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = f"{_OFFICIAL}{path}"
    return domain, path


def _check(text: str, domain: str, path: str, tag: str | None) -> None:
    if path != path.lower():
        raise _refusal(text, "the repository must be in lower case")
    if not _DOMAIN.fullmatch(domain) or not _PATH.fullmatch(path):
        raise _refusal(
            text, "a name is [DOMAIN/]PATH[:TAG][@DIGEST], its path of a-z, 0-9, and single '.', '_', '-' between"
        )
    if len(domain) + 1 + len(path) > _MAX_NAME:
        raise _refusal(text, f"domain and path have more than {_MAX_NAME} characters")
    if tag is not None and not _TAG.fullmatch(tag):
        raise _refusal(text, "its tag is malformed")


def _digest(text: str, digest: str) -> Digest:
    try:
        return Digest.parse(digest)
    except (InvalidArgument, Unsupported) as error:
        raise _refusal(text, error.message) from error


def _refusal(text: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"{text[:_MAX_NAME]!r} is not the name of an image: {why}")
