"""Time that nobody can set: which boot this is, and how long ago it was; and spans in the unit of all our clocks."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

_MICROSECOND = timedelta(microseconds=1)


def nanoseconds(span: timedelta) -> int:
    """Return a span of time in nanoseconds, exactly."""
    return span // _MICROSECOND * 1000


def boot_id() -> str:
    """Return what the kernel made up when it started (random(4)): another boot has another one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def uptime() -> int:
    """Return nanoseconds since the boot, those of a suspended machine too (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
