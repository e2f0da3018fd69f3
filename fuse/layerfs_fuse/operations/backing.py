"""Passthrough: files below that the kernel reads and writes by itself (its document fuse-passthrough.rst).

A descriptor that is registered with the device becomes a *backing id*, named in the reply to OPEN. All who have a node
open at the same time must have it open with the same id, else the kernel gives them EIO.
"""

from __future__ import annotations

import errno
import fcntl
import logging

from layerfs_fuse.attributes import U32
from layerfs_fuse.protocol import BACKING_MAP, DEV_IOC_BACKING_CLOSE, DEV_IOC_BACKING_OPEN

_LOG = logging.getLogger(__name__)


class Backing:
    """The backing ids of one device."""

    def __init__(self, device: int, *, granted: bool) -> None:
        self._device = device
        self._granted = granted
        # ioctl(2) returns the id only where its argument is a buffer that can be written.
        self._map = bytearray(BACKING_MAP.size)
        self._id = bytearray(U32.size)

    def register(self, fd: int) -> int:
        """Return an id for the file of ``fd``, or 0 where its data has to go through the server."""
        if not self._granted or fd < 0:
            return 0
        BACKING_MAP.pack_into(self._map, 0, fd, 0, 0)
        try:
            return int(fcntl.ioctl(self._device, DEV_IOC_BACKING_OPEN, self._map))
        except OSError as error:
            # EPERM: INIT grants passthrough to everybody, and only CAP_SYS_ADMIN may use it. ELOOP: the file is on a
            # stacked file system itself.
            if error.errno == errno.EPERM:
                self._granted = False
            _LOG.info("no passthrough: %s", error)
            return 0

    def drop(self, identity: int) -> None:
        """Give an id back; the kernel keeps the file for who has it open still."""
        if identity:
            U32.pack_into(self._id, 0, identity)
            fcntl.ioctl(self._device, DEV_IOC_BACKING_CLOSE, self._id)
