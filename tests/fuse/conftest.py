"""What tests of FUSE need of the machine."""

from __future__ import annotations

from tests.support.fuse_device import fuse_device

__all__ = ["fuse_device"]
