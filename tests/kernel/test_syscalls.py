"""The system calls that the standard library lacks, each on the real kernel."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.kernel import syscalls
from layerfs.kernel.descent import Descent


@pytest.fixture
def here(tmp_path: Path) -> Iterator[int]:
    """Give a descriptor of a directory with a file, and links out of it."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "file").write_text("inside")
    (tmp_path / "absolute").symlink_to("/directory/file")
    (tmp_path / "upwards").symlink_to("../../../../../../etc/passwd")
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("path", "resolve", "code"),
    [
        (b"directory/file", syscalls.RESOLVE_BENEATH, 0),
        (b"../x", syscalls.RESOLVE_BENEATH, errno.EXDEV),
        (b"absolute", syscalls.RESOLVE_BENEATH, errno.EXDEV),
        (b"absolute", syscalls.RESOLVE_IN_ROOT, 0),
        (b"upwards", syscalls.RESOLVE_IN_ROOT, errno.ENOENT),
        (b"absolute", syscalls.RESOLVE_NO_SYMLINKS, errno.ELOOP),
        (b"nothing", 0, errno.ENOENT),
    ],
)
def test_openat2_stays_within(here: int, path: bytes, resolve: int, code: int) -> None:
    if code:
        with pytest.raises(OSError) as caught:  # noqa: PT011  the number is checked below
            syscalls.openat2(here, path, os.O_RDONLY, resolve=resolve)
        assert (caught.value.errno, caught.value.filename) == (code, path)
        return
    fd = syscalls.openat2(here, path, os.O_RDONLY, resolve=resolve)
    assert os.read(fd, 100) == b"inside"
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_openat2_makes_files(here: int, tmp_path: Path) -> None:
    fd = syscalls.openat2(here, b"new \xff", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640, syscalls.RESOLVE_BENEATH)
    os.close(fd)
    assert (os.fsencode(tmp_path) + b"/new \xff") in [os.fsencode(path) for path in tmp_path.iterdir()]


def test_renames(tmp_path: Path) -> None:
    one, two = os.fsencode(tmp_path / "one"), os.fsencode(tmp_path / "two")
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    with pytest.raises(FileExistsError) as caught:
        syscalls.rename_noreplace(syscalls.AT_FDCWD, one, syscalls.AT_FDCWD, two)
    assert (caught.value.filename, caught.value.filename2) == (one, two)
    syscalls.rename_exchange(syscalls.AT_FDCWD, one, syscalls.AT_FDCWD, two)
    assert (tmp_path / "one").read_text() == "2"
    syscalls.rename_noreplace(syscalls.AT_FDCWD, one, syscalls.AT_FDCWD, one + b"-new")
    assert (tmp_path / "one-new").read_text() == "2"


def test_file_systems_are_told_apart() -> None:
    assert syscalls.file_system_magic(b"/proc") == 0x9FA0
    assert syscalls.file_system_magic(b"/dev/shm") == syscalls.TMPFS_MAGIC
    with pytest.raises(FileNotFoundError) as caught:
        syscalls.file_system_magic(b"/nowhere")
    assert caught.value.filename == b"/nowhere"


def test_failures_of_wrappers_are_seen() -> None:
    """syscall(2) returns a long and the wrappers of libc an int: read as the wrong one, -1 is a success."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        syscalls.syncfs(-1)
    with pytest.raises(OSError, match="No such file"):
        syscalls.umount(b"/nowhere")
    with pytest.raises(OSError, match="Invalid argument"):
        syscalls.unshare(-1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        syscalls.setns(-1, 0)
    with open("/dev/null", "wb") as null, pytest.raises(OSError):  # noqa: PT011  which number depends on the device
        syscalls.ficlone(null.fileno(), null.fileno())


def test_a_walk_notices_that_its_way_back_was_moved(tmp_path: Path) -> None:
    deep = tmp_path / "root"
    for _ in range(200):
        deep /= "d"
    deep.mkdir(parents=True)
    with Descent(os.open(tmp_path / "root", os.O_RDONLY | os.O_DIRECTORY)) as walk:
        for _ in range(200):
            walk.down(b"d")
        assert walk.depth == 200
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "root/d/d").rename(tmp_path / "elsewhere/d")
        for _ in range(198):
            walk.up()
        with pytest.raises(OSError, match="moved"):
            walk.up()


@pytest.mark.parametrize("way", ["descriptor", "name", "path"])
def test_times_are_set_one_by_one(here: int, tmp_path: Path, way: str) -> None:
    path = tmp_path / "directory" / "file"
    with path.open() as file:
        targets: dict[str, int | bytes] = {
            "descriptor": file.fileno(),
            "name": b"directory/file",
            "path": os.fsencode(path),
        }
        target = targets[way]
        place = here if way == "name" else None
        syscalls.set_times(target, 10**18 + 1, -1, dir_fd=place)
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (10**18 + 1, -1)
        syscalls.set_times(target, None, 7, dir_fd=place)
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (10**18 + 1, 7)
        syscalls.set_times(target, syscalls.NOW, None, dir_fd=place)
    assert path.stat().st_atime_ns == pytest.approx(time.time_ns(), abs=60 * 10**9)
    assert path.stat().st_mtime_ns == 7


def test_times_of_a_link_or_of_what_it_leads_to(here: int, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("directory/file")
    syscalls.set_times(b"link", 1, 2, dir_fd=here)
    syscalls.set_times(b"link", 3, 4, dir_fd=here, follow=True)
    assert [(tmp_path / name).lstat().st_mtime_ns for name in ("link", "directory/file")] == [2, 4]
    with pytest.raises(FileNotFoundError, match="missing"):
        syscalls.set_times(b"missing", 1, 2, dir_fd=here)
