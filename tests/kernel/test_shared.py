"""Mounts that clones share: made once, kept while somebody stands on them, gone after the last."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from layerfs.contract import Mount
from layerfs.errors import FailedPrecondition, LayerfsError
from layerfs.kernel import mountinfo
from layerfs.kernel.children import fork
from layerfs.kernel.mounting import Way, mount, mounted, overlay_options, release_shared, unmount
from tests.kernel.stacks import Stack, make_stack, places

pytestmark = pytest.mark.root


@pytest.fixture
def stack(fresh_dir: Path) -> Stack:
    return make_stack(fresh_dir, 40)


@pytest.fixture
def place(fresh_dir: Path) -> Path:
    """Give the place of the shared mount: it does not exist yet, nor the directory that holds it."""
    return fresh_dir / "shared" / "image:1"


def _clone(stack: Stack, place: Path, name: str) -> tuple[list[Mount], Path]:
    base = stack.target.parent / name
    for part in ("upper", "work", "root"):
        (base / part).mkdir(parents=True)
    own = Mount("overlay", "overlay", overlay_options([place], base / "upper", base / "work"))
    return [stack.shared(place)[0], own], base / "root"


@pytest.mark.parametrize("way", list(Way))
def test_clones_share_one_mount_of_the_layers(stack: Stack, place: Path, way: Way) -> None:
    first, first_root = _clone(stack, place, "first")
    second, second_root = _clone(stack, place, "second")
    mount(first, first_root, way=way)
    mount(second, second_root, way=way)
    assert len(mountinfo.at(place)) == 1
    (first_root / "file7").write_text("first")
    assert (second_root / "file7").read_text() == "7"
    assert set(os.listdir(second_root)) == {*stack.names, "top"}
    unmount(first_root)
    release_shared(first)
    assert os.fspath(place) in places()
    unmount(second_root)
    release_shared(second)
    assert os.fspath(place) not in places()
    release_shared(second)


def test_mounted_releases_it(stack: Stack, place: Path) -> None:
    mounts, root = _clone(stack, place, "clone")
    with mounted(mounts, root):
        assert os.fspath(place) in places()
    assert {os.fspath(place), os.fspath(root)}.isdisjoint(places())


def test_a_failure_above_takes_it_away_again(stack: Stack, place: Path) -> None:
    mounts, root = _clone(stack, place, "clone")
    broken = [mounts[0], Mount("overlay", "overlay", (*mounts[1].options, "no-such-option"))]
    with pytest.raises(LayerfsError):
        mount(broken, root)
    assert os.fspath(place) not in places()


def test_a_failure_above_leaves_what_stood_before(stack: Stack, place: Path) -> None:
    mounts, root = _clone(stack, place, "clone")
    other, other_root = _clone(stack, place, "other")
    with mounted(other, other_root):
        broken = [mounts[0], Mount("overlay", "overlay", (*mounts[1].options, "no-such-option"))]
        with pytest.raises(LayerfsError):
            mount(broken, root)
        assert set(os.listdir(other_root)) == {*stack.names, "top"}
        assert os.fspath(place) in places()


def test_something_else_at_its_place_is_never_used(stack: Stack, place: Path) -> None:
    mounts, root = _clone(stack, place, "clone")
    place.mkdir(parents=True)
    wrong = Mount("overlay", "overlay", overlay_options(stack.lowers[:2]))
    for other in (Mount("tmpfs", "tmpfs"), wrong):
        with mounted([other], place), pytest.raises(FailedPrecondition, match="something else"):
            mount(mounts, root)


def test_release_waits_for_a_mount_under_way(stack: Stack, place: Path) -> None:
    """Whoever mounts holds the lock until the clone stands, or a release in between would pull the layers away."""
    mounts, root = _clone(stack, place, "clone")
    with mounted(mounts, root):
        pass
    held = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(held, fcntl.LOCK_EX)
    pid = fork()
    if pid == 0:
        try:
            signal.alarm(1)
            release_shared(mounts)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    os.close(held)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGALRM


HAMMER = """
import sys
from pathlib import Path
from layerfs.contract import Mount
from layerfs.kernel.mounting import mounted, overlay_options
base, number, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
lowers = [base / f"l{layer}" for layer in range(count)]
place = base / "shared" / "image"
own = base / f"clone{number}"
for part in ("upper", "work", "root"):
    (own / part).mkdir(parents=True)
mounts = [
    Mount("overlay", "overlay", overlay_options(lowers), target=str(place)),
    Mount("overlay", "overlay", overlay_options([place], own / "upper", own / "work")),
]
for _ in range(60):
    with mounted(mounts, own / "root") as root:
        found = len(list(root.iterdir()))
        if found != count + 1:
            raise SystemExit(f"{found} names instead of {count + 1}")
"""


def test_many_processes_mount_and_release_at_once(stack: Stack) -> None:
    base, count = stack.target.parent, len(stack.lowers)
    command = [sys.executable, "-c", HAMMER, str(base)]
    workers = [subprocess.Popen([*command, str(number), str(count)]) for number in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert mountinfo.below(base) == ()
