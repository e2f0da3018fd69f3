"""`layerfs run` and `layerfs bundle`, by the OCI runtime that works here."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layerfs.errors import Unsupported
from layerfs.kernel import mountinfo
from layerfs.runtime.tool import find_runtime
from tests.command.conftest import Command
from tests.support.fuse_device import fuse_device
from tests.support.rootless import Rootless

__all__ = ["fuse_device"]

BUSY = (
    "while :; do :; done & sleep 2; cat /sys/fs/cgroup/cpuacct/cpuacct.usage 2>/dev/null || cat /sys/fs/cgroup/cpu.stat"
)


@pytest.fixture(params=["overlay2", "btrfs", "fuse", "copy"])
def backend(request: pytest.FixtureRequest) -> str:
    """Give the drivers on which containers are tried."""
    name: str = request.param
    return name


@pytest.fixture
def box(backend: str, fresh_dir: Path, request: pytest.FixtureRequest, shell_layout: Path) -> Command:
    """Give the command, as processes, on a store with the image shell:1."""
    place = request.getfixturevalue("btrfs_mount") / f"run-{time.monotonic_ns()}" if backend == "btrfs" else fresh_dir
    command = Command(place / "store", backend)
    command("image", "import", shell_layout)
    return command


@pytest.fixture
def overlay(fresh_dir: Path, shell_layout: Path) -> Command:
    """Give the same on overlay2, for what the driver has no part in."""
    command = Command(fresh_dir / "store", "overlay2")
    command("image", "import", shell_layout)
    return command


pytestmark = pytest.mark.root


def left(store: Command) -> list[str]:
    """Return the clones, and what is mounted or kept of containers."""
    state = Path("/run/layerfs/containers")
    mounts = [str(point.path) for point in mountinfo.below(Path("/")) if "layerfs-run-" in str(point.path)]
    return [*store("-q", "ls").split(), *mounts, *(os.listdir(state) if state.exists() else [])]


def test_a_container_of_an_image(box: Command) -> None:
    done = box.run("run", "--rm", "shell:1", "--", "sh", "-c", "echo $$; hostname; id -u; cat /etc/issue; ls /")
    assert done.returncode == 0, done.stderr
    pid, host, user, issue, *names = done.stdout.split("\n")
    assert (pid, host, user, issue) == ("1", "layerfs", "0", "layerfs test")
    assert {"bin", "etc", "proc", "var"} <= set(names)
    assert left(box) == []


def test_what_is_written_stays_in_the_clone_and_runs_again(box: Command) -> None:
    done = box.run("run", "--name", "web", "shell:1", "sh", "-c", "echo hello > /etc/motd")
    assert "layerfs rm web" in done.stderr
    assert "A /etc/motd" in box("-q", "diff", "web").splitlines()
    assert box("run", "web", "cat", "/etc/motd") == "hello"
    assert left(box) == ["web"]


def test_exit_statuses_are_those_of_docker_run(overlay: Command) -> None:
    def status(*words: str) -> int:
        return overlay.run("run", "--rm", *words).returncode

    assert status("shell:1", "sh", "-c", "exit 42") == 42
    assert status("shell:1", "sh", "-c", "sh -c 'kill -9 $$'; exit $?") == 137
    assert status("shell:1", "/no/such/program") == 127
    assert status("shell:1", "/etc/issue") == 126
    assert status("--volume", "/no/such/place:/x", "shell:1", "id") == 125
    assert status("nothing", "id") == 3
    assert status("--user", "nobody", "shell:1", "id") == 3
    assert left(overlay) == []


def test_a_runtime_that_is_not_there(overlay: Command) -> None:
    assert "'no-such-runtime'" in overlay.fails(5, "run", "--runtime", "no-such-runtime", "shell:1", "id")


def test_memory_that_is_too_much_is_refused_by_killing(overlay: Command) -> None:
    words = ("shell:1", "busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
    assert overlay.run("run", "--rm", "--memory", "64m", *words).returncode == 137
    assert overlay.run("run", "--rm", "--memory", "512m", *words).returncode == 0


def test_processors_are_shared_out(overlay: Command) -> None:
    """A busy loop of 2 s of wall time gets at most the tenth of a processor that it is given, and ten per cent more."""
    start = time.monotonic()
    text = overlay("run", "--rm", "--cpus", "0.1", "shell:1", "sh", "-c", BUSY)
    wall = time.monotonic() - start
    words = text.split()
    used = int(words[0]) / 1e9 if len(words) == 1 else int(words[words.index("usage_usec") + 1]) / 1e6
    assert 0 < used <= 0.1 * wall * 1.1 + 0.02


def test_processes_are_counted(overlay: Command) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; echo all"
    assert "all" in overlay.run("run", "--rm", "--pids", "20", "shell:1", "sh", "-c", script).stdout
    few = overlay.run("run", "--rm", "--pids", "4", "shell:1", "sh", "-c", script)
    assert "all" not in few.stdout
    assert "fork" in few.stderr


def test_signals_reach_the_command(overlay: Command) -> None:
    script = "trap 'echo told; exit 9' TERM USR1; echo up; while :; do sleep 0.1; done"
    for number in (signal.SIGTERM, signal.SIGUSR1):
        running = _start(overlay, "run", "--rm", "shell:1", "sh", "-c", script)
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        running.send_signal(number)
        assert running.communicate(timeout=30)[0] == "told\n"
        assert running.returncode == 9
    assert left(overlay) == []


def test_a_terminal(overlay: Command) -> None:
    ours, theirs = pty.openpty()
    running = _start(overlay, "run", "--rm", "shell:1", "sh", "-c", "tty; exit 3", stdin=theirs, stdout=theirs)
    os.close(theirs)
    assert running.wait(timeout=30) == 3
    assert b"/dev/pts/0" in os.read(ours, 4096)
    os.close(ours)
    assert "no terminal" in overlay.fails(2, "run", "--rm", "--tty", "shell:1", "id")


def test_the_root_is_read_only_on_request_and_a_path_of_the_host_is_not(overlay: Command, tmp_path: Path) -> None:
    script = "echo 1 > /etc/x; echo 2 > /srv/x; cat /ro/x"
    (tmp_path / "x").write_text("host")
    words = ("--read-only", "--volume", f"{tmp_path}:/srv", "--volume", f"{tmp_path}:/ro:ro")
    done = overlay.run("run", "--rm", *words, "shell:1", "sh", "-c", script)
    assert done.returncode != 0 or "Read-only" in done.stderr
    writable = overlay.run("run", "--rm", "--volume", f"{tmp_path}:/srv", "shell:1", "sh", "-c", "echo 2 > /srv/x")
    assert writable.returncode == 0, writable.stderr
    assert (tmp_path / "x").read_text() == "2\n"


def test_the_filter_forbids_what_reaches_the_host(overlay: Command) -> None:
    forbidden = ("--cap-add", "SYS_ADMIN", "shell:1", "busybox", "swapon", "/x")
    assert overlay.run("run", "--rm", *forbidden).returncode != 0
    mount = ("shell:1", "busybox", "mount", "-t", "tmpfs", "none", "/tmp")
    assert overlay.run("run", "--rm", *mount).returncode != 0
    assert overlay.run("run", "--rm", "--cap-add", "SYS_ADMIN", *mount).returncode == 0


def test_no_network_but_its_own_loopback(overlay: Command) -> None:
    assert overlay("run", "--rm", "shell:1", "ls", "/sys/class/net") == "lo"
    assert overlay("run", "--rm", "--net", "host", "shell:1", "ls", "/sys/class/net").split() == sorted(
        os.listdir("/sys/class/net")
    )


def test_a_store_with_an_id_map_runs_in_a_user_namespace(fresh_dir: Path, shell_layout: Path) -> None:
    command = Command(fresh_dir / "store", "overlay2")
    ids = ("--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536")
    command("store", "create", *ids)
    command("image", "import", shell_layout)
    assert command("run", "--rm", "shell:1", "cat", "/proc/self/uid_map").split() == ["0", "100000", "65536"]
    command("run", "--name", "web", "shell:1", "sh", "-c", "echo hello > /etc/motd")
    command("commit", "web", "shell:2")
    assert "layerfs run web" in command.fails(5, "shell", "web", "--", "id")


def test_a_bundle_is_run_by_the_runtime_itself(box: Command, fresh_dir: Path) -> None:
    box("clone", "shell:1", "web")
    place = fresh_dir / "bundle"
    shown = box.json("bundle", "web", place, "--", "cat", "/etc/issue")
    assert shown["root"] == str(place / "rootfs")
    assert json.loads((place / "config.json").read_text())["process"]["args"] == ["cat", "/etc/issue"]
    runtime = [
        find_runtime().program,
        "--root",
        str(fresh_dir / "state"),
        "run",
        "--bundle",
        str(place),
        "layerfs-test",
    ]
    assert subprocess.run(runtime, check=True, capture_output=True, text=True).stdout == "layerfs test\n"
    assert "mounted" in box.fails(4, "run", "web", "id")
    box("umount", "web")
    assert "not empty" in box.fails(4, "bundle", "web", place)


def test_a_bundle_that_cannot_be_leaves_nothing(overlay: Command, fresh_dir: Path) -> None:
    overlay("clone", "shell:1", "web")
    place = fresh_dir / "bundle"
    assert "no user" in overlay.fails(3, "bundle", "--user", "nobody", "web", place)
    assert not place.exists()
    assert overlay.json("ls")["clones"][0]["mounts"] == []


@pytest.mark.usefixtures("fuse_device")
@pytest.mark.rootless
@pytest.mark.parametrize("kind", ["overlay2", "fuse", "copy"])
def test_an_ordinary_user(run_rootless: Rootless, kind: str, shell_layout: Path, rootless_dir: Path) -> None:
    layout = shutil.copytree(shell_layout, rootless_dir / "layout")

    def work() -> tuple[str, str, int, str, str]:
        user = Command(rootless_dir / "store", kind)
        user("image", "import", layout)
        said = user("run", "--name", "web", "shell:1", "sh", "-c", "echo hello > /etc/motd; id -u; hostname; echo $$")
        kept = user("run", "web", "cat", "/etc/motd")
        status = user.run("run", "--rm", "shell:1", "sh", "-c", "exit 5").returncode
        limited = user.fails(5, "run", "--rm", "--pids", "5", "shell:1", "id")
        return said, kept, status, limited, user("-q", "ls")

    said, kept, status, limited, clones = run_rootless(work)
    assert said.split() == ["0", "layerfs", "1"]
    assert (kept, status, clones) == ("hello", 5, "web")
    assert "control group" in limited


def test_a_runtime_that_does_not_work_says_why(tmp_path: Path) -> None:
    program = tmp_path / "broken"
    program.write_text(
        '#!/bin/sh\nwhile [ "$1" != --log ]; do shift; done\necho \'{"level":"error","msg":"no such"}\' >"$2"\nexit 1\n'
    )
    program.chmod(0o755)
    with pytest.raises(Unsupported, match="cannot run a container here: no such"):
        find_runtime(str(program)).check()


def _start(store: Command, *words: str, **streams: int) -> subprocess.Popen[str]:
    defaults = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **streams}
    environment = {**os.environ, "LAYERFS_STORE": str(store.store)}
    program = [sys.executable, "-m", "layerfs.command", *words]
    return subprocess.Popen(program, env=environment, text=True, **defaults)  # type: ignore[call-overload,no-any-return]
