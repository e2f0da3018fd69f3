"""What differs between two snapshots of one btrfs subvolume, as its *send stream* tells without any data.

The kernel compares the two trees by generation and reads only what changed of their metadata. The stream is a list of
commands that make one tree into the other; of each command only the paths are of interest here. It is complete,
deletions included, which `btrfs subvolume find-new` is not.

Source: the kernel's ``fs/btrfs/send.h`` and ``include/uapi/linux/btrfs.h``, version 1 of the stream.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from layerfs.contract import Candidates
from layerfs.errors import Corrupt

_SEND = 0x40489426
"""``BTRFS_IOC_SEND``: a ``struct btrfs_ioctl_send_args``."""
_ARGUMENTS = struct.Struct("=qQQQQI28x")
"""Descriptor to write to, count and address of clone sources, id of the parent subvolume, flags, version."""
_NO_FILE_DATA = 0x1
_PIPE_BYTES = 1 << 20

_MAGIC = b"btrfs-stream\0"
_VERSION = struct.Struct("<I")
_COMMAND = struct.Struct("<IHI")
"""Length of the attributes, command, checksum; the last is not looked at: the stream never leaves this machine."""
_ATTRIBUTE = struct.Struct("<HH")
_SUBVOLUME, _SNAPSHOT, _SYMLINK, _RENAME, _END = 1, 2, 8, 9, 21
_PATH, _PATH_TO, _PATH_LINK = 15, 16, 17
_PATHS = frozenset({_PATH, _PATH_TO, _PATH_LINK})
_PATHS_OF_SYMLINK = frozenset({_PATH})
"""The other one is its target, which is any text."""

Command = tuple[int, list[bytes]]
"""The number of a command, and the paths in it."""


def candidates(subvolume: int, parent_id: int) -> Candidates:
    """Return where the read-only subvolume open as ``subvolume`` may differ from the read-only one of an id.

    Raise ``OSError``: EPERM without CAP_SYS_ADMIN or for a subvolume that is not read-only, EAGAIN while the file
    system is balanced or deduplicated; and `Corrupt` for a stream that cannot be understood.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, "rb", buffering=_PIPE_BYTES) as stream:
        sender = _Sender(subvolume, parent_id, writer)
        try:
            found = gather(commands(stream))
        finally:
            stream.close()  # whatever stops the reader stops the kernel, by EPIPE
            sender.join()
    if sender.error is not None:
        raise sender.error
    return found


class _Sender:
    """A thread inside the ioctl, which lasts until the stream is written; it owns the descriptor to write to."""

    def __init__(self, subvolume: int, parent_id: int, writer: int) -> None:
        self._subvolume = subvolume
        self._parent = parent_id
        self._writer = writer
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="layerfs-btrfs-send", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the end; ``error`` is what the kernel said."""
        self._thread.join()

    def _run(self) -> None:
        arguments = bytearray(_ARGUMENTS.pack(self._writer, 0, 0, self._parent, _NO_FILE_DATA, 0))
        try:
            fcntl.ioctl(self._subvolume, _SEND, arguments)  # a mutable buffer: only then others may run meanwhile
        except OSError as error:
            self.error = error
        finally:
            os.close(self._writer)


def commands(stream: BinaryIO) -> Iterator[Command]:
    """Read a stream to its end; nothing at all is what a failing ioctl leaves, and no command."""
    magic = stream.read(len(_MAGIC))
    if not magic:
        return
    if magic != _MAGIC:
        raise Corrupt("what btrfs sends is no send stream")
    (version,) = _VERSION.unpack(_exactly(stream, _VERSION.size))
    if version != 1:
        raise Corrupt(f"btrfs sends a stream of version {version}; 1 was asked for")
    while header := stream.read(_COMMAND.size):
        if len(header) < _COMMAND.size:
            raise Corrupt("the send stream of btrfs is cut short")
        length, number, _ = _COMMAND.unpack(header)
        yield number, _paths(_exactly(stream, length), _PATHS_OF_SYMLINK if number == _SYMLINK else _PATHS)
        if number == _END:
            return
    raise Corrupt("the send stream of btrfs is cut short")


def _paths(attributes: bytes, kinds: frozenset[int]) -> list[bytes]:
    """Return the paths among the attributes of a command, in their order."""
    found: list[bytes] = []
    position = 0
    while position < len(attributes):
        if position + _ATTRIBUTE.size > len(attributes):
            raise Corrupt("a command of the send stream of btrfs is cut short")
        kind, length = _ATTRIBUTE.unpack_from(attributes, position)
        position += _ATTRIBUTE.size
        if kind in kinds:
            found.append(attributes[position : position + length])
        position += length
    return found


def _exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise Corrupt("the send stream of btrfs is cut short")
    return data


def gather(stream: Iterable[Command]) -> Candidates:
    """Collect the names that commands touch.

    A path is that of its moment: between the commands a file may have a name for a while that neither tree has, and
    everything below a renamed directory moves with it. So both names of a rename stand for all that is below them, and
    every name that no command says, and no rename covers, means the same file with the same attributes in both trees.
    """
    paths: set[bytes] = set()
    trees: set[bytes] = set()
    for number, found in stream:
        if number == _RENAME:
            trees.update(found)
        elif number not in (_SUBVOLUME, _SNAPSHOT):  # these name the snapshot itself
            paths.update(found)
    return Candidates(frozenset(paths), frozenset(trees))
