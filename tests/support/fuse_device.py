"""A fixture for tests of FUSE: /dev/fuse for everybody."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

_DEVICE = Path("/dev/fuse")


@pytest.fixture(scope="session")
def fuse_device() -> Iterator[None]:
    """Let everybody use /dev/fuse, as udev does elsewhere; skip where there is none."""
    if not _DEVICE.exists():
        pytest.skip("this kernel has no FUSE")
    mode = stat.S_IMODE(_DEVICE.stat().st_mode)
    if mode & 0o666 != 0o666:
        if os.geteuid() != 0:
            pytest.skip(f"{_DEVICE} has mode {mode:o}, and only root may change that: chmod 666 {_DEVICE}")
        _DEVICE.chmod(0o666)
    yield
    if os.geteuid() == 0:
        _DEVICE.chmod(mode)
