"""The loop: every request gets a reply, whatever the handlers do."""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from layerfs.contract import Mount
from layerfs.kernel import children, mountinfo
from layerfs.kernel.mounting import mounted
from layerfs_fuse import mounting
from layerfs_fuse.protocol import FSYNC_IN, HEADER, REPLY, Opcode
from layerfs_fuse.server import Channel, Header
from layerfs_fuse.session import Wishes
from tests.support.fuse import Table, no_names, served

pytestmark = [pytest.mark.usefixtures("fuse_device"), pytest.mark.root]


@pytest.fixture
def target(fresh_dir: Path) -> Path:
    path = fresh_dir / "mount"
    path.mkdir()
    return path


def error_of(path: Path) -> int:
    with pytest.raises(OSError) as raised:  # noqa: PT011  the number is what is looked at
        path.stat()
    assert raised.value.errno is not None
    return raised.value.errno


def failing(channel: Channel) -> Table:
    """Let each name be a way to fail."""

    def lookup(header: Header) -> bytes | int | tuple[bytes, bytes]:
        name = channel.body[HEADER.size : header[0] - 1].tobytes()
        if name == b"mistake":
            raise ValueError(name)
        if name == b"error":
            raise OSError(errno.EDQUOT, "full")
        if name == b"nameless":
            raise OSError
        if name == b"too short":
            return b"1"
        if name == b"too long":
            return (bytes(128), bytes(8))
        if name == b"impossible":
            return -5000
        return -errno.ENOENT

    return {**no_names(channel), Opcode.LOOKUP: lookup}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mistake", errno.EIO),
        ("error", errno.EDQUOT),
        ("nameless", errno.EIO),
        ("too short", errno.EIO),
        ("too long", errno.EIO),
        ("impossible", errno.EIO),
        ("none", errno.ENOENT),
    ],
)
def test_a_handler_that_fails_is_answered_for(target: Path, name: str, expected: int) -> None:
    with served(target, failing):
        assert error_of(target / name) == expected
        assert error_of(target / "none") == errno.ENOENT


def test_operations_that_nobody_handles(target: Path) -> None:
    with served(target):
        with pytest.raises(OSError, match="not implemented"):
            (target / "new").mkdir()
        assert (target / "file").exists()


def deferring(channel: Channel) -> Table:
    """Let the data of a sync say what its worker does: 1 to fail, else to take its time."""

    def sync(header: Header) -> None:
        _, datasync, _ = FSYNC_IN.unpack_from(channel.body, HEADER.size)

        def work() -> int:
            time.sleep(0.2)
            if datasync:
                raise ValueError
            return -errno.EDQUOT

        channel.defer(header, work)

    return {**no_names(channel), Opcode.FSYNC: sync}


def test_deferred_work_is_answered_and_holds_nobody_up(target: Path) -> None:
    with served(target, deferring):
        fd = os.open(target / "file", os.O_RDWR)
        try:
            pid = children.fork()
            if pid == 0:
                try:
                    os.fsync(fd)
                except OSError as error:
                    os._exit(error.errno or 0)
                os._exit(0)
            for _ in range(10):
                assert (target / "file").exists()
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EDQUOT
            with pytest.raises(OSError, match="Input/output"):
                os.fdatasync(fd)
        finally:
            os.close(fd)


def test_the_loop_ends_with_the_mount(target: Path) -> None:
    with served(target) as pid:
        assert (target / "file").exists()
        mounting.detach(target)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_an_aborted_connection_ends_the_loop(target: Path) -> None:
    connections = target.with_name("connections")
    connections.mkdir()
    with mounted([Mount("fusectl", "none", ())], connections), served(target) as pid:
        assert (target / "file").exists()
        (connections / str(mountinfo.at(target)[-1].device[1]) / "abort").write_text("1")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_comes_before_init_is_refused() -> None:
    # A socket in place of the device: what a kernel does not do, it does.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        theirs.send(HEADER.pack(HEADER.size, Opcode.GETATTR, 7, 1, 0, 0, 0, 0, 0))
        theirs.shutdown(socket.SHUT_WR)
        channel = Channel(ours.detach())
        assert channel.negotiate(Wishes(passthrough=False)) is None
        assert REPLY.unpack(theirs.recv(100)) == (REPLY.size, -errno.EIO, 7)
        channel.close()
        channel.close()


def test_a_server_whose_replies_are_refused_ends_so_that_nobody_waits_for_it() -> None:
    # As above: the socket is full, so it takes neither the reply nor the error in its place.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        theirs.settimeout(60)
        theirs.send(HEADER.pack(HEADER.size, Opcode.GETATTR, 7, 1, 0, 0, 0, 0, 0))
        ours.setblocking(False)
        filled = 0
        with suppress(BlockingIOError):
            while True:
                filled += ours.send(bytes(1 << 10))
        channel = Channel(ours.detach())
        with pytest.raises(BlockingIOError):
            channel.serve({Opcode.GETATTR: lambda _: 0})
        channel.close()
        while filled:
            filled -= len(theirs.recv(1 << 10))
        assert theirs.recv(1 << 10) == b"", "who asked learns that there is no server any more"
