"""Mounts in the form in which others perform them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from layerfs.contract import Mount
from layerfs.kernel.mounters import for_helper


def test_what_the_kernel_mounts_is_left_as_it_is() -> None:
    mount = Mount("overlay", "overlay", ("lowerdir=a,b:c",))
    assert for_helper(mount) is mount


def test_a_server_that_mount_fuse_knows_itself_is_left_as_it_is() -> None:
    mount = Mount("fuse.no-such-program", "host:", ("ro",))
    assert for_helper(mount) is mount


@pytest.mark.skipif(not shutil.which("mount.fuse3"), reason="apt-get install fuse3")
def test_our_own_program_is_named_by_its_path() -> None:
    mount = for_helper(Mount("fuse.layerfs", "/s/3", ("lowerdir=/a,b:/c", "ro")))
    program = Path(sys.executable).parent / "mount.fuse.layerfs"
    assert program.exists()
    assert mount == Mount(f"fuse3.{program}", "/s/3", ("lowerdir=/a\\,b:/c", "ro"))
