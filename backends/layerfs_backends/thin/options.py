"""The options of the devicemapper driver, and the plan of a new pool that follows from them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from layerfs.errors import FailedPrecondition, InvalidArgument, NoSpace
from layerfs_backends.thin.plan import BLOCK, Backing, Plan
from layerfs_backends.thin.pool import FILE_SYSTEMS

_DEVICE_SIZE = 10 << 30
_LARGEST = 100 << 30
"""Bytes of a pool in a file, if nobody says; the file takes only what is used."""
_SMALLEST = 64 << 20
_SMALLEST_DEVICE = {"ext4": 64 << 20, "xfs": 300 << 20}
_OPTIONS = ("data", "metadata", "size", "device-size", "fs", "discard", "quotas")


@dataclass(frozen=True, slots=True)
class Settings:
    """The options, read; sizes in bytes, 0 and "" where nobody said."""

    backing: Backing
    size: int
    device_size: int
    file_system: str
    discard: bool
    quotas: bool

    def plan(self, root: Path) -> Plan:
        """Return the plan of a new pool."""
        file_system = self.file_system or FILE_SYSTEMS[0]
        device_size = self.device_size or _DEVICE_SIZE
        if device_size < _SMALLEST_DEVICE[file_system]:
            raise InvalidArgument(
                f"{file_system} needs more than {device_size} bytes",
                hint=f"device-size={_SMALLEST_DEVICE[file_system]} is the least",
            )
        return Plan.new(self._size(root), device_size, file_system, quotas=self.quotas)

    def check(self, plan: Plan) -> None:
        """Raise `FailedPrecondition` where an option contradicts what the pool was made with."""
        for option, asked, made in (
            ("size", self.size // BLOCK * BLOCK, plan.size),
            ("device-size", self.device_size, plan.device_size),
            ("fs", self.file_system, plan.file_system),
            ("quotas", self.quotas and "on", "on" if plan.quotas else "off"),
        ):
            if asked and asked != made:
                raise FailedPrecondition(f"the pool was made with {option}={made}", hint="leave the option out")

    def _size(self, root: Path) -> int:
        if self.backing.data is not None:
            return 0
        disk = os.statvfs(root)
        size = self.size or min(_LARGEST, disk.f_bavail * disk.f_frsize // 2)
        if size < _SMALLEST:
            raise NoSpace(f"a pool of {size} bytes is too small", hint=f"size={_SMALLEST} is the least")
        return size // BLOCK * BLOCK


def parse(options: Mapping[str, str]) -> Settings:
    """Read the options; raise `InvalidArgument` for one that is unknown or makes no sense."""
    for option in options.keys() - set(_OPTIONS):
        raise InvalidArgument(f"the devicemapper driver has no option {option!r}", hint=f"it has {', '.join(_OPTIONS)}")
    given = [Path(options[name]) if name in options else None for name in ("data", "metadata")]
    if (given[0] is None) != (given[1] is None) or (given[0] and "size" in options):
        raise InvalidArgument("data and metadata belong together, without size", hint="give two devices, or a size")
    file_system = options.get("fs", "")
    if file_system not in {"", *FILE_SYSTEMS}:
        raise InvalidArgument(f"fs is {file_system!r}", hint=f"one of {', '.join(FILE_SYSTEMS)}")
    if options.get("quotas", "on") != "on":
        raise InvalidArgument(f"quotas is {options['quotas']!r}", hint="on, or leave it out")
    if options.get("discard", "yes") not in {"yes", "no"}:
        raise InvalidArgument(f"discard is {options['discard']!r}", hint="yes or no")
    return Settings(
        Backing(*given),
        _bytes(options, "size"),
        _bytes(options, "device-size"),
        file_system,
        options.get("discard") != "no",
        "quotas" in options,
    )


def _bytes(options: Mapping[str, str], name: str) -> int:
    """Read a size: a number of bytes, or one with K, M, G or T behind it."""
    if name not in options:
        return 0
    found = re.fullmatch(r"([1-9]\d*)([KMGT]?)", options[name], flags=re.IGNORECASE)
    if not found:
        raise InvalidArgument(f"{name} is {options[name]!r}", hint="give bytes, or a size such as 10G")
    return int(found[1]) << 10 * " KMGT".index(found[2].upper() or " ")
