"""Platforms: which of an index's images runs where.

Names and order of preference follow image-spec image-index.md ("platform") and containerd's ``platforms`` package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from layerfs.errors import InvalidArgument

_MACHINES: Final = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "aarch64": "arm64",
    "armhf": "arm/v7",
    "armel": "arm/v6",
    "armv8l": "arm/v7",
    "armv7l": "arm/v7",
    "armv6l": "arm/v6",
    "armv5l": "arm/v5",
    "armv5tel": "arm/v5",
    "loongarch64": "loong64",
    "mips64el": "mips64le",
}
"""What uname(2) and Debian call a machine, in the words of Go's GOARCH that images use."""

_USUAL: Final = {("arm64", "v8"): "", ("amd64", "v1"): "", ("arm", ""): "v7"}
"""Variants that go without saying, and the one that is meant where none is said."""
_PART: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and a processor, normalised: "linux", "arm64", and a variant such as "v7" or ""."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @classmethod
    def make(cls, system: str, architecture: str, variant: str = "") -> Platform:
        """Return the platform under its usual name: "aarch64" is "arm64", and "v8" goes without saying there."""
        name, _, implied = _MACHINES.get(architecture.lower(), architecture.lower()).partition("/")
        version = variant.lower() or implied
        if version.isdigit():
            version = f"v{version}"
        return cls(system.lower(), name, _USUAL.get((name, version), version))

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Return the platform of "linux/arm64", "linux/arm/v7" or "arm64"; raise `InvalidArgument` for other text."""
        parts = text.split("/")
        if len(parts) == 1:
            parts = ["linux", *parts]
        if len(parts) not in {2, 3} or not all(_PART.fullmatch(part) for part in parts):
            raise InvalidArgument(
                f"{text[:64]!r} is not a platform", hint="a platform is OS/ARCHITECTURE[/VARIANT], such as linux/arm64"
            )
        return cls.make(*parts)

    @classmethod
    def host(cls) -> Platform:
        """Return the platform that this process runs on."""
        system = os.uname()
        return cls.make(system.sysname, system.machine)

    def accepts(self) -> Iterator[Platform]:
        """Yield the platforms whose programs run on this one, the best first.

        A processor runs the variants before its own; other architectures that it may run (386 on amd64) must be asked
        for.
        """
        yield self
        match = re.fullmatch(r"v(\d{1,2})", self.variant)
        oldest = {"arm": 5, "amd64": 2, "arm64": 9}.get(self.architecture)
        if match is None or oldest is None:
            return
        for version in range(int(match[1]) - 1, oldest - 1, -1):
            yield Platform(self.os, self.architecture, f"v{version}")
        if self.architecture != "arm":
            yield Platform(self.os, self.architecture)
