"""Whole trees: exact copies, safe deletion, honest measures."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import tree
from layerfs.contract import Mount, Usage
from layerfs.errors import AlreadyExists, Busy, LayerfsError, NotFound
from layerfs.kernel import userns
from layerfs.kernel.loop import attach, create_image, make_file_system
from layerfs.kernel.mounting import mounted
from tests.kernel.stacks import detached
from tests.support.rootless import Rootless

OLD = 1_000_000_000_123_456_789


def manifest(root: Path) -> dict[bytes, tuple[object, ...]]:
    """List everything that a copy must keep, read by plain paths and not by the code under test."""
    found: dict[bytes, tuple[object, ...]] = {}
    inodes: dict[int, int] = {}
    base = os.fsencode(root)
    for directory, directories, files in os.walk(base):
        for name in [b".", *directories, *files] if directory == base else [*directories, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            names = [name for name in os.listxattr(path, follow_symlinks=False) if "SGI_ACL" not in name]  # xfs's own
            found[os.path.relpath(path, base)] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                status.st_rdev,
                None if stat.S_ISDIR(status.st_mode) else status.st_nlink,
                inodes.setdefault(status.st_ino, len(inodes)) if not stat.S_ISDIR(status.st_mode) else None,
                {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(names)},
                content,
            )
    return dict(sorted(found.items()))


def in_order(found: dict[bytes, tuple[object, ...]]) -> dict[bytes, tuple[object, ...]]:
    """Give inodes numbers in the order of names, so that two trees of the same hard links are equal."""
    numbers: dict[object, int] = {}
    return {
        path: (*values[:6], None if values[6] is None else numbers.setdefault(values[6], len(numbers)), *values[7:])
        for path, values in found.items()
    }


def fill(root: Path, *, privileged: bool) -> None:
    """Make a tree with one of everything."""
    root.mkdir(mode=0o751)
    (root / "empty").touch()
    (root / "small").write_bytes(b"x" * 3000)
    (root / "big").write_bytes(random.Random(1).randbytes(3 << 20))
    (root / "mode").touch()
    (root / "mode").chmod(0o4755)
    (root / "link").symlink_to("/nowhere/at/all")
    (root / "directory" / "deeper").mkdir(parents=True)
    (root / "directory").chmod(0o1777)
    os.link(root / "small", root / "directory" / "hard")
    os.link(root / "link", root / "directory" / "hardlink-of-a-link")
    os.mkfifo(root / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    os.mkdir(os.fsencode(root) + b"/not utf-8 \xff\n")
    (root / "closed").mkdir(mode=0o500)
    os.setxattr(root / "small", "user.text", b"value\0\xff")
    os.setxattr(root / "directory", "user.empty", b"")
    with open(root / "sparse", "wb") as sparse:
        sparse.truncate(64 << 20)
        sparse.seek(16 << 20)
        sparse.write(b"data" * 2000)
        sparse.seek(40 << 20)
        sparse.write(b"more")
    if privileged:
        _fill_as_root(root)
    for directory, directories, files in os.walk(root, topdown=False):
        for number, name in enumerate([*directories, *files]):
            os.utime(os.path.join(directory, name), ns=(OLD + number, OLD - number), follow_symlinks=False)
    os.utime(root, ns=(OLD, OLD))


def _fill_as_root(root: Path) -> None:
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(7, 200))
    os.mknod(root / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    os.chown(root / "small", 1000, 2000)
    os.chown(root / "link", 3000, 4000, follow_symlinks=False)
    os.chown(root / "directory" / "deeper", 5, 6)
    (root / "directory" / "deeper").chmod(0o2775)
    (root / "capable").touch()
    os.chown(root / "capable", 7, 8)
    (root / "capable").chmod(0o6755)
    subprocess.run(["setcap", "cap_net_raw+ep", root / "capable"], check=True)
    subprocess.run(["setfacl", "-m", "u:1234:rwx,g:99:r--,m::r-x", root / "mode"], check=True)
    subprocess.run(["setfacl", "-m", "u:1234:rwx", "-d", root / "directory"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:4321:r-x", root / "directory"], check=True)
    os.setxattr(root / "directory", "trusted.overlay.opaque", b"y")
    os.setxattr(root / "link", "trusted.on-a-link", b"1", follow_symlinks=False)
    os.setxattr(root / "null", "trusted.on-a-device", b"2")


@pytest.fixture(params=["memory", "ext4", "xfs", "btrfs"])
def disk(request: pytest.FixtureRequest, fresh_dir: Path) -> Iterator[Path]:
    """Give an empty directory on each kind of file system."""
    if request.param == "memory":
        yield fresh_dir
        return
    image, target = fresh_dir / "image", fresh_dir / "mount"
    target.mkdir()
    create_image(image, 512 << 20)
    make_file_system(image, request.param)
    with attach(image) as device, mounted([Mount(request.param, str(device.path))], target) as root:
        yield root
    assert detached(image)


@pytest.mark.root
def test_a_copy_has_everything(disk: Path) -> None:
    fill(disk / "source", privileged=True)
    before = in_order(manifest(disk / "source"))
    tree.copy_tree(disk / "source", disk / "copy")
    assert in_order(manifest(disk / "copy")) == before
    assert in_order(manifest(disk / "source")) == before
    assert (disk / "copy" / "sparse").stat().st_blocks * 512 < 1 << 20


@pytest.mark.root
def test_a_copy_to_another_file_system(disk: Path, tmp_path: Path) -> None:
    fill(tmp_path / "source", privileged=True)
    tree.copy_tree(tmp_path / "source", disk / "copy")
    assert in_order(manifest(disk / "copy")) == in_order(manifest(tmp_path / "source"))


@pytest.mark.root
@pytest.mark.parametrize("disk", ["xfs", "btrfs"], indirect=True)
def test_a_copy_shares_data_where_the_file_system_can(disk: Path) -> None:
    (disk / "source").mkdir()
    (disk / "source" / "file").write_bytes(random.Random(2).randbytes(64 << 20))
    tree.syncfs(disk)
    before = shutil.disk_usage(disk).free
    tree.copy_tree(disk / "source", disk / "copy")
    tree.syncfs(disk)
    assert before - shutil.disk_usage(disk).free < 8 << 20
    assert (disk / "copy" / "file").read_bytes() == (disk / "source" / "file").read_bytes()


@pytest.mark.root
@pytest.mark.parametrize("disk", ["ext4"], indirect=True)
def test_what_the_place_would_hand_down_is_not_inherited(disk: Path) -> None:
    fill(disk / "source", privileged=True)
    shelf = disk / "shelf"
    shelf.mkdir()
    os.chown(shelf, 0, 4242)
    shelf.chmod(0o2777)
    subprocess.run(["setfacl", "-d", "-m", "u:77:rwx,m::rwx", shelf], check=True)
    mask = os.umask(0o077)
    try:
        tree.copy_tree(disk / "source", shelf / "copy")
    finally:
        os.umask(mask)
    assert in_order(manifest(shelf / "copy")) == in_order(manifest(disk / "source"))


def test_a_copy_by_an_ordinary_user(run_rootless: Rootless, rootless_dir: Path) -> None:
    run_rootless(_copy_unprivileged, rootless_dir)


def _copy_unprivileged(base: Path) -> None:
    fill(base / "source", privileged=False)
    tree.copy_tree(base / "source", base / "copy")
    assert in_order(manifest(base / "copy")) == in_order(manifest(base / "source"))
    tree.remove_tree(base / "copy")
    assert not (base / "copy").exists()
    tree.remove_tree(base / "source")


@pytest.mark.root
@pytest.mark.rootless
def test_owners_that_are_not_mapped_are_left_out(run_rootless: Rootless, rootless_dir: Path) -> None:
    source = rootless_dir / "source"
    source.mkdir()
    (source / "file").touch()
    (source / "link").symlink_to("x")
    for path in (source, source / "file", source / "link"):
        os.chown(path, 1000, 1000, follow_symlinks=False)
    run_rootless(_copy_squashed, rootless_dir)
    assert (rootless_dir / "copy" / "file").stat().st_uid == rootless_dir.stat().st_uid


def _copy_squashed(base: Path) -> None:
    userns.enter()
    with pytest.raises(LayerfsError):
        tree.copy_tree(base / "source", base / "copy")
    assert not (base / "copy").exists()
    tree.copy_tree(base / "source", base / "copy", squash_owner=True)


def test_the_destination_must_not_exist(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine").touch()
    with pytest.raises(AlreadyExists):
        tree.copy_tree(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy" / "mine").exists()
    with pytest.raises(NotFound):
        tree.copy_tree(tmp_path / "nowhere", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.root
def test_a_full_disk_leaves_nothing(fresh_dir: Path) -> None:
    source, target = fresh_dir / "source", fresh_dir / "mount"
    source.mkdir()
    target.mkdir()
    for number in range(8):
        (source / str(number)).write_bytes(b"x" * (1 << 20))
    with mounted([Mount("tmpfs", "tmpfs", ("size=4m",))], target):
        with pytest.raises(LayerfsError, match="No space"):
            tree.copy_tree(source, target / "copy")
        assert os.listdir(target) == []


# -- depth -------------------------------------------------------------------------------------------------------------

DEPTH = 10_000


def make_deep(root: Path, depth: int) -> None:
    """Make a chain of directories far beyond PATH_MAX, with a hard link from the top to the bottom."""
    root.mkdir()
    (root / "top").touch()
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    here = os.dup(top)
    for _ in range(depth):
        os.mkdir("directory", dir_fd=here)
        below = os.open("directory", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.link("top", "bottom", src_dir_fd=top, dst_dir_fd=here)
    os.link("bottom", "again", src_dir_fd=here, dst_dir_fd=here)
    os.close(here)
    os.close(top)


def test_trees_deeper_than_any_path(fresh_dir: Path) -> None:
    make_deep(fresh_dir / "deep", DEPTH)
    before = len(os.listdir("/proc/self/fd"))
    assert tree.usage(fresh_dir / "deep").inodes == DEPTH + 2
    tree.copy_tree(fresh_dir / "deep", fresh_dir / "copy")
    assert tree.usage(fresh_dir / "copy").inodes == DEPTH + 2
    assert (fresh_dir / "copy" / "top").stat().st_nlink == 3
    assert tree.difference_usage(fresh_dir / "deep", fresh_dir / "copy").inodes <= 1
    tree.remove_tree(fresh_dir / "deep")
    tree.remove_tree(fresh_dir / "copy")
    assert os.listdir(fresh_dir) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_hard_links_whose_first_name_is_too_deep_for_a_path(fresh_dir: Path) -> None:
    make_deep(fresh_dir / "deep", 600)
    (fresh_dir / "deep" / "top").unlink()
    tree.copy_tree(fresh_dir / "deep", fresh_dir / "copy")
    assert tree.usage(fresh_dir / "copy") == tree.usage(fresh_dir / "deep")
    assert tree.usage(fresh_dir / "copy").inodes == 602
    tree.remove_tree(fresh_dir / "deep")
    tree.remove_tree(fresh_dir / "copy")


# -- removal -----------------------------------------------------------------------------------------------------------


def test_removal_never_follows_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").touch()
    (tmp_path / "doomed" / "inside").mkdir(parents=True)
    (tmp_path / "doomed" / "link").symlink_to(victim)
    (tmp_path / "doomed" / "inside" / "link").symlink_to("../../victim")
    (tmp_path / "root-link").symlink_to(victim)
    tree.remove_tree(tmp_path / "doomed")
    tree.remove_tree(tmp_path / "root-link")
    assert (victim / "precious").exists()
    assert set(os.listdir(tmp_path)) == {"victim"}


def test_removing_what_is_gone_is_no_error(tmp_path: Path) -> None:
    tree.remove_tree(tmp_path / "nothing")
    tree.remove_tree(tmp_path / "nothing" / "deeper")
    (tmp_path / "file").touch()
    tree.remove_tree(tmp_path / "file")
    assert os.listdir(tmp_path) == []


@pytest.mark.root
def test_removal_never_crosses_a_mount(fresh_dir: Path) -> None:
    outside = fresh_dir / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    inside = fresh_dir / "doomed" / "deep" / "inside"
    inside.mkdir(parents=True)
    with mounted([Mount("bind", str(outside), ("bind",))], inside):
        for attempt in (tree.remove_tree, lambda path: tree.copy_tree(path, fresh_dir / "copy")):
            with pytest.raises(Busy, match="mounted at 'inside'") as caught:
                attempt(fresh_dir / "doomed")
            assert caught.value.hint
        assert (outside / "precious").exists()
        assert not (fresh_dir / "copy").exists()
        assert tree.usage(fresh_dir / "doomed").inodes == 3
    tree.remove_tree(fresh_dir / "doomed")
    assert set(os.listdir(fresh_dir)) == {"outside"}


def _remove_closed(base: Path) -> None:
    doomed = base / "doomed"
    (doomed / "a" / "b").mkdir(parents=True)
    (doomed / "a" / "b" / "file").touch()
    for path in (doomed / "a" / "b", doomed / "a", doomed):
        path.chmod(0)
    tree.remove_tree(doomed)
    assert not doomed.exists()


def test_a_tree_that_somebody_still_writes_into_is_removed(fresh_dir: Path) -> None:
    busy = fresh_dir / "busy"
    gone = threading.Event()

    def write() -> None:
        number = 0
        while not gone.is_set():
            number += 1
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                (busy / f"d{number % 7}" / f"f{number}").touch()
            with contextlib.suppress(OSError):
                (busy / f"d{number % 7}").rmdir()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            for number in range(7):
                (busy / f"d{number}").mkdir(parents=True, exist_ok=True)
            tree.remove_tree(busy)
            assert not busy.exists()
    finally:
        gone.set()
        writer.join()


@pytest.mark.rootless
def test_closed_directories_are_removed_by_their_owner(run_rootless: Rootless, rootless_dir: Path) -> None:
    run_rootless(_remove_closed, rootless_dir)


def test_removal_against_somebody_who_swaps_directories_for_links(fresh_dir: Path) -> None:
    """The classic race of rm -r: a directory becomes a link to somewhere precious while it is being emptied."""
    victim = fresh_dir / "victim"
    victim.mkdir()
    for number in range(50):
        (victim / f"precious{number}").touch()
    doomed = fresh_dir / "doomed"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for number in range(20):
                try:
                    os.rename(doomed / f"d{number}", doomed / "aside")
                    os.symlink(victim, doomed / f"d{number}")
                    os.unlink(doomed / f"d{number}")
                    os.rename(doomed / "aside", doomed / f"d{number}")
                except OSError:
                    continue

    attacker = threading.Thread(target=swap)
    attacker.start()
    try:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, LayerfsError):  # the attacker was between two steps
                for number in range(20):
                    (doomed / f"d{number}" / "e").mkdir(parents=True, exist_ok=True)
                tree.remove_tree(doomed)
    finally:
        stop.set()
        attacker.join()
    # The plain paths of this test itself may have made things there through a link.
    assert {f"precious{number}" for number in range(50)} <= set(os.listdir(victim))


# -- measures ----------------------------------------------------------------------------------------------------------


def test_usage_is_what_du_says(tmp_path: Path) -> None:
    fill(tmp_path / "root", privileged=False)
    (tmp_path / "root" / "directory").chmod(0o777)
    out = subprocess.run(
        ["du", "-s", "--block-size=1", tmp_path / "root"], check=True, capture_output=True, text=True
    ).stdout
    inodes = subprocess.run(["du", "-s", "--inodes", tmp_path / "root"], check=True, capture_output=True, text=True)
    assert tree.usage(tmp_path / "root") == Usage(int(out.split()[0]), int(inodes.stdout.split()[0]))
    with pytest.raises(NotFound):
        tree.usage(tmp_path / "nowhere")


@pytest.mark.root
def test_the_difference_is_what_changed(fresh_dir: Path) -> None:
    lower, upper = fresh_dir / "lower", fresh_dir / "upper"
    fill(lower, privileged=True)
    tree.copy_tree(lower, upper)
    assert tree.difference_usage(lower, upper) == Usage()
    (upper / "big").write_bytes(b"y" * 8192)
    assert tree.difference_usage(lower, upper) == Usage(8192, 1)
    (upper / "directory" / "deeper" / "new").mkdir(parents=True)
    (upper / "directory" / "deeper" / "new" / "file").write_bytes(b"z" * 4096)
    # The directory that got an entry has another time, and counts as changed.
    assert tree.difference_usage(lower, upper).inodes == 4
    (upper / "small").unlink()
    (upper / "small").symlink_to("x")
    assert tree.difference_usage(lower, upper).inodes == 6


def test_measuring_a_tree_that_is_being_deleted(fresh_dir: Path) -> None:
    root = fresh_dir / "root"
    for number in range(300):
        (root / str(number) / "deeper").mkdir(parents=True)
        (root / str(number) / "file").touch()
    remover = threading.Thread(target=shutil.rmtree, args=(root / "2",), kwargs={"ignore_errors": True})
    removers = [remover, *(threading.Thread(target=shutil.rmtree, args=(root / str(n),)) for n in range(100, 300))]
    for thread in removers:
        thread.start()
    for _ in range(20):
        assert tree.usage(root).inodes >= 100
    for thread in removers:
        thread.join()


# -- syncing -----------------------------------------------------------------------------------------------------------


def test_syncing(tmp_path: Path) -> None:
    tree.syncfs(tmp_path)
    tree.fsync_dir(tmp_path)
    with pytest.raises(NotFound):
        tree.syncfs(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(LayerfsError, match=os.strerror(errno.ENOTDIR)):
        tree.fsync_dir(tmp_path / "file")
