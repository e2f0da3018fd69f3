"""Commands in a root of their own: what they find there, how they end, and that no trace is left."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.contract import Mount
from layerfs.errors import InvalidArgument, LayerfsError, NotFound, PermissionDenied
from layerfs.kernel import userns
from layerfs.kernel.chroot import run_chroot
from layerfs.kernel.mounting import overlay_options
from tests.kernel.stacks import places
from tests.support.rootless import Rootless

BUSYBOX = shutil.which("busybox")
PROGRAMS = ("sh", "ls", "cat", "grep", "kill", "sleep", "id", "tty", "touch", "mount", "env", "rm", "mkdir", "stat")
ENV = {"PATH": "/bin", "MARK": "1"}

pytestmark = pytest.mark.skipif(BUSYBOX is None, reason="apt-get install busybox-static")


def make_root(base: Path) -> Path:
    """Make the smallest root there is: busybox, and a directory for answers."""
    assert BUSYBOX
    root = base / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for program in PROGRAMS:
        (root / "bin" / program).symlink_to("busybox")
    (root / "out").mkdir()
    os.utime(root, ns=(1_000_000_001, 1_000_000_001))
    return root


def shell(root: Path, script: str) -> int:
    return run_chroot(root, ["sh", "-c", script], ENV)


def check_statuses(base: Path) -> None:
    root = make_root(base)
    for script, status in (
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("kill -INT $$", 130),
        ("sleep 100 & exit 3", 3),
    ):
        assert shell(root, script) == status, script


def check_environment(base: Path) -> None:
    root = make_root(base)
    assert shell(root, "env > /out/env; id -u > /out/id; pwd > /out/pwd") == 0
    lines = set((root / "out/env").read_text().splitlines())
    assert {"PATH=/bin", "MARK=1"} <= lines
    assert all(line.split("=")[0] in {"PATH", "MARK", "PWD", "SHLVL", "OLDPWD"} for line in lines)
    assert (root / "out/id").read_text() == "0\n"
    assert (root / "out/pwd").read_text() == "/\n"


def check_devices(base: Path) -> None:
    root = make_root(base)
    script = """
    set -e
    echo x > /dev/null
    for node in zero full random urandom; do test -c /dev/$node; cat < /dev/$node | : ; done
    test ! -s /dev/null
    (echo x | cat /dev/stdin > /dev/stdout) > /out/echo
    exec 3<>/dev/ptmx
    test -c /dev/pts/0
    echo shm > /dev/shm/file
    test "$(ls -l /dev/fd)" != ""
    test ! -e /dev/sda -a ! -e /dev/kmsg -a ! -e /dev/loop-control
    """
    assert shell(root, script) == 0


def check_proc_sys_and_names(base: Path) -> None:
    root = make_root(base)
    script = """
    test "$(ls /proc | grep -c '^[0-9]')" -lt 6 || exit 2
    test -e /sys/kernel || exit 3
    mkdir /sys/fs/cgroup/intruder 2>/dev/null && exit 4
    touch /sys/intruder 2>/dev/null && exit 5
    cat /etc/resolv.conf > /out/resolv.conf || exit 6
    echo x 2>/dev/null > /etc/resolv.conf && exit 7
    exit 0
    """
    assert shell(root, script) == 0
    assert (root / "out/resolv.conf").read_bytes() == Path("/etc/resolv.conf").read_bytes()


def check_nothing_is_left(base: Path) -> None:
    root = make_root(base)
    before = places()
    assert shell(root, "sleep 1000 & exit 0") == 0
    assert set(os.listdir(root)) == {"bin", "out"}
    assert root.stat().st_mtime_ns == 1_000_000_001
    assert [place for place in places() - before if "layerfs-root" in place] == []
    assert shell(root, "touch /new; mkdir /etc/mine") == 0
    assert set(os.listdir(root)) == {"bin", "out", "new", "etc"}
    assert os.listdir(root / "etc") == ["mine"]
    assert root.stat().st_mtime_ns != 1_000_000_001


def check_refusals(base: Path) -> None:
    root = make_root(base)
    (root / "bin" / "text").write_text("x")
    with pytest.raises(NotFound, match="nope"):
        run_chroot(root, ["nope"], ENV)
    with pytest.raises(NotFound, match="/bin/nope"):
        run_chroot(root, ["/bin/nope"], ENV)
    with pytest.raises(PermissionDenied, match="text"):
        run_chroot(root, ["text"], ENV)
    with pytest.raises(InvalidArgument):
        run_chroot(root, [], ENV)
    with pytest.raises(NotFound, match="nowhere"):
        run_chroot(root / "nowhere", ["sh"], ENV)
    with pytest.raises(LayerfsError, match="no-such-option"):
        run_chroot([Mount("tmpfs", "tmpfs", ("no-such-option",))], ["sh"], ENV)


def check_links_lead_nowhere_else(base: Path) -> None:
    """Let an image call anything /etc, /dev and /proc."""
    root = make_root(base)
    victim = base / "victim"
    victim.mkdir()
    for target in (os.fspath(victim), "../" * 20 + os.fspath(victim).lstrip("/")):
        (root / "dev").symlink_to("/elsewhere")  # the victim may be below /dev itself: that would be a loop
        for name in ("etc", "proc", "sys"):
            (root / name).symlink_to(target)
        assert shell(root, "echo x > /dev/null") == 0
        assert os.listdir(victim) == []
        assert set(os.listdir(root)) == {"bin", "out", "dev", "etc", "proc", "sys"}
        for name in ("dev", "etc", "proc", "sys"):
            (root / name).unlink()


def check_a_dangling_resolv_conf(base: Path) -> None:
    """As in images made for systemd-resolved, whose file is in a /run that is not there."""
    root = make_root(base)
    (root / "etc").mkdir()
    (root / "run").mkdir()
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    assert shell(root, "cat /etc/resolv.conf > /out/resolv.conf") == 0
    assert (root / "out/resolv.conf").read_bytes() == Path("/etc/resolv.conf").read_bytes()
    assert os.listdir(root / "run") == []
    assert (root / "etc/resolv.conf").is_symlink()


def check_a_read_only_root(base: Path) -> None:
    root = make_root(base)
    mounts = [Mount("bind", str(root), ("bind", "ro"))]
    assert run_chroot(mounts, ["sh", "-c", "touch /x 2>/dev/null && exit 1; exit 4"], ENV) == 4
    for name in ("proc", "dev", "sys"):
        (root / name).mkdir()
    assert run_chroot(mounts, ["sh", "-c", "test -c /dev/null && test -d /proc/1"], ENV) == 0


CHECKS = (
    check_statuses,
    check_environment,
    check_devices,
    check_proc_sys_and_names,
    check_nothing_is_left,
    check_refusals,
    check_links_lead_nowhere_else,
    check_a_dangling_resolv_conf,
    check_a_read_only_root,
)


@pytest.mark.root
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_as_root(fresh_dir: Path, check: Callable[[Path], None]) -> None:
    check(fresh_dir)


def _inside(check: Callable[[Path], None], base: Path) -> None:
    userns.enter()
    check(base)


@pytest.mark.rootless
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_as_an_ordinary_user(run_rootless: Rootless, rootless_dir: Path, check: Callable[[Path], None]) -> None:
    run_rootless(_inside, check, rootless_dir)


@pytest.mark.rootless
def test_an_ordinary_user_is_root_inside_only(run_rootless: Rootless, rootless_dir: Path) -> None:
    def work() -> tuple[int, str, int]:
        root = make_root(rootless_dir)
        return shell(root, "id -u > /out/id"), (root / "out/id").read_text(), os.geteuid()

    assert run_rootless(work) == (0, "0\n", 65534)


@pytest.mark.root
def test_an_overlay_of_the_hosts_root(fresh_dir: Path) -> None:
    """The whole host as the lowest layer: a glibc system, whose changes go to an upper directory."""
    upper, work = fresh_dir / "upper", fresh_dir / "work"
    upper.mkdir()
    work.mkdir()
    mounts = [Mount("overlay", "overlay", overlay_options(["/"], upper, work))]
    script = "set -e; getent passwd root; echo changed > /etc/hostname; rm -f /etc/motd; test -c /dev/urandom"
    assert run_chroot(mounts, ["/bin/sh", "-c", script], {"PATH": "/usr/bin:/bin"}) == 0
    assert (upper / "etc/hostname").read_text() == "changed\n"
    assert Path("/etc/hostname").read_text() != "changed\n"
    assert set(os.listdir(upper)) <= {"etc"}
    assert all(str(fresh_dir) not in place for place in places())


# -- signals and terminals ---------------------------------------------------------------------------------------------

CALLER = """
import sys
from pathlib import Path
from layerfs.kernel.chroot import run_chroot
sys.exit(run_chroot(Path(sys.argv[1]), ["sh", "-c", sys.argv[2]], {"PATH": "/bin"}))
"""


def _wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def _is_running(mark: str) -> bool:
    wanted = mark.encode()
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and wanted in Path("/proc", name, "cmdline").read_bytes().split(b"\0"):
                return True
        except OSError:
            continue
    return False


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_caller_goes_to_the_command(fresh_dir: Path, number: signal.Signals) -> None:
    root = make_root(fresh_dir)
    script = f"trap 'echo got > /out/got; exit 9' {number.name[3:]}; touch /out/ready; while :; do sleep 0.05; done"
    with subprocess.Popen([sys.executable, "-c", CALLER, root, script]) as caller:
        assert _wait_for((root / "out/ready").exists)
        caller.send_signal(number)
        assert caller.wait(20) == 9
    assert (root / "out/got").exists()


@pytest.mark.root
def test_nothing_outlives_a_caller_that_is_killed(fresh_dir: Path) -> None:
    root = make_root(fresh_dir)
    mark = f"1{os.getpid()}"
    with subprocess.Popen([sys.executable, "-c", CALLER, root, f"touch /out/ready; sleep {mark}"]) as caller:
        assert _wait_for(lambda: (root / "out/ready").exists() and _is_running(mark))
        caller.kill()
        caller.wait()
    assert _wait_for(lambda: not _is_running(mark))
    assert all(str(root) not in place for place in places())
    for place in Path("/tmp").glob("layerfs-root-*"):
        if not place.is_mount() and not os.listdir(place) and time.time() - place.stat().st_mtime < 60:
            place.rmdir()  # an empty directory is all that SIGKILL may leave


def _talk(master: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        try:
            block = os.read(master, 4096)
        except OSError:  # EIO: the other side is closed
            break
        if not block:
            break
        seen += block
    return seen


def _on_a_terminal(root: Path, script: str, talk: Callable[[int], bytes]) -> tuple[bytes, int]:
    pid, master = pty.fork()
    if pid == 0:
        try:
            command = [sys.executable, "-c", CALLER, os.fspath(root), script]
            os.execv(sys.executable, command)  # noqa: S606  that is what a test of processes is about
        finally:
            os._exit(1)
    seen = talk(master)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(master)
    return seen, status


@pytest.mark.root
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_the_terminal_is_kept(fresh_dir: Path) -> None:
    root = make_root(fresh_dir)
    script = "test -t 0 && test -t 1 && tty && echo word > /dev/tty && exit 5"
    seen, status = _on_a_terminal(root, script, lambda master: _talk(master, b"word"))
    assert b"/dev/console" in seen
    assert b"word" in seen
    assert status == 5


@pytest.mark.root
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_ctrl_c_ends_the_command_and_not_the_caller(fresh_dir: Path) -> None:
    root = make_root(fresh_dir)

    def talk(master: int) -> bytes:
        seen = _talk(master, b"ready")
        os.write(master, b"\x03")
        return seen

    assert _on_a_terminal(root, "echo ready; sleep 60", talk)[1] == 130
    assert _on_a_terminal(root, "trap 'exit 8' INT; echo ready; sleep 60 & wait", talk)[1] == 8
