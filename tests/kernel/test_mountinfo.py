"""mountinfo, from lines as kernels write them and from real mounts."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from layerfs.contract import Mount
from layerfs.kernel import mountinfo
from layerfs.kernel.mounting import Way, mounted, users
from tests.kernel.stacks import make_stack

PLAIN = rb"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue"


def test_a_line() -> None:
    point = mountinfo.parse_line(PLAIN)
    assert (point.id, point.parent, point.device, point.root) == (36, 35, (98, 0), "/mnt1")
    assert (point.path, point.options, point.type) == (Path("/mnt2"), ("rw", "noatime"), "ext3")
    assert (point.source, point.super_options) == ("/dev/root", ("rw", "errors=continue"))
    assert not point.read_only


@pytest.mark.parametrize(
    ("options", "lowers", "upper"),
    [
        (rb"rw,lowerdir=/a:/b,upperdir=/u,workdir=/w", ("/a", "/b"), "/u"),
        (rb"ro,lowerdir+=/a,lowerdir+=/b", ("/a", "/b"), ""),
        (rb"rw,lowerdir+=/l\0543:\134\040x,upperdir=/u", ("/l,3:\\ x",), "/u"),
        (rb"rw,lowerdir=/l\134\0543\134:\134\134\040x,upperdir=/u", ("/l,3:\\ x",), "/u"),
        (rb"rw,lowerdir=/l,upperdir=/u\134\054\134:\134\134\040x", ("/l",), "/u,:\\ x"),
        (rb"rw,lowerdir=/l\134,m:/n,upperdir=/u", ("/l,m", "/n"), "/u"),
    ],
)
def test_the_directories_of_an_overlay(options: bytes, lowers: tuple[str, ...], upper: str) -> None:
    point = mountinfo.parse_line(rb"46 30 0:39 / /m rw,relatime - overlay overlay " + options)
    assert point.lowers == lowers
    assert point.upper == upper


@pytest.mark.parametrize("line", [rb"1 0 0:1 / / rw - rootfs none rw", rb"1 0 0:1 / / rw - rootfs  rw"])
def test_a_line_without_a_source(line: bytes) -> None:
    assert mountinfo.parse_line(line).super_options == ("rw",)


def test_octal_escapes() -> None:
    line = rb"1 0 0:1 /r\040oot /a\040b\011c\012d\134e#f\377 rw - tmpfs so\040urce rw"
    point = mountinfo.parse_line(line)
    assert os.fsencode(point.path) == b"/a b\tc\nd\\e#f\xff"
    assert (point.root, point.source) == ("/r oot", "so urce")
    assert mountinfo.escaped(point.path) == rb"/a\040b\011c\012d\134e#f" + b"\xff"


def test_what_is_mounted_now() -> None:
    points = mountinfo.mount_points()
    assert any(point.path == Path("/") for point in points)
    assert mountinfo.holding(Path("/proc/self")) in points
    with pytest.raises(FileNotFoundError):
        mountinfo.holding(Path("/nowhere"))


@pytest.mark.root
@pytest.mark.parametrize("name", ["plain", "a b\tc\nd\\e#f", os.fsdecode(b"\xff\xfe"), "//deleted", "\\040"])
def test_real_places(fresh_dir: Path, name: str) -> None:
    outer = fresh_dir / name.lstrip("/")
    outer.mkdir()
    link = fresh_dir / "link"
    link.symlink_to(outer)
    with mounted([Mount("tmpfs", "tmpfs")], outer):
        inner = outer / name.lstrip("/")
        inner.mkdir()
        with mounted([Mount("tmpfs", "tmpfs")], inner):
            assert [point.path for point in mountinfo.at(link)] == [outer]
            assert [point.path for point in mountinfo.below(outer)] == [inner]
            assert [point.path for point in mountinfo.below(fresh_dir)] == [outer, inner]
            holding = mountinfo.holding(inner / ".")
            assert holding
            assert holding.path == inner


@pytest.mark.root
@pytest.mark.parametrize("way", list(Way))
def test_the_lowers_of_one_place(fresh_dir: Path, way: Way) -> None:
    stack = make_stack(fresh_dir / "o,d:d \\", 3)
    assert mountinfo.lowers_at(stack.target) == ()
    with mounted(stack.read_only(), stack.target, way=way) as root:
        if mountinfo.lowers_at(root):  # Linux 6.11
            assert mountinfo.lowers_at(root) == tuple(map(str, stack.lowers))
        assert mountinfo.lowers_at(root.parent) == ()
    with mounted(stack.writable(), stack.target, way=way) as root:
        assert mountinfo.lowers_at(root) == ()
    assert mountinfo.lowers_at(fresh_dir / "nowhere") == ()


@pytest.mark.root
def test_only_lines_that_may_matter_are_read(fresh_dir: Path) -> None:
    stack = make_stack(fresh_dir / "a b", 2)
    with mounted(stack.writable(), stack.target):
        assert [point.path for point in mountinfo.mentioning(stack.upper)] == [stack.target]
        assert list(mountinfo.mentioning(fresh_dir / "nowhere")) == []
    assert len(list(mountinfo.mentioning(os.fsdecode(b"\xff")))) == len(mountinfo.lines())


@pytest.mark.root
def test_a_bind_of_a_bind_is_found_by_what_it_shows(fresh_dir: Path) -> None:
    source, first, second = (fresh_dir / name for name in ("source", "first", "second"))
    for path in (source / "deep", first, second):
        path.mkdir(parents=True)
    whole = Mount("bind", str(source), ("bind",))
    with mounted([whole], first):
        through = [Mount("bind", str(first / "deep"), ("bind",))]
        direct = [Mount("bind", str(source / "deep"), ("bind",))]
        with mounted(through, second):
            assert [point.path for point in users(through)] == [second]
            assert [point.path for point in users(direct)] == [second]
        assert users(direct) == []
    assert users([Mount("bind", str(fresh_dir / "nowhere"), ("bind",))]) == []


def test_a_source_that_goes_meanwhile_is_mounted_nowhere(tmp_path: Path) -> None:
    """realpath(3) of Python fails on a link that goes between its lstat(2) and its readlink(2)."""
    device = tmp_path / "device"
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            device.symlink_to("../elsewhere")
            device.unlink()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(20_000):
            assert users([Mount("ext4", str(device), ())]) == []
    finally:
        done.set()
        thread.join()
