"""The kernel's own words about a failed mount, from its log.

overlay says why it refuses only there (``pr_err``), and an errno alone does not help anybody. Reading needs root; who
may not read gets no words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_RECORD = 8192
"""Bytes that one record has at most (``CONSOLE_EXT_LOG_MAX``); a shorter buffer gives EINVAL."""


class KernelLog:
    """The records that the kernel writes from now on."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def words(self, prefix: str) -> str:
        """Return the messages since the opening that start with ``prefix``, without it, or ""."""
        found: list[str] = []
        while self._fd >= 0:
            try:
                record = os.read(self._fd, _RECORD)
            except BrokenPipeError:
                continue  # some records were overwritten before they were read; the next read goes on behind them
            except OSError:
                break  # EAGAIN: that was the last one
            # "priority,number,microseconds,flags;message", then lines of a dictionary
            message = record.decode(errors="replace").partition(";")[2].partition("\n")[0]
            if message.startswith(prefix):
                found.append(message.removeprefix(prefix).strip())
        return "; ".join(dict.fromkeys(found))


@contextmanager
def kernel_log() -> Iterator[KernelLog]:
    """Remember the present end of the kernel's log; it costs about 5 µs."""
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        fd = -1
    try:
        if fd >= 0:
            os.lseek(fd, 0, os.SEEK_END)
        yield KernelLog(fd)
    finally:
        if fd >= 0:
            os.close(fd)
