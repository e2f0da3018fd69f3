"""Do without a capability for a while, as what runs in a container does (capabilities(7))."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

SYS_RESOURCE = 24
"""Of ``include/uapi/linux/capability.h``: to pass quotas, among others."""

_VERSION = 0x20080522
"""``_LINUX_CAPABILITY_VERSION_3``: two words each of effective, permitted and inheritable ones."""
_Words = ctypes.c_uint32 * 6


@contextmanager
def without(capability: int) -> Iterator[None]:
    """Run a block with one effective capability less; it comes back at the end."""
    before = _call("capget", _Words())
    less = _Words(*before)
    less[3 * (capability // 32)] &= ~(1 << capability % 32)
    _call("capset", less)
    try:
        yield
    finally:
        _call("capset", before)


def _call(name: str, words: ctypes.Array[ctypes.c_uint32]) -> ctypes.Array[ctypes.c_uint32]:
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    if ctypes.CDLL(None, use_errno=True)[name](header, words) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return words
