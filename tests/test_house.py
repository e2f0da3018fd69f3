"""The rules of the test run itself."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support import leftovers
from tests.support.requirements import words
from tests.support.rootless import Rootless


def test_words_of_a_test_name() -> None:
    assert words("tests/backends/test_btrfs.py::TestOverlay2::test_x[copy-1]") >= {"btrfs", "overlay2", "copy"}


@pytest.mark.rootless
def test_the_rootless_helper_drops_root(run_rootless: Rootless, rootless_dir: Path) -> None:
    (rootless_dir / "here").touch()
    uid, names, uid_map = run_rootless(lambda: (os.getuid(), os.listdir(), os.access("/proc/self/uid_map", os.W_OK)))
    assert uid != 0
    assert names == ["here"]
    assert uid_map


@pytest.mark.rootless
def test_the_rootless_helper_raises_what_the_child_raises(run_rootless: Rootless) -> None:
    def fail() -> None:
        raise LookupError("in the child")

    with pytest.raises(LookupError, match="in the child"):
        run_rootless(fail)


def test_every_driver_has_a_directory(driver_name: str, driver_root: Path) -> None:
    assert os.listdir(driver_root) == [], driver_name


@pytest.mark.root
def test_what_is_left_behind_is_found_and_cleared(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "a b"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", tmp_path / "a b"], check=True)
    with (tmp_path / "disk").open("wb") as file:
        file.truncate(1 << 20)
    subprocess.run(["losetup", "--find", tmp_path / "disk"], check=True)
    child = subprocess.Popen(["sleep", "60"], env={**os.environ, leftovers.SESSION_VARIABLE: "of-this-test"})
    while not Path(f"/proc/{child.pid}/environ").read_bytes():
        pass  # vfork(2) lets the parent go on before the new program's environment is in place

    left = leftovers.find([tmp_path], session="of-this-test")
    leftovers.clear(left)
    child.wait()

    assert left.mounts == (str(tmp_path / "a b"),)
    assert [path for _, path in left.loops] == [str(tmp_path / "disk")]
    assert left.processes == ((child.pid, "sleep 60"),)
    assert not leftovers.find([tmp_path], session="of-this-test")


@pytest.mark.root
def test_a_run_clears_what_a_killed_one_left(fresh_dir: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    theirs = fresh_dir / f"{leftovers.PREFIX}{ended.pid}-fresh-x"
    living = fresh_dir / f"{leftovers.PREFIX}{os.getpid()}-fresh-x"
    for path in (theirs, living):
        path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", theirs], check=True)

    left = leftovers.sweep([fresh_dir], [])

    assert left.lines() == [f"mount {theirs}"]
    assert sorted(fresh_dir.iterdir()) == [living]


def test_nothing_goes_through_a_shell() -> None:
    """Check that programs are started in one module, from a list of words; ruff's S602 to S605 see to the rest."""
    root = Path(__file__).parents[1]
    shells = re.compile(r"shell\s*=\s*True|os\.(system|popen)\b|getoutput|noqa:.*\bS60[245]\b")
    starting = re.compile(r"^\s*(import subprocess|from subprocess)", re.MULTILINE)
    starters = set()
    packages = ("layerfs", "backends", "fuse", "bench/layerfs_bench")
    for file in (file for package in packages for file in root.glob(f"{package}/**/*.py")):
        text = file.read_text(encoding="utf-8")
        assert not shells.search(text), file
        if starting.search(text):
            starters.add(file.relative_to(root).as_posix())
    # userns brings the module in before its process has a single id; the benchmark has programs as its workload.
    assert starters <= {"layerfs/process.py", "layerfs/kernel/userns.py", "bench/layerfs_bench/scenarios/mixed.py"}
