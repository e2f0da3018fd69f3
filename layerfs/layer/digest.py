"""The names of bytes: digests, and the ChainID that names a stack of layers.

A *DiffID* is the digest of a layer's uncompressed tar; a *ChainID* names a layer together with all below it (OCI image
specification, config.md, "Layer ChainID").
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, Protocol, Self

from layerfs.errors import InvalidArgument, Unsupported

_SHA256: Final = re.compile(r"sha256:[0-9a-f]{64}")
_ANY: Final = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_SHOWN: Final = 100
"""Characters of a malformed digest that an error repeats."""


class Hash(Protocol):
    """What `Digest.of_hash` takes: an object of hashlib."""

    def hexdigest(self) -> str:
        """Return what was hashed until now."""
        ...


class Digest(str):
    """Name bytes as "sha256:" and 64 lower-case hexadecimal digits; a value that is not of this form cannot be made.

    Raise `InvalidArgument` for malformed text, and `Unsupported` for another algorithm (sha512: image-spec
    descriptor.md, "Registered algorithms").
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check the text and keep it."""
        if not _SHA256.fullmatch(text):
            raise _refusal(text)
        return super().__new__(cls, text)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the digest that the text is; raise as the class does."""
        return cls(text)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return the digest of these bytes."""
        return cls.of_hash(hashlib.sha256(data))

    @classmethod
    def of_hash(cls, hashed: Hash) -> Self:
        """Return the digest of what a SHA-256 object has been fed."""
        return cls(f"sha256:{hashed.hexdigest()}")

    @property
    def algorithm(self) -> str:
        """Return "sha256"."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """Return the 64 digits, which are also the file name of a blob."""
        return self.partition(":")[2]


def chain_id(parent: Digest | None, diff_id: Digest) -> Digest:
    """Return the ChainID of a layer on the stack that ``parent`` names; None is the empty stack."""
    return diff_id if parent is None else Digest.of(f"{parent} {diff_id}".encode())


def _refusal(text: str) -> InvalidArgument | Unsupported:
    algorithm = text.partition(":")[0]
    if _ANY.fullmatch(text) and algorithm != "sha256":
        return Unsupported(f"the digest algorithm {algorithm!r} is not supported", hint="only sha256 is")
    return InvalidArgument(
        f"{text[:_SHOWN]!r} is not a digest", hint="a digest is sha256: and 64 lower-case hexadecimal digits"
    )
