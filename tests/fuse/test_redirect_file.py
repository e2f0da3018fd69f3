"""A redirected file behaves as a file does: compared with an array of bytes, and at its edges."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from layerfs_fuse.redirect.file import RedirectedFile
from layerfs_fuse.redirect.filling import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from tests.fuse.redirect_scene import BLOCK, Scene, pattern, read_all
from tests.support import drivers

SIZE = 9 * BLOCK + 100

offsets = st.one_of(
    st.integers(0, 12 * BLOCK),
    st.builds(lambda block, more: max(0, block * BLOCK + more), st.integers(0, 11), st.integers(-2, 2)),
)
lengths = st.one_of(st.integers(1, 4 * BLOCK), st.integers(1, 3).map(lambda blocks: blocks * BLOCK))


@pytest.fixture
def scene(fresh_dir: Path) -> Scene:
    return Scene(fresh_dir, pattern(SIZE))


@pytest.fixture
def file(scene: Scene) -> Iterator[RedirectedFile]:
    with scene.redirected() as file:
        yield file


class Machine(RuleBasedStateMachine):
    """The same calls on a redirected file and on an array of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        root = self.stack.enter_context(TemporaryDirectory(dir=drivers.directory_with_xattrs()))
        self.scene = Scene(Path(root), pattern(SIZE))
        self.model = bytearray(pattern(SIZE))
        self.byte = 0
        self.volatile = False
        self.opened = ExitStack()

    @initialize(volatile=st.booleans())
    def open(self, volatile: bool) -> None:  # noqa: FBT001  Hypothesis calls it by name
        self.volatile = volatile
        self.file = self.opened.enter_context(self.scene.redirected(volatile=volatile))

    def teardown(self) -> None:
        self.opened.close()
        self.stack.close()

    @rule(offset=offsets, length=lengths)
    def write(self, offset: int, length: int) -> None:
        self.byte = self.byte % 255 + 1
        data = bytes([self.byte]) * length
        assert self.file.write(data, offset) == length
        self.model.extend(bytes(max(0, offset + length - len(self.model))))
        self.model[offset : offset + length] = data

    @rule(size=offsets)
    def truncate(self, size: int) -> None:
        self.file.truncate(size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    @rule(offset=offsets, length=lengths, mode=st.sampled_from([PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE]))
    def clear(self, offset: int, length: int, mode: int) -> None:
        try:
            self.file.allocate(mode, offset, length)
        except OSError as error:
            if mode & PUNCH_HOLE or error.errno != errno.EOPNOTSUPP:
                raise
            return  # tmpfs has no ZERO_RANGE
        end = min(offset + length, len(self.model))
        self.model[offset:end] = bytes(max(0, end - offset))

    @rule(offset=offsets, length=lengths, mode=st.sampled_from([0, KEEP_SIZE]))
    def allocate(self, offset: int, length: int, mode: int) -> None:
        self.file.allocate(mode, offset, length)
        if not mode:
            self.model.extend(bytes(max(0, offset + length - len(self.model))))

    @rule(offset=offsets, size=lengths)
    def read(self, offset: int, size: int) -> None:
        assert self.file.read(size, offset) == self.model[offset : offset + size]

    @rule(datasync=st.booleans())
    def sync(self, datasync: bool) -> None:  # noqa: FBT001  Hypothesis calls it by name
        self.file.sync(datasync=datasync)

    @rule()
    def reopen(self) -> None:
        self.opened.close()
        self.file = self.opened.enter_context(self.scene.redirected(volatile=self.volatile))

    @rule()
    def kill(self) -> None:
        """Open the files beside the first process, which is then forgotten: all that it wrote is there."""
        old, self.opened = self.opened, ExitStack()
        self.file = self.opened.enter_context(self.scene.redirected(volatile=self.volatile))
        assert read_all(self.file) == self.model
        self.opened.close()
        old.close()
        self.file = self.opened.enter_context(self.scene.redirected(volatile=self.volatile))

    @invariant()
    def same(self) -> None:
        assert self.file.status().st_size == len(self.model)
        assert read_all(self.file) == self.model

    @invariant()
    def holes_are_zeros(self) -> None:
        at, size = 0, len(self.model)
        while at < size:
            hole = self.file.seek(at, os.SEEK_HOLE)
            assert at <= hole <= size
            at = hole
            try:
                at = self.file.seek(hole, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                at = size
            assert not any(self.model[hole:at])


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_only_changed_blocks_take_space(scene: Scene, file: RedirectedFile) -> None:
    file.write(b"x", 3 * BLOCK + 5)
    status = scene.file.stat()
    assert status.st_size == SIZE
    assert status.st_blocks * 512 == BLOCK


def test_lower_file_is_never_changed(scene: Scene, file: RedirectedFile) -> None:
    before = scene.lower.stat()
    file.write(pattern(SIZE, 9), 0)
    file.truncate(10)
    assert scene.lower.read_bytes() == pattern(SIZE)
    assert scene.lower.stat().st_mtime_ns == before.st_mtime_ns


def test_seek_finds_holes_of_the_lower_file(fresh_dir: Path) -> None:
    scene = Scene(fresh_dir, b"")
    with scene.lower.open("r+b") as lower:
        lower.truncate(64 * BLOCK)
        lower.seek(16 * BLOCK)
        lower.write(b"data")
    with scene.redirected() as file:
        assert file.seek(0, os.SEEK_DATA) == 16 * BLOCK
        assert file.seek(16 * BLOCK, os.SEEK_HOLE) == 17 * BLOCK
        file.write(b"x", 40 * BLOCK)
        assert file.seek(17 * BLOCK, os.SEEK_DATA) == 40 * BLOCK
        assert file.seek(40 * BLOCK, os.SEEK_HOLE) == 41 * BLOCK
        assert file.seek(0, os.SEEK_HOLE) == 0
        with pytest.raises(OSError, match="No such device") as raised:
            file.seek(41 * BLOCK, os.SEEK_DATA)
        assert raised.value.errno == errno.ENXIO


def test_moving_data_is_refused(file: RedirectedFile) -> None:
    with pytest.raises(OSError, match="not supported") as raised:
        file.allocate(0x08, 0, BLOCK)  # FALLOC_FL_COLLAPSE_RANGE
    assert raised.value.errno == errno.EOPNOTSUPP


def test_lower_file_that_became_shorter_is_an_error_not_zeros(scene: Scene, file: RedirectedFile) -> None:
    os.truncate(scene.lower, BLOCK)
    with pytest.raises(OSError, match="shorter") as raised:
        file.read(SIZE, 0)
    assert raised.value.errno == errno.EIO
