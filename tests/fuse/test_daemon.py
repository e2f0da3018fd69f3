"""The process that owns a mount: what its starter hears of it, and how it ends."""

from __future__ import annotations

import logging
import os
import select
import signal
import stat
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from layerfs import locks
from layerfs.errors import Busy, LayerfsError, OperationFailed, Unsupported
from layerfs.kernel import children, mountinfo
from layerfs_fuse import daemon, mounting
from layerfs_fuse.daemon import Ready
from layerfs_fuse.stack import perform
from tests.support.rootless import Rootless


def ended(process: int) -> bool:
    """Wait for a process and close its pidfd."""
    try:
        return bool(select.select([process], [], [], 20)[0])
    finally:
        os.close(process)


# -- detaching ---------------------------------------------------------------------------------------------------------


def test_a_daemon_has_left_everything(tmp_path: Path) -> None:
    told, tell = os.pipe()
    spare = os.open("/", os.O_RDONLY)

    def body(ready: Ready) -> None:
        ready()
        facts = [os.getcwd(), str(os.getsid(0) == int(os.readlink("/proc/self"))), *os.listdir("/proc/self/fd")]
        os.write(tell, " ".join(facts).encode())

    pid = daemon.start(body, "look around", log=tmp_path / "log", keep=(tell,))
    process = os.pidfd_open(pid)
    os.close(tell)
    with os.fdopen(told, "rb") as stream:
        cwd, leader, *descriptors = stream.read().decode().split(" ")
    os.close(spare)
    assert ended(process)
    assert cwd == "/"
    assert leader == "False"  # so it can never get a terminal
    # The standard three, the one kept, the one for errors, and that of the listing itself.
    assert len(descriptors) == 6


def test_a_lock_of_who_started_it_holds_until_it_is_ready(tmp_path: Path) -> None:
    """Where that one is killed meanwhile, nobody may find what it locked free and unmounted, and begin with it."""
    go_on, tell = os.pipe()
    heard, begun = os.pipe()
    lock = partial(locks.locked, tmp_path / "lock", locks.upper(1), exclusive=True, what="the clone")

    def body(ready: Ready) -> None:
        os.write(begun, b"begun")
        os.read(go_on, 1)
        ready()
        os.read(go_on, 1)

    starter = children.fork()
    if starter == 0:
        with lock():
            daemon.start(body, "test", keep=(go_on, begun))
    assert os.read(heard, 5) == b"begun"
    os.kill(starter, signal.SIGKILL)
    os.waitpid(starter, 0)
    with pytest.raises(Busy), lock(timeout=0):
        pass
    os.write(tell, b"1")
    with lock(timeout=20):
        pass
    os.write(tell, b"2")
    for fd in (go_on, tell, heard, begun):
        os.close(fd)


def fail(error: Exception, _ready: Ready) -> None:
    raise error


def test_an_error_reaches_who_started_it(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no such thing") as raised:
        daemon.start(partial(fail, Unsupported("no such thing", hint="try another")), "test", log=tmp_path / "log")
    assert raised.value.hint == "try another"
    assert "ERROR layerfs_fuse.daemon: cannot test: no such thing" in (tmp_path / "log").read_text()


def test_an_errno_reaches_who_started_it(tmp_path: Path) -> None:
    with pytest.raises(LayerfsError, match="cannot test: No space left"):
        daemon.start(partial(fail, OSError(28, "No space left")), "test", log=tmp_path / "log")


def kill_oneself(_ready: Ready) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_that_ends_without_a_word(tmp_path: Path) -> None:
    with pytest.raises(OperationFailed, match=r"without a word; see .*/log"):
        daemon.start(kill_oneself, "test", log=tmp_path / "log")


def test_a_mistake_is_told_and_is_in_the_log_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(OperationFailed, match="a mistake"):
        daemon.start(partial(fail, ValueError("a mistake")), "test", log=tmp_path / "log")
    assert "Traceback" in (tmp_path / "log").read_text()


def test_an_error_after_it_was_ready_is_only_logged(tmp_path: Path) -> None:
    def body(ready: Ready) -> None:
        ready()
        logging.getLogger("test").info("now")
        raise Unsupported("too late")

    process = os.pidfd_open(daemon.start(body, "test", log=tmp_path / "log"))
    assert ended(process)
    text = (tmp_path / "log").read_text()
    assert "INFO test: now" in text
    assert "cannot test: too late" in text


# -- mounts ------------------------------------------------------------------------------------------------------------


def mounted(directory: Path) -> tuple[Path, int]:
    """Mount a union of one layer in a directory; return the place and a pidfd of its server."""
    for name in ("lower", "upper", "work", "mount"):
        (directory / name).mkdir()
    (directory / "lower" / "file").write_text("below")
    words = [f"{key}={directory / value}" for key, value in DIRECTORIES.items()]
    perform("layerfs", [*words, f"log={directory / 'log'}"], directory / "mount")
    pid = int((directory / "log").read_text().split()[2])
    return directory / "mount", os.pidfd_open(pid)


DIRECTORIES = {"lowerdir": "lower", "upperdir": "upper", "workdir": "work"}


def end_by_signal(directory: Path, number: int) -> None:
    target, process = mounted(directory)
    (target / "new").write_text("above")
    signal.pidfd_send_signal(process, number)
    assert ended(process)
    assert not mountinfo.at(target)
    assert (directory / "upper" / "new").read_text() == "above"
    assert (directory / "log").read_text().splitlines()[-1].endswith(f"unmounted {target}")


@pytest.mark.root
@pytest.mark.usefixtures("fuse_device")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts(fresh_dir: Path, number: int) -> None:
    end_by_signal(fresh_dir, number)


@pytest.mark.rootless
@pytest.mark.usefixtures("fuse_device")
def test_a_signal_unmounts_an_ordinary_users_mount(run_rootless: Rootless, rootless_dir: Path) -> None:
    run_rootless(end_by_signal, rootless_dir, signal.SIGTERM)


def stay_for_the_last_user(directory: Path) -> None:
    target, process = mounted(directory)
    with (target / "new").open("w") as file:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        while mountinfo.at(target):
            assert not select.select([process], [], [], 0.01)[0]
        file.write("above")
        file.flush()
        os.fsync(file.fileno())
        assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        assert not select.select([process], [], [], 0)[0]
    assert ended(process)
    assert (directory / "upper" / "new").read_text() == "above"


@pytest.mark.root
@pytest.mark.usefixtures("fuse_device")
def test_a_busy_mount_is_served_to_its_last_user(fresh_dir: Path) -> None:
    stay_for_the_last_user(fresh_dir)


@pytest.mark.rootless
@pytest.mark.usefixtures("fuse_device")
def test_an_ordinary_users_busy_mount_is_served_to_its_last_user(run_rootless: Rootless, rootless_dir: Path) -> None:
    run_rootless(stay_for_the_last_user, rootless_dir)


def lose_nothing_that_was_synced(directory: Path) -> None:
    target, process = mounted(directory)
    file = os.open(target / "file", os.O_RDWR)
    os.write(file, b"ABOVE")
    os.fsync(file)
    signal.pidfd_send_signal(process, signal.SIGKILL)
    assert ended(process)
    with pytest.raises(OSError, match="not connected"):
        os.statvfs(target)
    with suppress(OSError):
        os.close(file)
    assert mounting.is_stale(target)
    mounting.detach(target)
    (directory / "log").unlink()
    words = [f"{key}={directory / value}" for key, value in DIRECTORIES.items()]
    perform("layerfs", [*words, f"log={directory / 'log'}"], target)
    assert (target / "file").read_text() == "ABOVE"
    process = os.pidfd_open(int((directory / "log").read_text().split()[2]))
    mounting.detach(target)
    assert ended(process)


@pytest.mark.root
@pytest.mark.usefixtures("fuse_device")
def test_a_killed_server_lost_nothing_that_was_synced(fresh_dir: Path) -> None:
    lose_nothing_that_was_synced(fresh_dir)


@pytest.mark.rootless
@pytest.mark.usefixtures("fuse_device")
def test_a_killed_server_of_an_ordinary_user(run_rootless: Rootless, rootless_dir: Path) -> None:
    run_rootless(lose_nothing_that_was_synced, rootless_dir)


@pytest.mark.root
@pytest.mark.usefixtures("fuse_device")
def test_what_cannot_be_mounted_is_told(fresh_dir: Path) -> None:
    (fresh_dir / "lower").mkdir()
    with pytest.raises(LayerfsError, match="nowhere"):
        perform("layerfs", [f"lowerdir={fresh_dir / 'lower'}"], fresh_dir / "nowhere")
