"""The contract on the drivers that work without root; `test_rootless` runs this file inside a user namespace.

As short as a driver of somebody else would have it: everything but the factory is the contract's own.
"""

from __future__ import annotations

from layerfs.testing import DriverContract
from layerfs_backends import btrfs, copy, overlay2
from layerfs_fuse import driver as fuse


class TestCopy(DriverContract):
    factory = staticmethod(copy.open_driver)


class TestOverlay2(DriverContract):
    factory = staticmethod(overlay2.open_driver)


class TestFuse(DriverContract):
    factory = staticmethod(fuse.open_driver)
    limits = frozenset({"size", "inodes"})


class TestBtrfs(DriverContract):
    factory = staticmethod(btrfs.open_driver)
