"""The pipe through which files are answered: whole replies or none, and nothing left in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs_fuse.operations.pipe import SPLICED, Pipe
from layerfs_fuse.protocol import REPLY
from tests.fuse.redirect_scene import pattern

SIZE = 200_000
ROOM = 1 << 20


class Device:
    """What stands for the device: a pipe takes what is spliced into it as the device does."""

    def __init__(self) -> None:
        self.out, self.into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.fcntl(self.into, fcntl.F_SETPIPE_SZ, ROOM)

    def said(self) -> bytes:
        try:
            return os.read(self.out, ROOM)
        except BlockingIOError:
            return b""


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    yield device
    os.close(device.out)
    os.close(device.into)


@pytest.fixture
def pipe(device: Device) -> Iterator[Pipe]:
    pipe = Pipe(device.into)
    yield pipe
    pipe.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(pattern(SIZE))
    fd = os.open(tmp_path / "file", os.O_RDWR)
    yield fd
    os.close(fd)


def reply(unique: int, data: bytes) -> bytes:
    return REPLY.pack(REPLY.size + len(data), 0, unique) + data


@pytest.mark.parametrize("offset", [0, 1, 4096, 5000])
@pytest.mark.parametrize("size", [SPLICED, 131_072, 131_073])
def test_a_part_of_a_file_is_sent(device: Device, pipe: Pipe, file: int, offset: int, size: int) -> None:
    assert pipe.send(7, file, offset, size)
    assert device.said() == reply(7, pattern(SIZE)[offset : offset + size])


def test_a_file_that_ends_before_is_left_to_others(device: Device, pipe: Pipe, file: int) -> None:
    os.ftruncate(file, 100_000)
    assert not pipe.send(8, file, 50_000, 60_000)
    assert device.said() == b""
    assert pipe.send(9, file, 50_000, 50_000)
    assert device.said() == reply(9, pattern(SIZE)[50_000:100_000])


@pytest.mark.parametrize("size", [-5, 0, SPLICED - 1, ROOM])
def test_too_few_and_too_many_bytes_are_left_to_others(device: Device, pipe: Pipe, file: int, size: int) -> None:
    assert not pipe.send(7, file, 0, size)
    assert device.said() == b""


def test_what_cannot_be_read_that_way_is_left_to_others(device: Device, pipe: Pipe, file: int, tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    assert not pipe.send(7, directory, 0, SPLICED)
    os.close(directory)
    assert pipe.send(8, file, 0, SPLICED)
    assert device.said() == reply(8, pattern(SIZE)[:SPLICED])


def test_a_reply_that_is_not_taken_leaves_nothing_behind(device: Device, file: int) -> None:
    place = os.open("/dev/full", os.O_WRONLY)
    pipe = Pipe(place)
    assert not pipe.send(7, file, 0, SPLICED)
    os.dup2(device.into, place)
    assert pipe.send(8, file, 1, SPLICED)
    assert device.said() == reply(8, pattern(SIZE)[1 : SPLICED + 1])
    pipe.close()
    os.close(place)
