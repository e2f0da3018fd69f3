"""The guest itself: what it has, what it sees, and what comes back."""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guest import machine, tier
from tests.support.rootless import Rootless


@pytest.mark.guest
def test_it_is_another_kernel_with_the_same_files() -> None:
    assert "cloud" in platform.release()
    assert os.geteuid() == 0
    assert os.path.exists("/dev/zfs")
    assert Path(sys.executable).exists()


@pytest.mark.guest
@pytest.mark.parametrize("target", ["thin-pool", "thin"])
def test_it_has_device_mapper(target: str) -> None:
    found = subprocess.run(("dmsetup", "targets"), check=True, capture_output=True, text=True).stdout
    assert target in found.split()


@pytest.mark.rootless
def test_others_than_root_are_told(run_rootless: Rootless) -> None:
    assert "root only" in str(run_rootless(machine.missing))


def test_what_comes_back(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not tier.wanted(request.config):
        pytest.skip("only with --guest: it boots one")
    output = io.BytesIO()
    script = """echo said; echo "complained: $WORD" >&2
        mkdir /out/d; echo left >/out/d/file; echo live >$LAYERFS_GUEST_LIVE; exit 7"""
    command, variables = ["sh", "-c", script], {"WORD": "two words"}
    status = machine.run(command, variables=variables, output=output, out=tmp_path, live=tmp_path / "live")
    assert (status, output.getvalue()) == (7, b"said\ncomplained: two words\n")
    assert (tmp_path / "d/file").read_text() == "left\n"
    assert (tmp_path / "live").read_text() == "live\n"


def test_a_guest_that_hangs_is_ended(request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]) -> None:
    if not tier.wanted(request.config):
        pytest.skip("only with --guest: it boots one")
    assert machine.run(["sleep", "1000"], machine=machine.Machine(limit=20)) == machine.DEAD
    assert "reached its time limit" in capfd.readouterr().err
