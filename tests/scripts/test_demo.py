"""`scripts/demo` does the main job, twice, and leaves nothing mounted (the end of the run looks after that)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerfs.kernel import mountinfo
from tests.support.rootless import Rootless

DEMO = Path(__file__).parents[2] / "scripts/demo"


def run_demo(place: Path, **extra: str) -> str:
    environment = {**os.environ, "LAYERFS_DEMO": str(place), "LAYERFS_VENV": sys.prefix, **extra}
    done = subprocess.run(
        [DEMO], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.root
@pytest.mark.slow
def test_every_driver_does_the_main_job_and_again(fresh_dir: Path) -> None:
    for _ in range(2):
        said = run_demo(fresh_dir / "demo")

        assert "worked: overlay2 btrfs fuse copy\n" in said
        assert "changed in the clone\n" in said
        assert mountinfo.below(fresh_dir) == ()


@pytest.mark.rootless
@pytest.mark.slow
def test_an_ordinary_user_does_it_with_python_as_image(run_rootless: Rootless, rootless_dir: Path) -> None:
    said = run_rootless(lambda: run_demo(rootless_dir / "demo", LAYERFS_DEMO_PYTHON="1"))

    assert "worked: overlay2 fuse copy;" in said
    assert "changed in the clone\n" in said
