"""Content digests: the *Digest* of any bytes, the *DiffID* of an uncompressed layer, the *ChainID* of a stack of them.

Form and rules are those of the OCI image specification, ``descriptor.md`` (Digests) and ``config.md`` (ChainID).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Self

from layerfs.errors import InvalidArgument, Unsupported

_FORM = re.compile(r"(?P<algorithm>[a-z0-9]+(?:[+._-][a-z0-9]+)*):(?P<encoded>[A-Za-z0-9=_-]+)")
_HEX = re.compile(r"[0-9a-f]{64}")


class Digest(str):
    """A digest that is known to have the form ``sha256:<64 lower-case hexadecimal digits>``.

    It is a string, so it compares, sorts, joins and serializes as one. `parse` makes one out of somebody's text.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Check and return ``text``; raise `Unsupported` for another algorithm and `InvalidArgument` for no digest."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise InvalidArgument(f"{text!r} is no digest", hint='a digest reads "sha256:" and 64 hexadecimal digits')
        if match["algorithm"] != "sha256":
            raise Unsupported(f"the digest algorithm {match['algorithm']!r} is not supported", hint="use sha256")
        if not _HEX.fullmatch(match["encoded"]):
            raise InvalidArgument(f"{text!r} is no sha256 digest", hint="64 digits of 0-9 and a-f follow the colon")
        return cls(text)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return the digest of ``data``."""
        return cls(f"sha256:{hashlib.sha256(data).hexdigest()}")

    @property
    def algorithm(self) -> str:
        """Return "sha256"."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """Return the 64 hexadecimal digits, which are also the file name of a blob."""
        return self.partition(":")[2]


def chain_id(parent: Digest | None, diff_id: Digest) -> Digest:
    """Return the ChainID of the layer ``diff_id`` on top of the stack ``parent``; None is the empty stack."""
    return diff_id if parent is None else Digest.of(f"{parent} {diff_id}".encode())


def chain_ids(diff_ids: Iterable[Digest]) -> tuple[Digest, ...]:
    """Return the ChainID of every stack that ends with one of ``diff_ids``, the lowest first."""
    chains: list[Digest] = []
    for diff_id in diff_ids:
        chains.append(chain_id(chains[-1] if chains else None, diff_id))
    return tuple(chains)
