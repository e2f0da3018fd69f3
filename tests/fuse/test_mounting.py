"""Mounting and unmounting FUSE, as root and without."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from layerfs.errors import Busy, FailedPrecondition, InvalidArgument, LayerfsError, NotFound, PermissionDenied
from layerfs.kernel import mountinfo, userns
from layerfs_fuse import mounting
from layerfs_fuse.mounting import Attachment
from tests.support.fuse import served
from tests.support.rootless import Rootless

pytestmark = pytest.mark.usefixtures("fuse_device")


def target(directory: Path) -> Path:
    path = directory / "a mount"
    path.mkdir()
    return path


def use(directory: Path, source: str = "me") -> tuple[str, str, list[str]]:
    """Mount, look, unmount; return what mountinfo said."""
    place = target(directory)
    with served(place, attachment=Attachment(source=source)):
        point = mountinfo.at(place)[-1]
        assert stat.S_ISREG((place / "file").stat().st_mode)
        with pytest.raises(FileNotFoundError):
            (place / "other").stat()
        mounting.detach(place)
        assert not mountinfo.at(place)
    return point.type, point.source, sorted(point.super_options)


def use_from_a_namespace(directory: Path) -> tuple[str, str, list[str]]:
    userns.enter()
    return use(directory)


ODD_NAMES = ["/a b,ro,c", "/back\\slash\\", "/new\nline:\"quoted'", "/not utf-8 \udcff"]


@pytest.mark.root
@pytest.mark.parametrize("source", ODD_NAMES, ids=ascii)
def test_a_source_may_have_any_name(fresh_dir: Path, source: str) -> None:
    assert use(fresh_dir, source)[1] == source


@pytest.mark.rootless
@pytest.mark.parametrize("source", ODD_NAMES, ids=ascii)
def test_it_may_so_by_fusermount3(run_rootless: Rootless, rootless_dir: Path, source: str) -> None:
    assert run_rootless(use, rootless_dir, source)[1] == source


def test_unknown_flags_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="'suid' is no flag") as raised:
        Attachment(flags=frozenset({"suid"}))
    assert "nosuid" in str(raised.value.hint)


@pytest.mark.root
def test_root_mounts_directly(fresh_dir: Path) -> None:
    kind, source, options = use(fresh_dir)
    assert (kind, source) == ("fuse.layerfs", "me")
    assert "default_permissions" in options
    assert "user_id=0" in options


@pytest.mark.rootless
def test_an_ordinary_user_mounts_by_fusermount3(run_rootless: Rootless, rootless_dir: Path) -> None:
    kind, source, options = run_rootless(use, rootless_dir)
    assert (kind, source) == ("fuse.layerfs", "me")
    assert "default_permissions" in options
    assert "user_id=0" not in options


@pytest.mark.rootless
def test_the_root_of_a_user_namespace_mounts_directly(run_rootless: Rootless, rootless_dir: Path) -> None:
    kind, _, options = run_rootless(use_from_a_namespace, rootless_dir)
    assert kind == "fuse.layerfs"
    assert "user_id=0" in options


@pytest.mark.root
def test_flags_arrive(fresh_dir: Path) -> None:
    place = target(fresh_dir)
    with served(place, attachment=Attachment(flags=frozenset({"ro", "nosuid"}), allow_other=True)):
        point = mountinfo.at(place)[-1]
        with pytest.raises(OSError, match="Read-only"):
            (place / "new").touch()
    assert {"ro", "nosuid"} <= set(point.options)
    assert "allow_other" in point.super_options


@pytest.mark.root
def test_a_place_that_is_not_there(fresh_dir: Path) -> None:
    with pytest.raises(NotFound):
        mounting.attach(fresh_dir / "nowhere", Attachment())
    with pytest.raises(FailedPrecondition, match="nothing is mounted"):
        mounting.detach(fresh_dir)


def fail_to_mount(place: Path, attachment: Attachment) -> tuple[type[LayerfsError], str | None]:
    with pytest.raises(LayerfsError) as raised:
        mounting.attach(place, attachment)
    return type(raised.value), raised.value.hint


def fail_to_unmount(place: Path) -> type[LayerfsError]:
    with pytest.raises(LayerfsError) as raised:
        mounting.detach(place)
    return type(raised.value)


@pytest.mark.rootless
def test_what_an_ordinary_user_may_not(run_rootless: Rootless, rootless_dir: Path) -> None:
    kind, hint = run_rootless(fail_to_mount, Path("/usr"), Attachment())
    assert kind is PermissionDenied
    assert "yours" in str(hint)
    assert run_rootless(fail_to_unmount, rootless_dir) is FailedPrecondition


@pytest.mark.rootless
def test_letting_others_in_needs_leave(run_rootless: Rootless, rootless_dir: Path) -> None:
    if "\nuser_allow_other" in Path("/etc/fuse.conf").read_text():
        pytest.skip("/etc/fuse.conf allows it here")
    kind, hint = run_rootless(fail_to_mount, rootless_dir, Attachment(allow_other=True))
    assert kind is PermissionDenied
    assert "/etc/fuse.conf" in str(hint)


def survive_a_kill(directory: Path) -> None:
    place = target(directory)
    with served(place) as pid:
        assert (place / "file").exists()
        assert not mounting.is_stale(place)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert mounting.is_stale(place)
        with pytest.raises(FailedPrecondition, match="server has ended") as raised:
            mounting.attach(place, Attachment())
        assert "unmount it" in str(raised.value.hint)
        mounting.detach(place)
        assert not mounting.is_stale(place)
    with served(place):
        assert (place / "file").exists()


@pytest.mark.root
def test_a_stale_mount_is_told_and_taken_away(fresh_dir: Path) -> None:
    survive_a_kill(fresh_dir)


@pytest.mark.rootless
def test_an_ordinary_user_takes_a_stale_mount_away(run_rootless: Rootless, rootless_dir: Path) -> None:
    run_rootless(survive_a_kill, rootless_dir)


def keep_busy(directory: Path) -> None:
    place = target(directory)
    with served(place):
        held = os.open(place, os.O_RDONLY)
        with pytest.raises(Busy):
            mounting.detach(place)
        mounting.detach(place, lazy=True)
        assert stat.S_ISREG(os.stat("file", dir_fd=held).st_mode)
        os.close(held)


@pytest.mark.root
def test_a_busy_mount_is_unmounted_only_lazily(fresh_dir: Path) -> None:
    keep_busy(fresh_dir)


@pytest.mark.rootless
def test_an_ordinary_users_busy_mount(run_rootless: Rootless, rootless_dir: Path) -> None:
    run_rootless(keep_busy, rootless_dir)
