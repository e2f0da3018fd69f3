"""The contract without root: as uid 65534, in a user namespace of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from layerfs.kernel import userns
from tests.support.fuse_device import fuse_device
from tests.support.rootless import GID, UID, Rootless

__all__ = ["fuse_device"]

pytestmark = [pytest.mark.rootless, pytest.mark.usefixtures("fuse_device")]

_CONTRACT = Path(__file__).with_name("contract_as_user.py")
_SKIPS = 2
"""Tests that need a second user id; a user namespace without ranges in /etc/subuid has none."""


def _run(directory: Path, driver: str) -> tuple[int, str]:
    """Run the contract of one driver with its data in ``directory``, and return pytest's exit status and output."""
    userns.enter()
    arguments = ["--noconftest", "-p", "no:cacheprovider", "-q", "-k", driver, f"--basetemp={directory / 'run'}"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(_CONTRACT.parents[2] / "pyproject.toml"), *arguments, _CONTRACT],
        check=False,
        capture_output=True,
        text=True,
    )
    return ran.returncode, ran.stdout + ran.stderr


def _check(status: int, output: str) -> None:
    assert status == 0, output
    passed, skipped = (re.search(rf"(\d+) {outcome}", output) for outcome in ("passed", "skipped"))
    assert passed is not None
    assert int(passed[1]) > 90, output
    assert skipped is None or int(skipped[1]) <= _SKIPS, output


@pytest.mark.parametrize("driver", ["TestCopy", "TestOverlay2", "TestFuse"])
def test_contract(rootless_dir: Path, run_rootless: Rootless, driver: str) -> None:
    _check(*run_rootless(_run, rootless_dir, driver))


@pytest.mark.root
def test_contract_on_btrfs(btrfs_dir: Path, run_rootless: Rootless) -> None:
    """Root makes and mounts the file system here; whose it is makes no difference to what the user does on it."""
    os.chown(btrfs_dir, UID, GID)
    _check(*run_rootless(_run, btrfs_dir, "TestBtrfs"))
