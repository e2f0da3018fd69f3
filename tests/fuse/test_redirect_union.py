"""The union with redirected files: beside a plain directory, and what becomes of them in its life."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from layerfs.contract import LayerRoot, Mount, WritePolicy
from layerfs.errors import Busy, Corrupt, FailedPrecondition, NoSpace
from layerfs.kernel import mounting, syscalls
from layerfs.layer.changes import upper_changes
from layerfs.layerdirs import own_whiteouts
from layerfs.tree import copy_tree
from layerfs_fuse.attributes import BLOCKS, U64
from layerfs_fuse.redirect.flatten import flatten_tree, has_redirects
from layerfs_fuse.union import Changes, Handle, Options, Union, Upper, upper
from tests.fuse.redirect_scene import BLOCK, pattern
from tests.fuse.test_union_stateful import UnionBesideDirectory, is_root, run
from tests.support.rootless import Rootless
from tests.support.unions import Client, Stack, stacked

REDIRECT = Options(write=WritePolicy.REDIRECT_ON_WRITE, redirect_from=1)
SIZE = 20 * BLOCK + 7
CONTENT = pattern(SIZE)


@contextmanager
def unmounted(stack: Stack) -> Iterator[None]:
    """Close the union for the time of the block."""
    stack.union.close()
    stack.upper.close()
    try:
        yield
    finally:
        stack.upper = Upper.open(stack.upper_path, stack.work_path, marks=own_whiteouts())
        stack.union = Union(stack.index, stack.fds, stack.upper, stack.options)


class RedirectingUnion(UnionBesideDirectory):
    """The machine of the union with every lower file redirected; at the end all are flattened and seen again."""

    kernel = is_root()
    options = REDIRECT

    def compare_with_kernel(self) -> None:
        self.client.lookups.clear()
        with unmounted(self.stack):
            flatten_tree(self.stack.upper_path, self.stack.work_path, self.stack.paths)
            assert not has_redirects(self.stack.upper_path)
        self.compare()
        super().compare_with_kernel()


@pytest.mark.slow
def test_redirecting_union_and_directory_stay_the_same() -> None:
    run(RedirectingUnion)


@pytest.fixture
def stack(fresh_dir: Path) -> Iterator[Stack]:
    layer = fresh_dir / "layer"
    (layer / "dir").mkdir(parents=True)
    for name in ("file", "second"):
        (layer / "dir" / name).write_bytes(CONTENT)
    os.link(layer / "dir/file", layer / "dir/link")
    (layer / "small").write_bytes(b"small")
    with stacked(fresh_dir, [layer], options=REDIRECT) as stack:
        yield stack


@pytest.fixture
def client(stack: Stack) -> Client:
    return Client(stack)


def read(client: Client, path: bytes) -> bytes:
    """Return the content of a file."""
    handle = client.union.open(client.node(path), os.O_RDONLY)
    try:
        return handle.read(1 << 22, 0)
    finally:
        handle.close()


def maps(stack: Stack) -> list[str]:
    """Return the names of the maps."""
    return os.listdir(stack.work_path / "redirect")


def changed(data: bytes = b"new", offset: int = 5 * BLOCK) -> bytes:
    """Return the content with a change."""
    return CONTENT[:offset] + data + CONTENT[offset + len(data) :]


def test_first_write_stores_one_block(stack: Stack, client: Client) -> None:
    client.write(b"dir/second", b"new", 5 * BLOCK)
    status = (stack.upper_path / "dir/second").stat()
    assert (status.st_size, status.st_blocks * 512) == (SIZE, BLOCK)
    assert read(client, b"dir/second") == changed()
    (blocks,) = U64.unpack_from(client.union.attributes(client.node(b"dir/second")), BLOCKS)
    assert blocks * 512 >= SIZE
    assert len(maps(stack)) == 1


def test_small_files_are_copied(fresh_dir: Path) -> None:
    (fresh_dir / "layer").mkdir()
    (fresh_dir / "layer/file").write_bytes(CONTENT)
    options = Options(write=WritePolicy.REDIRECT_ON_WRITE)
    with stacked(fresh_dir, [fresh_dir / "layer"], options=options) as stack:
        Client(stack).write(b"file", b"new", 0)
        assert (stack.upper_path / "file").read_bytes() == b"new" + CONTENT[3:]
        assert not has_redirects(stack.upper_path)


def test_whoever_reads_the_lower_file_sees_the_write(client: Client) -> None:
    reader = client.union.open(client.node(b"dir/second"), os.O_RDONLY)
    client.write(b"dir/second", b"new", 5 * BLOCK)
    assert reader.read(SIZE, 0) == changed()
    assert reader.fd < 0
    reader.close()


def test_remount_rename_link_and_chmod_keep_the_content(stack: Stack, client: Client) -> None:
    client.write(b"dir/file", b"new", 5 * BLOCK)
    client.union.rename(*client.at(b"dir/file"), *client.at(b"moved"))
    client.union.link(client.node(b"moved"), *client.at(b"dir/third"))
    client.union.set_attributes(client.node(b"moved"), Changes(mode=0o440))
    client.lookups.clear()
    stack.remount()
    for path in (b"moved", b"dir/link", b"dir/third"):
        assert read(client, path) == changed()
    assert len({client.node(path) for path in (b"moved", b"dir/link", b"dir/third")}) == 1
    client.union.set_attributes(client.node(b"dir/third"), Changes(size=5 * BLOCK + 1))
    client.union.set_attributes(client.node(b"moved"), Changes(size=SIZE))
    expected = changed()[: 5 * BLOCK + 1].ljust(SIZE, b"\0")
    client.lookups.clear()
    stack.remount()
    assert read(client, b"dir/link") == expected


def test_metadata_alone_copies_no_data(stack: Stack, client: Client) -> None:
    client.union.set_attributes(client.node(b"dir/second"), Changes(mode=0o600))
    assert (stack.upper_path / "dir/second").stat().st_blocks == 0
    assert read(client, b"dir/second") == CONTENT


def test_truncating_to_nothing_needs_no_lower_file(stack: Stack, client: Client) -> None:
    handle = client.union.open(client.node(b"dir/second"), os.O_RDWR | os.O_TRUNC)
    handle.write(b"new", 0)
    handle.close()
    assert (stack.upper_path / "dir/second").read_bytes() == b"new"
    assert not has_redirects(stack.upper_path)


def test_map_goes_with_the_last_name_and_the_last_user(stack: Stack, client: Client) -> None:
    node = client.node(b"dir/second")
    handle = client.union.open(node, os.O_RDWR)
    client.union.unlink(*client.at(b"dir/second"))
    handle.write(b"new", 5 * BLOCK)
    other = client.union.open(node, os.O_RDONLY)
    assert other.read(SIZE, 0) == changed()
    handle.close()
    other.close()
    assert len(maps(stack)) == 1
    client.forget()
    assert maps(stack) == []


def test_map_goes_with_a_file_that_is_replaced_unknown(stack: Stack, client: Client) -> None:
    client.write(b"dir/second", b"new", 0)
    client.create(b"other")
    client.forget()
    client.union.rename(*client.at(b"other"), *client.at(b"dir/second"))
    assert maps(stack) == []


def test_hardlink_elsewhere_keeps_the_map(stack: Stack, client: Client) -> None:
    client.write(b"dir/file", b"new", 5 * BLOCK)
    client.lookups.clear()
    stack.remount()
    client.union.unlink(*client.at(b"dir/file"))
    client.forget()
    assert read(client, b"dir/link") == changed()


def test_other_files_are_copied_from_and_to(client: Client) -> None:
    client.write(b"dir/second", b"new", 5 * BLOCK)
    client.create(b"plain")
    source = client.union.open(client.node(b"dir/second"), os.O_RDWR)
    target = client.union.open(client.node(b"plain"), os.O_RDWR)
    assert source.copy_range(0, target, 0, 1 << 22) == SIZE
    assert read(client, b"plain") == changed()
    assert target.copy_range(5 * BLOCK, source, 0, 3) == 3
    assert source.read(3, 0) == b"new"
    source.close()
    target.close()


def test_copying_union_reads_what_a_redirecting_one_left(fresh_dir: Path, stack: Stack, client: Client) -> None:
    client.write(b"dir/second", b"new", 5 * BLOCK)
    stack.options = Options()
    client.lookups.clear()
    stack.remount()
    assert read(client, b"dir/second") == changed()
    client.write(b"dir/second", b"more", 0)
    assert read(client, b"dir/second") == b"more" + changed()[4:]
    assert fresh_dir.is_dir()


def test_lost_map_is_an_error_not_zeros(stack: Stack, client: Client) -> None:
    client.write(b"dir/second", b"new", 5 * BLOCK)
    client.lookups.clear()
    with unmounted(stack):
        (stack.work_path / "redirect" / maps(stack)[0]).unlink()
    with pytest.raises(OSError, match="map") as raised:
        read(client, b"dir/second")
    assert raised.value.errno == errno.EIO
    client.lookups.clear()
    with unmounted(stack):
        assert has_redirects(stack.upper_path)
        with pytest.raises(Corrupt, match="dir/second"):
            flatten_tree(stack.upper_path, stack.work_path, stack.paths)
        assert has_redirects(stack.upper_path)


def test_changed_lower_file_is_an_error(stack: Stack, client: Client) -> None:
    client.write(b"dir/second", b"new", 5 * BLOCK)
    client.lookups.clear()
    with unmounted(stack):
        lower = stack.paths[0] / "dir/second"
        times = lower.stat()
        lower.write_bytes(CONTENT[:-1] + b"!")
        os.utime(lower, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(OSError, match="lower") as raised:
        read(client, b"dir/second")
    assert raised.value.errno == errno.EIO


def test_layer_that_was_copied_is_the_same(fresh_dir: Path, stack: Stack, client: Client) -> None:
    client.write(b"dir/second", b"new", 5 * BLOCK)
    client.lookups.clear()
    with unmounted(stack):
        copy_tree(stack.paths[0], fresh_dir / "copy")
        assert flatten_tree(stack.upper_path, stack.work_path, [fresh_dir, fresh_dir / "copy"]) == 1
    assert (stack.upper_path / "dir/second").read_bytes() == changed()


# -- what others make of the upper directory ---------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("options", [(), ("metacopy=on",), ("metacopy=on", "redirect_dir=on")], ids=",".join)
def test_kernel_overlay_refuses_what_is_not_flattened(
    stack: Stack, client: Client, options: tuple[str, ...], fresh_dir: Path
) -> None:
    client.write(b"dir/second", b"new", 5 * BLOCK)
    client.union.sync()
    data = (f"lowerdir={stack.paths[0]}", f"upperdir={stack.upper_path}", f"workdir={stack.work_path}", *options)
    with mounting.mounted([Mount("overlay", "overlay", data)]) as place:
        assert (place / "dir/file").read_bytes() == CONTENT
        with pytest.raises(OSError, match=r"not permitted|Input/output") as raised:
            (place / "dir/second").read_bytes()
        assert raised.value.errno in (errno.EPERM, errno.EIO)
    assert fresh_dir.is_dir()


def test_commit_refuses_what_is_not_flattened(stack: Stack, client: Client) -> None:
    client.write(b"dir/second", b"new", 5 * BLOCK)
    for lower in (stack.paths[0], None):  # changed, or added under its name
        with pytest.raises(FailedPrecondition, match="refers to a lower layer"):
            list(upper_changes(LayerRoot(stack.upper_path, own_whiteouts()), lower))


def test_flatten_makes_whole_files_of_the_same_inode_and_times(stack: Stack, client: Client) -> None:
    client.write(b"dir/file", b"new", 5 * BLOCK)
    client.union.set_attributes(client.node(b"dir/file"), Changes(mtime_ns=12345, mode=0o4755))
    client.write(b"dir/second", b"x" * SIZE, 10)
    client.lookups.clear()
    before = (stack.upper_path / "dir/file").stat()
    assert has_redirects(stack.upper_path)
    with unmounted(stack):
        assert flatten_tree(stack.upper_path, stack.work_path, stack.paths) == 2
        assert flatten_tree(stack.upper_path, stack.work_path, stack.paths) == 0
    after = (stack.upper_path / "dir/file").stat()
    assert (before.st_ino, before.st_mode, before.st_mtime_ns, before.st_nlink) == (
        *(after.st_ino, after.st_mode, after.st_mtime_ns),
        2,
    )
    assert stat.S_IMODE(after.st_mode) == 0o4755
    assert (stack.upper_path / "dir/file").read_bytes() == changed()
    assert (stack.upper_path / "dir/second").read_bytes() == CONTENT[:10] + b"x" * SIZE
    names = os.listxattr(stack.upper_path / "dir/file")
    assert [name for name in names if not name.endswith("layerfs.ino")] == []
    assert maps(stack) == []
    assert not has_redirects(stack.upper_path)


def test_flatten_that_was_interrupted_is_done_again(
    stack: Stack, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.write(b"dir/file", b"new", 5 * BLOCK)
    client.union.set_attributes(client.node(b"dir/file"), Changes(mtime_ns=12345))
    client.lookups.clear()
    for name in ("copy_file_range", "fdatasync", "utime", "removexattr", "unlink"):
        _stopped_after(monkeypatch, name, stack)
        assert read(client, b"dir/file") == read(client, b"dir/link") == changed()
        client.lookups.clear()
    with unmounted(stack):
        flatten_tree(stack.upper_path, stack.work_path, stack.paths)
    assert (stack.upper_path / "dir/file").read_bytes() == changed()
    assert (stack.upper_path / "dir/file").stat().st_mtime_ns == 12345


class Stopped(BaseException):
    """The process ends here."""


def _stopped_after(monkeypatch: pytest.MonkeyPatch, name: str, stack: Stack) -> None:
    """Flatten, and stop right after the first call of a name."""
    call = getattr(os, name)

    def stop(*arguments: object, **options: object) -> None:
        call(*arguments, **options)
        raise Stopped

    with unmounted(stack), monkeypatch.context() as patch, ExitStack() as stopped:
        patch.setattr(os, name, stop)
        stopped.enter_context(pytest.raises(Stopped))
        flatten_tree(stack.upper_path, stack.work_path, stack.paths)


def test_flatten_keeps_holes(fresh_dir: Path) -> None:
    (fresh_dir / "layer").mkdir()
    with (fresh_dir / "layer/file").open("wb") as lower:
        lower.truncate(64 * BLOCK)
        lower.seek(32 * BLOCK)
        lower.write(b"data")
    with stacked(fresh_dir, [fresh_dir / "layer"], options=REDIRECT) as stack:
        Client(stack).write(b"file", b"new", 0)
        with unmounted(stack):
            assert flatten_tree(stack.upper_path, stack.work_path, stack.paths) == 1
        assert (stack.upper_path / "file").stat().st_blocks * 512 == 2 * BLOCK
        assert (stack.upper_path / "file").read_bytes()[32 * BLOCK :].startswith(b"data")


def test_flatten_waits_for_no_union(stack: Stack, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.write(b"dir/second", b"new", 5 * BLOCK)
    monkeypatch.setattr(upper, "_PATIENCE", 0.1)
    with pytest.raises(Busy):
        flatten_tree(stack.upper_path, stack.work_path, stack.paths)


# -- little room, few rights -------------------------------------------------------------------------------------------


def _fill(handle: Handle) -> int:
    """Write until there is no room, and return how much was written."""
    written, piece = 0, b"x" * 3 * BLOCK
    while True:
        try:
            written += handle.write(piece, written)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return written


@pytest.mark.root
def test_full_disk_leaves_what_was_there(fresh_dir: Path) -> None:
    big = pattern(1 << 22)
    (fresh_dir / "layer").mkdir()
    (fresh_dir / "layer/file").write_bytes(big)
    (fresh_dir / "small").mkdir()
    syscalls.mount(b"tmpfs", os.fsencode(fresh_dir / "small"), b"tmpfs", 0, b"size=1m")
    try:
        with stacked(fresh_dir / "small", [fresh_dir / "layer"], options=REDIRECT) as stack:
            client = Client(stack)
            handle = client.union.open(client.node(b"file"), os.O_RDWR)
            written = _fill(handle)
            handle.close()
            found = read(client, b"file")
            assert found[:written] == b"x" * written
            assert found[written:] == big[written:]
            client.lookups.clear()
            with unmounted(stack), pytest.raises(NoSpace):
                flatten_tree(stack.upper_path, stack.work_path, stack.paths)
            assert read(client, b"file") == found
    finally:
        syscalls.umount(os.fsencode(fresh_dir / "small"))


def _as_user(place: Path) -> None:
    """Change a file that its owner may only read."""
    (place / "layer").mkdir()
    (place / "layer/file").write_bytes(CONTENT)
    (place / "layer/file").chmod(0o444)
    with stacked(place, [place / "layer"], options=REDIRECT) as stack:
        client = Client(stack)
        handle = client.union.open(client.node(b"file"), os.O_RDWR)
        handle.write(b"new", 5 * BLOCK)
        client.union.set_attributes(client.node(b"file"), Changes(size=6 * BLOCK))
        handle.close()
        client.lookups.clear()
        stack.remount()
        assert read(client, b"file") == changed()[: 6 * BLOCK]
        client.write(b"file", b"again", 0)
        client.lookups.clear()
        with unmounted(stack):
            assert flatten_tree(stack.upper_path, stack.work_path, stack.paths) == 1
        assert (place / "upper/file").read_bytes() == b"again" + changed()[5 : 6 * BLOCK]
        assert stat.S_IMODE((place / "upper/file").stat().st_mode) == 0o444


@pytest.mark.rootless
def test_ordinary_user_with_a_file_that_is_only_to_be_read(run_rootless: Rootless, rootless_dir: Path) -> None:
    run_rootless(_as_user, rootless_dir)
