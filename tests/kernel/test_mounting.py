"""Mounts on the real kernel, each way of it: what shows, what is refused, and that nothing stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.contract import Mount
from layerfs.errors import (
    Busy,
    FailedPrecondition,
    InvalidArgument,
    LayerfsError,
    NoSpace,
    NotFound,
    OperationFailed,
    PermissionDenied,
    Unsupported,
)
from layerfs.kernel import mountinfo, overlay
from layerfs.kernel.children import fork
from layerfs.kernel.mounting import Way, make_read_only, mount, mounted, overlay_options, unmount, users
from layerfs.kernel.options import parse, parse_overlay
from tests.kernel.stacks import Stack, make_stack, places

pytestmark = pytest.mark.root

WAYS = tuple(Way)
ODD = [
    "with space",
    "co:lon",
    "com,ma",
    "back\\slash",
    "all\\: ,\\\\::,,",
    "tab\tand\nline",
    "hash#and\\054",
    os.fsdecode(b"not-utf8-\xff\xfe"),
    "ünïcode",
]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    """Give each way in turn; this kernel must have them all, for older ones are not at hand."""
    found: Way = request.param
    return found


@pytest.fixture
def stack(fresh_dir: Path) -> Stack:
    return make_stack(fresh_dir, 3)


def test_this_kernel_has_the_best_way_it_should() -> None:
    version = tuple(int(part) for part in os.uname().release.split(".")[:2])
    expected = Way.DESCRIPTORS if version >= (6, 13) else Way.STRINGS if version >= (6, 7) else Way.LEGACY
    assert overlay.best_way() is expected


def test_an_overlay_shows_its_layers_and_takes_changes(stack: Stack, way: Way) -> None:
    with mounted(stack.writable(), stack.target, way=way) as root:
        assert root == stack.target
        assert set(os.listdir(root)) == {*stack.names, "top"}
        assert (root / "top").read_text() == "0"
        (root / "file2").write_text("changed")
        (root / "file1").unlink()
    assert (stack.upper / "file2").read_text() == "changed"
    assert (stack.upper / "file1").is_char_device()
    assert (stack.lowers[2] / "file2").read_text() == "2"
    assert os.listdir(stack.target) == []


@pytest.mark.parametrize("way", WAYS)
def test_500_layers_mount(fresh_dir: Path, way: Way) -> None:
    stack = make_stack(fresh_dir, 500)
    with mounted(stack.writable(), way=way) as root:
        assert set(os.listdir(root)) == {*stack.names, "top"}
        (point,) = mountinfo.at(root)
        assert len(point.lowers) == 500


@pytest.mark.parametrize("way", WAYS)
def test_501_layers_are_refused_with_a_way_out(fresh_dir: Path, way: Way) -> None:
    stack = make_stack(fresh_dir, 501)
    with pytest.raises(Unsupported, match=r"501 layers.*500") as caught:
        mount(stack.writable(), stack.target, way=way)
    assert caught.value.hint
    assert "squash" in caught.value.hint
    assert "flatten" in caught.value.hint
    assert os.fspath(stack.target) not in places()


def test_a_long_option_string_is_never_cut(fresh_dir: Path) -> None:
    """At 4,095 bytes mount(2) cuts without a word; relative to a common directory they still fit."""
    stack = make_stack(fresh_dir / ("d" * 200), 300)
    options = ",".join(stack.writable()[0].options)
    assert len(options) > 3 * 4096
    here = os.getcwd()
    with mounted(stack.writable(), way=Way.LEGACY) as root:
        assert set(os.listdir(root)) == {*stack.names, "top"}
    assert os.getcwd() == here


def test_an_option_string_that_cannot_fit_is_refused(fresh_dir: Path) -> None:
    stack = make_stack(fresh_dir, 60, prefix="n" * 100)
    with pytest.raises(Unsupported, match=r"60 layers.*4095") as caught:
        mount(stack.writable(), stack.target, way=Way.LEGACY)
    assert caught.value.hint
    assert os.fspath(stack.target) not in places()
    with mounted(stack.writable()) as root:
        assert set(os.listdir(root)) == {*stack.names, "top"}


@pytest.mark.parametrize("way", [Way.DESCRIPTORS, Way.STRINGS])
def test_paths_beyond_255_bytes(fresh_dir: Path, way: Way) -> None:
    """fsconfig(2) takes strings of 255 bytes; descriptors have no such end, and strings fall back to mount(2)."""
    stack = make_stack(fresh_dir / ("x" * 200) / ("y" * 200), 4)
    assert len(os.fspath(stack.lowers[0])) > 255
    with mounted(stack.writable(), way=way) as root:
        assert set(os.listdir(root)) == {*stack.names, "top"}
        (root / "new").touch()
        assert [point.path for point in users(stack.writable())] == [root]
    assert (stack.upper / "new").exists()


@pytest.mark.parametrize("name", ODD)
def test_odd_paths(fresh_dir: Path, name: str, way: Way) -> None:
    stack = make_stack(fresh_dir / name, 2, prefix=f"l{name}")
    with mounted(stack.writable(), stack.target, way=way) as root:
        assert set(os.listdir(root)) == {*stack.names, "top"}
        (root / "new").touch()
        (point,) = users(stack.writable())
        assert point.path == root
        assert point.lowers == tuple(map(str, stack.lowers))
        assert point.upper == str(stack.upper)
    assert (stack.upper / "new").exists()
    with mounted(stack.read_only(), stack.target, way=way) as root:
        assert [point.path for point in users(stack.read_only())] == [root]
        assert users(stack.writable()) == []


def test_without_an_upper_it_is_read_only(stack: Stack, way: Way) -> None:
    with mounted(stack.read_only(), way=way) as root:
        assert mountinfo.at(root)[0].read_only
        with pytest.raises(OSError, match="Read-only"):
            (root / "new").touch()


def test_the_attributes_of_an_overlay(stack: Stack, way: Way) -> None:
    plain = stack.writable()[0]
    with mounted([plain.with_options("nodev", "nosuid", "noexec", "noatime")], way=way) as root:
        (point,) = mountinfo.at(root)
        assert {"nodev", "nosuid", "noexec", "noatime", "rw"} <= set(point.options)


def test_a_second_mount_of_an_upper_is_found(stack: Stack) -> None:
    mounts = stack.writable()
    other = make_stack(stack.upper.parent, 2, prefix="other")
    assert users(mounts) == []
    with mounted(mounts, stack.target), mounted(other.writable()):
        assert [point.path for point in users(mounts)] == [stack.target]


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_missing_layer_is_named(stack: Stack, way: Way) -> None:
    stack.lowers[1].rename(stack.lowers[1].with_name("gone"))
    with pytest.raises(NotFound) as caught:
        mount(stack.writable(), stack.target, way=way)
    if way is Way.DESCRIPTORS:
        assert str(stack.lowers[1]) in caught.value.message
    assert os.fspath(stack.target) not in places()


def test_the_kernels_own_words_are_told(stack: Stack, way: Way) -> None:
    one = Mount("overlay", "overlay", overlay_options(stack.lowers[:1]))
    with pytest.raises(OperationFailed, match="at least 2 lowerdir"):
        mount([one], stack.target, way=way)


def test_an_unknown_option_is_named(stack: Stack) -> None:
    with pytest.raises(LayerfsError, match="no-such-option"):
        mount([stack.writable()[0].with_options("no-such-option=1")], stack.target)


def test_a_volatile_mount_must_be_settled(stack: Stack, way: Way) -> None:
    with mounted(stack.writable(volatile=True), way=way) as root:
        (root / "new").touch()
    with pytest.raises(FailedPrecondition, match="volatile") as caught:
        mount(stack.writable(), stack.target, way=way)
    assert caught.value.hint
    shutil.rmtree(stack.work / "work" / "incompat" / "volatile")
    with mounted(stack.writable(), way=way) as root:
        assert (root / "new").exists()


def test_too_few_layers_read_back_are_unmounted(stack: Stack) -> None:
    mount(stack.writable(), stack.target)
    claimed = parse_overlay(parse(stack.writable()[0].options).data)
    with pytest.raises(OperationFailed, match="2 of 3"):
        overlay._check_count(claimed, 2, stack.target)
    assert os.fspath(stack.target) not in places()


def test_the_count_is_read_from_mountinfo_where_statmount_is_missing(stack: Stack) -> None:
    with mounted(stack.writable()) as root:
        assert overlay._count(None, root) == 3


def test_a_missing_target(stack: Stack) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        mount(stack.writable(), stack.target / "nowhere")


def test_nothing_to_mount(stack: Stack) -> None:
    with pytest.raises(InvalidArgument):
        mount([], stack.target)
    with pytest.raises(InvalidArgument):
        mount(stack.shared(stack.target)[:1], stack.target)


def test_an_unknown_file_system(stack: Stack, way: Way) -> None:
    with pytest.raises(Unsupported, match="nosuchfs") as caught:
        mount([Mount("nosuchfs", "none")], stack.target, way=way)
    assert caught.value.hint == "modprobe nosuchfs"


def test_an_ordinary_user_is_told(stack: Stack) -> None:
    pid = fork()
    if pid == 0:
        status = 1
        try:
            os.setresuid(65534, 65534, 65534)
            mount(stack.writable(), stack.target)
        except PermissionDenied as error:
            status = 0 if error.hint else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_what_was_mounted_before_a_failure_goes_again(stack: Stack) -> None:
    good, bad = stack.read_only()[0], Mount("bind", "/nowhere", ("bind",))
    with pytest.raises(NotFound):
        mount([good, bad], stack.target)
    assert os.fspath(stack.target) not in places()


# -- bind mounts and plain file systems --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [None, Way.LEGACY])
@pytest.mark.parametrize("kind", ["bind", "rbind"])
def test_a_bind_mount(stack: Stack, way: Way | None, kind: str) -> None:
    source = stack.lowers[0]
    writable = [Mount("bind", str(source), (kind, "rw"))]
    with mounted(writable, stack.target, way=way) as root:
        (root / "new").touch()
        assert [point.path for point in users(writable)] == [stack.target]
    assert (source / "new").exists()
    read_only = [Mount("bind", str(source), (kind, "ro", "nodev"))]
    with mounted(read_only, stack.target, way=way) as root:
        with pytest.raises(OSError, match="Read-only"):
            (root / "more").touch()
        assert {"ro", "nodev"} <= set(mountinfo.at(root)[0].options)
        (source / "still-writable-there").touch()
    assert users(read_only) == []


def test_a_bind_keeps_what_its_source_forbids(stack: Stack) -> None:
    outer = Mount("bind", str(stack.lowers[0]), ("bind", "nosuid", "noexec"))
    with mounted([outer]) as root:
        inner = Mount("bind", str(root), ("bind", "ro"))
        for way in (None, Way.LEGACY):
            with mounted([inner], way=way) as shown:
                assert {"ro", "nosuid", "noexec"} <= set(mountinfo.at(shown)[0].options)


def test_a_read_only_rbind_is_so_all_the_way_down(stack: Stack) -> None:
    inside = stack.lowers[0] / "inside"
    inside.mkdir()
    with (
        mounted([Mount("tmpfs", "tmpfs")], inside),
        mounted([Mount("bind", str(stack.lowers[0]), ("rbind", "ro"))]) as root,
        pytest.raises(OSError, match="Read-only"),
    ):
        (root / "inside" / "new").touch()


def test_a_bind_mount_takes_no_options_of_file_systems(stack: Stack) -> None:
    with pytest.raises(InvalidArgument, match="size=1"):
        mount([Mount("bind", str(stack.lowers[0]), ("bind", "size=1"))], stack.target)


@pytest.mark.parametrize("way", [None, Way.LEGACY])
def test_a_plain_file_system(stack: Stack, way: Way | None) -> None:
    mounts = [Mount("tmpfs", f"source-{way}", ("size=64k", "mode=700", "noexec"))]
    with mounted(mounts, stack.target, way=way) as root:
        (point,) = mountinfo.at(root)
        assert (point.type, point.source) == ("tmpfs", f"source-{way}")
        assert "noexec" in point.options
        assert {"size=64k", "mode=700"} <= set(point.super_options)
        assert [user.path for user in users(mounts)] == [root]


def test_long_options_of_a_plain_file_system_are_refused(stack: Stack) -> None:
    options = tuple(f"option{number}=x" for number in range(1000))
    with pytest.raises(Unsupported, match="4095"):
        mount([Mount("tmpfs", "tmpfs", options)], stack.target, way=Way.LEGACY)


# -- taking away -------------------------------------------------------------------------------------------------------


def test_a_busy_mount_names_who_uses_it(stack: Stack) -> None:
    mount(stack.writable(), stack.target)
    sleeper = subprocess.Popen(["sleep", "60"], cwd=stack.target)
    try:
        with pytest.raises(Busy) as caught:
            unmount(stack.target)
        assert caught.value.hint
        assert f"sleep (pid {sleeper.pid})" in caught.value.hint
        assert os.fspath(stack.target) in places()
        unmount(stack.target, lazy=True)
        assert os.fspath(stack.target) not in places()
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_mount_inside_is_named(stack: Stack) -> None:
    (stack.lowers[0] / "inside").mkdir()
    with mounted(stack.writable(), stack.target) as root, mounted([Mount("tmpfs", "tmpfs")], root / "inside"):
        with pytest.raises(Busy) as caught:
            unmount(root)
        assert f"{root}/inside is mounted inside it" in (caught.value.hint or "")


def test_unmounting_what_is_not_mounted(stack: Stack) -> None:
    with pytest.raises(FailedPrecondition, match="nothing is mounted"):
        unmount(stack.target)
    with pytest.raises(LayerfsError):
        unmount(stack.target / "nowhere")


class Mine(Exception):
    """What a caller raises."""


def _fail_after(body: Callable[[], None]) -> None:
    body()
    raise Mine


def test_it_is_unmounted_when_the_block_raises(stack: Stack) -> None:
    seen: list[Path] = []
    with pytest.raises(Mine), mounted(stack.writable()) as root:
        _fail_after(lambda: seen.append(root))
    assert os.fspath(seen[0]) not in places()
    assert not seen[0].exists()


def test_it_is_unmounted_on_ctrl_c(stack: Stack) -> None:
    with pytest.raises(KeyboardInterrupt), mounted(stack.writable()) as root:
        signal.raise_signal(signal.SIGINT)
    assert os.fspath(root) not in places()
    assert not root.exists()


_INTERRUPTED = """
import random, signal, sys
from pathlib import Path
from layerfs.contract import Mount
from layerfs.kernel import mountinfo
from layerfs.kernel.mounting import mounted

mounts, target = eval(sys.argv[1]), Path(sys.argv[2])
chance = random.Random(7)
interrupted = 0
signal.signal(signal.SIGALRM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
for _ in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, 0.002))
        with mounted(mounts, target):
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupted += 1
    if mountinfo.at(target):
        sys.exit("still mounted")
print(interrupted)
"""


def test_it_is_unmounted_on_ctrl_c_at_any_moment(stack: Stack) -> None:
    # In a process without coverage: interrupted at any moment, that never gives its own lock back.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    command = [sys.executable, "-c", _INTERRUPTED, repr(list(stack.writable())), str(stack.target)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    assert os.fspath(stack.target) not in places()


def test_a_thread_mounts_as_well(stack: Stack) -> None:
    seen: list[str] = []

    def body() -> None:
        with mounted(stack.writable()) as root:
            seen.extend(os.listdir(root))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert set(seen) == {*stack.names, "top"}


def test_a_process_that_stays_is_reported_and_the_mount_goes(stack: Stack) -> None:
    sleepers: list[subprocess.Popen[bytes]] = []
    try:
        with pytest.raises(Busy, match="in use"), mounted(stack.writable(), stack.target) as root:
            sleepers.append(subprocess.Popen(["sleep", "60"], cwd=root))
        assert os.fspath(stack.target) not in places()
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


def test_a_process_that_stays_does_not_hide_the_blocks_own_error(stack: Stack) -> None:
    sleepers: list[subprocess.Popen[bytes]] = []
    try:
        with pytest.raises(Mine) as caught, mounted(stack.writable(), stack.target) as root:
            _fail_after(lambda: sleepers.append(subprocess.Popen(["sleep", "60"], cwd=root)))
        assert any("in use" in note for note in caught.value.__notes__)
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


def test_what_was_mounted_there_before_stays(stack: Stack) -> None:
    with mounted([Mount("tmpfs", "outer")], stack.target):
        with mounted(stack.writable(), stack.target) as root:
            assert (root / "top").exists()
        assert [point.source for point in mountinfo.at(stack.target)] == ["outer"]


def test_a_fresh_place_is_private(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(stack.target))
    with mounted(stack.read_only()) as root:
        assert root.parent == stack.target
        unmount(root)
        assert root.stat().st_mode & 0o777 == 0o700
    assert os.listdir(stack.target) == []


def test_a_file_system_becomes_read_only_when_nobody_writes(fresh_dir: Path) -> None:
    with mounted([Mount("tmpfs", "tmpfs", ("nosuid",))]) as place:
        with (place / "open").open("w"), pytest.raises(Busy, match="open for writing"):
            make_read_only(place)
        with mounted([Mount("bind", str(place), ("bind",))], fresh_dir):
            make_read_only(place)
            for path in (place, fresh_dir):
                with pytest.raises(OSError, match="Read-only"):
                    (path / "new").touch()
        assert os.statvfs(place).f_flag & os.ST_NOSUID


def test_no_room_for_the_place_of_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's directory for temporary files is full, not the store's disk."""
    full = tmp_path / "full"
    full.mkdir()
    with mounted([Mount("tmpfs", "tmpfs", ("size=4k", "nr_inodes=1"))], full):
        monkeypatch.setattr(tempfile, "tempdir", str(full))
        with pytest.raises(NoSpace, match="temporary directory"), mounted([Mount("tmpfs", "tmpfs", ())]):
            pass
