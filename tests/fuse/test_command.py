"""``mount.fuse.layerfs``, as mount(8), container engines and people call it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from layerfs.contract import Mount
from layerfs.kernel import mountinfo
from layerfs.kernel.mounting import mounted, unmount
from tests.support.rootless import Rootless

pytestmark = pytest.mark.usefixtures("fuse_device")

PROGRAM = (sys.executable, "-m", "layerfs_fuse.command")


@pytest.fixture
def place(rootless_dir: Path) -> Path:
    """Give a directory with two layers, an upper and a work directory, and a place to mount at."""
    make_stack(rootless_dir)
    for path in (rootless_dir, *rootless_dir.rglob("*")):
        if os.geteuid() == 0:
            shutil.chown(path, 65534, 65534)
    return rootless_dir


def make_stack(place: Path) -> None:
    for name in ("lower", "middle", "upper", "work", "merged"):
        (place / name).mkdir()
    (place / "lower/both").write_text("lower")
    (place / "lower/deleted").write_text("")
    (place / "middle/both").write_text("middle")


def options(place: Path, *more: str) -> str:
    stack = f"lowerdir={place}/middle:{place}/lower,upperdir={place}/upper,workdir={place}/work"
    return ",".join((stack, *more))


def run(*arguments: str | Path, status: int = 0) -> str:
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def change(place: Path) -> tuple[str, list[str], list[str]]:
    """Read and change what is mounted, unmount it, and return what was there and what came of it."""
    merged = place / "merged"
    before = (merged / "both").read_text()
    (merged / "new").write_text("new")
    (merged / "deleted").unlink()
    seen = sorted(os.listdir(merged))
    unmount(merged)
    return before, seen, sorted(os.listdir(place / "upper"))


CHANGED = ("middle", ["both", "new"], ["deleted", "new"])


@pytest.mark.root
@pytest.mark.parametrize("source", [[], ["none"], ["mine"]], ids=["mount_program", "none", "source"])
def test_it_mounts_as_root(place: Path, source: Sequence[str]) -> None:
    run(*source, "-o", options(place), place / "merged")
    point = mountinfo.at(place / "merged")[-1]
    assert (point.type, point.source) == ("fuse.layerfs", source[0] if source == ["mine"] else "layerfs")
    assert change(place) == CHANGED


@pytest.mark.root
def test_the_core_finds_it_by_its_type(place: Path) -> None:
    mount = Mount("fuse.layerfs", "mine", tuple(options(place).split(",")))
    with mounted([mount]) as root:
        assert sorted(os.listdir(root)) == ["both", "deleted"]
    assert not any(point.source == "mine" for point in mountinfo.mentioning("mine"))


@pytest.mark.rootless
def test_it_mounts_without_privilege(run_rootless: Rootless, place: Path) -> None:
    def work() -> tuple[str, list[str], list[str]]:
        run("-o", options(place), place / "merged")
        return change(place)

    assert run_rootless(work) == CHANGED


@pytest.mark.root
def test_it_serves_in_the_foreground_until_it_is_told_to_end(place: Path) -> None:
    with subprocess.Popen([*PROGRAM, "-f", "-o", options(place), place / "merged"]) as process:
        try:
            while not mountinfo.at(place / "merged"):
                assert process.poll() is None
            assert (place / "merged/both").read_text() == "middle"
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not mountinfo.at(place / "merged")


@pytest.mark.root
def test_without_an_upper_directory_it_is_read_only(place: Path) -> None:
    run("-o", f"lowerdir={place}/middle:{place}/lower", place / "merged")
    with pytest.raises(OSError, match="Read-only"):
        (place / "merged/new").touch()
    unmount(place / "merged")


@pytest.mark.root
def test_an_upper_directory_read_only(place: Path) -> None:
    (place / "upper/both").write_text("upper")
    run("-o", options(place, "ro"), place / "merged")
    assert (place / "merged/both").read_text() == "upper"
    unmount(place / "merged")
    assert os.listdir(place / "work") == []


@pytest.mark.root
def test_an_index_is_kept_and_used_again(place: Path) -> None:
    for _ in range(2):
        run("-o", f"lowerdir={place}/middle:{place}/lower,index={place}/index", place / "merged")
        assert sorted(os.listdir(place / "merged")) == ["both", "deleted"]
        unmount(place / "merged")
    assert (place / "index").stat().st_size > 0


@pytest.mark.root
@pytest.mark.parametrize("damage", ["nothing in it", "another stack", "cut", "a bit"])
def test_a_wrong_index_is_built_anew(place: Path, damage: str) -> None:
    index = place / "index"
    run("-o", f"lowerdir={place}/lower,index={index}", place / "merged")
    unmount(place / "merged")
    content = index.read_bytes()
    if damage == "nothing in it":
        index.write_bytes(b"")
    elif damage == "cut":
        index.write_bytes(content[:-100])
    elif damage == "a bit":
        index.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    run("-o", f"lowerdir={place}/middle:{place}/lower,index={index}", place / "merged")
    assert (place / "merged/both").read_text() == "middle"
    unmount(place / "merged")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 1, "name the directory"),
        (["a", "b", "c"], 1, "name the directory"),
        (["-o", "lowerdir=/nowhere", "/"], 32, "open a layer"),
        (["-o", "nonsense", "/"], 1, "no option of a union"),
        (["-o", "lowerdir=/var/empty", "/nowhere"], 32, "/nowhere"),
    ],
)
def test_mistakes_are_said(arguments: Sequence[str], status: int, words: str) -> None:
    assert words in run(*arguments, status=status)


def test_it_tells_its_version_and_its_options() -> None:
    assert run("-V").startswith("layerfs ")
    assert "lowerdir=" in run("--help")
