"""The guests themselves: what they have, what they see, what comes back, and that nothing stays."""

from __future__ import annotations

import io
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest import machine, tier
from tests.guest.machine import Kind, Machine
from tests.support.rootless import Rootless

ENDED = 30
"""Seconds until the last process of a machine is gone that was killed: waited for, not measured."""


@pytest.fixture(params=Kind)
def kind(request: pytest.FixtureRequest) -> Kind:
    if not tier.wanted(request.config):
        pytest.skip("only with --guest: it boots one")
    return Kind(request.param)


@pytest.mark.guest("qemu")
def test_it_is_another_kernel_with_zfs_and_the_same_files() -> None:
    assert "cloud" in platform.release()
    assert os.geteuid() == 0
    assert os.path.exists("/dev/zfs")
    assert Path(sys.executable).exists()


@pytest.mark.guest("uml")
def test_it_is_a_kernel_in_user_mode_with_the_same_files() -> None:
    assert "User Mode Linux" in Path("/proc/cpuinfo").read_text(encoding="ascii")
    assert os.geteuid() == 0
    assert Path(sys.executable).exists()


@pytest.mark.guest("uml")
@pytest.mark.parametrize("target", ["thin-pool", "thin", "flakey", "log-writes"])
def test_it_has_device_mapper(target: str) -> None:
    subprocess.run(("modprobe", f"dm-{target}"), check=False)  # some are in the module of another
    found = subprocess.run(("dmsetup", "targets"), check=True, capture_output=True, text=True).stdout
    assert target in found.split()


@pytest.mark.guest("uml")
@pytest.mark.parametrize(("system", "options"), [("ext4", ("-O", "quota,project")), ("xfs", ())])
def test_it_has_file_systems_with_project_quotas(system: str, options: tuple[str, ...], fresh_dir: Path) -> None:
    image, target = fresh_dir / "image", fresh_dir / "mounted"
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run((f"mkfs.{system}", "-q", *options, image), check=True)
    subprocess.run(("mount", "-o", "loop,prjquota", image, target), check=True)
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
        assert [line for line in mounts if f" {target} " in line and "prjquota" in line]
    finally:
        subprocess.run(("umount", target), check=True)


@pytest.mark.rootless
def test_others_than_root_are_told(run_rootless: Rootless) -> None:
    assert "root only" in str(run_rootless(machine.missing))


def test_what_comes_back(kind: Kind, tmp_path: Path) -> None:
    output = io.BytesIO()
    script = """echo said; echo "complained: $WORD" >&2; head -c 5000000 /dev/zero >/out/large
        mkdir /out/d; echo left >/out/d/file; echo live >$LAYERFS_GUEST_LIVE; exit 7"""
    command, variables = ["sh", "-c", script], {"WORD": "two words"}
    live = tmp_path / "live"
    status = machine.run(command, machine=Machine(kind), variables=variables, output=output, out=tmp_path, live=live)
    assert (status, output.getvalue()) == (7, b"said\ncomplained: two words\n")
    assert (tmp_path / "d/file").read_text() == "left\n"
    assert (tmp_path / "large").read_bytes() == bytes(5_000_000)
    assert live.read_text() == "live\n"


def test_what_it_writes_stays_in_it(kind: Kind, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("the host's")
    command = ["sh", "-c", f"grep host {file} && echo other >{file} && rm -r {tmp_path} && ! [ -e {tmp_path} ]"]
    assert machine.run(command, machine=Machine(kind), output=io.BytesIO()) == 0
    assert file.read_text() == "the host's"


def test_a_guest_that_hangs_is_ended(kind: Kind, capfd: pytest.CaptureFixture[str]) -> None:
    assert machine.run(["sleep", "1000"], machine=Machine(kind, limit=20)) == machine.DEAD
    assert "reached its time limit" in capfd.readouterr().err


def test_it_ends_with_who_started_it(kind: Kind, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "tests.guest", "run", "--machine", kind, "--", "sh", "-c", "echo up; sleep 1000")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "LAYERFS_GUEST_OF": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        namespaces = {_namespace(pid) for pid in _inheriting(tmp_path)} - {_namespace(os.getpid()), b""}
        assert len(_inheriting(tmp_path)) > 1
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + ENDED
    while left := [*_inheriting(tmp_path), *(pid for pid in _processes() if _namespace(pid) in namespaces)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _inheriting(mark: Path) -> list[int]:
    """Return the processes that have our variable; those of user-mode Linux do not show it, but share a namespace."""
    entry = f"LAYERFS_GUEST_OF={mark}".encode()
    return [pid for pid in _processes() if entry in _of(pid, Path.read_bytes, "environ").split(b"\0")]


def _namespace(pid: int) -> bytes:
    return _of(pid, lambda path: os.fsencode(path.readlink()), "ns/pid")


def _of(pid: int, read: Callable[[Path], bytes], name: str) -> bytes:
    try:
        return read(Path("/proc", str(pid), name))
    except OSError:
        return b""  # it has ended meanwhile
