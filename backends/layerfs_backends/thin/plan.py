"""What a thin pool is made with, and how full it is."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from layerfs.errors import Corrupt

BLOCK = 64 << 10
"""Bytes of a block: what the first write to a shared one copies. Docker's and containerd's choice."""

_METADATA_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pool is made with; ``size`` of the data and ``device_size`` of each snapshot's file system in bytes.

    ``size`` is 0 where the devices are given, ``tag`` and ``mark`` tell the pool from others. ``quotas`` tells that the
    file systems count what is in them, so that it can be limited.
    """

    tag: str
    mark: int
    size: int
    device_size: int
    file_system: str
    quotas: bool = False

    @classmethod
    def new(cls, size: int, device_size: int, file_system: str, *, quotas: bool = False) -> Plan:
        """Return one with a tag and a mark of its own."""
        return cls(secrets.token_hex(4), 1 + secrets.randbits(62), size, device_size, file_system, quotas)

    @classmethod
    def load(cls, place: Path) -> Plan | None:
        """Read what was saved; None where nothing was; raise `Corrupt`."""
        try:
            return cls(**json.loads(place.read_text(encoding="ascii")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise Corrupt(f"{place} is damaged: {error}") from error

    def save(self, place: Path) -> None:
        """Write it down, all of it or nothing."""
        new = place.with_name(f".{place.name}.new")
        with open(new, "w", encoding="ascii") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        new.rename(place)


@dataclass(frozen=True, slots=True)
class Fill:
    """How full a pool is, in bytes, and its ``mode``: rw, ro, out_of_data_space, Fail."""

    mark: int
    mode: str
    free: int
    total: int
    metadata_free: int
    metadata_total: int

    @classmethod
    def parse(cls, status: str) -> Fill:
        """Read what the target "thin-pool" tells; all figures are 0 for a pool that failed."""
        words = status.split()
        if len(words) < 5:  # noqa: PLR2004  "Fail" or "Error" alone
            return cls(0, words[0] if words else "Fail", 0, 0, 0, 0)
        (metadata_used, metadata_total), (used, total) = (map(int, word.split("/")) for word in words[1:3])
        mode = next((word for word in words if word in {"rw", "ro", "out_of_data_space"}), "Fail")
        if "needs_check" in words:
            mode = "needs_check"
        return cls(
            int(words[0]),
            mode,
            (total - used) * BLOCK,
            total * BLOCK,
            (metadata_total - metadata_used) * _METADATA_BLOCK,
            metadata_total * _METADATA_BLOCK,
        )


@dataclass(frozen=True, slots=True)
class Backing:
    """The devices of data and metadata; None for the files of the driver's own."""

    data: Path | None = None
    metadata: Path | None = None


def low_water(total: int) -> int:
    """Return how many bytes must be free for a new writable snapshot, of a pool or of a disk of so many bytes."""
    return min(total // 20, 1 << 30)
