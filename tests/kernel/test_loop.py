"""Loop devices: attached, found, and never left behind; and what btrfs counts on one."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import tree
from layerfs.contract import Mount
from layerfs.errors import AlreadyExists, InvalidArgument, LayerfsError, NotFound, PermissionDenied
from layerfs.kernel import loop, qgroups
from layerfs.kernel.children import fork
from layerfs.kernel.mounting import mount, mounted, unmount
from tests.kernel.stacks import detached

SIZE = 512 << 20


@pytest.fixture
def image(fresh_dir: Path) -> Path:
    path = fresh_dir / "an image: odd,name"
    loop.create_image(path, SIZE)
    return path


def test_an_image_is_sparse_and_private(image: Path) -> None:
    status = image.stat()
    assert (status.st_size, status.st_blocks, status.st_mode & 0o777) == (SIZE, 0, 0o600)
    with pytest.raises(AlreadyExists):
        loop.create_image(image, SIZE)
    with pytest.raises(InvalidArgument):
        loop.create_image(image.with_name("other"), 0)
    with pytest.raises(NotFound):
        loop.create_image(image.parent / "nowhere" / "x", SIZE)
    assert os.listdir(image.parent) == [image.name]


def test_unknown_file_systems_are_refused(image: Path) -> None:
    with pytest.raises(InvalidArgument, match="ntfs") as caught:
        loop.make_file_system(image, "ntfs")
    assert caught.value.hint == "one of btrfs, ext4, xfs"


@pytest.mark.root
@pytest.mark.parametrize("kind", ["btrfs", "ext4", "xfs"])
def test_a_device_goes_with_its_last_user(image: Path, kind: str) -> None:
    loop.make_file_system(image, kind)
    target = image.parent / "target"
    target.mkdir()
    with loop.attach(image) as device:
        assert device.path.is_block_device()
        assert loop.find(image) == (device.path,)
        mount([Mount(kind, str(device.path))], target)
    assert loop.find(image) == (device.path,)
    (target / "file").write_text("kept")
    unmount(target)
    assert detached(image)
    with loop.attach(image, read_only=True) as again, mounted([Mount(kind, str(again.path), ("ro",))], target):
        assert (target / "file").read_text() == "kept"
    assert detached(image)


@pytest.mark.root
def test_without_autoclear_it_stays_until_detached(image: Path) -> None:
    loop.attach(image, autoclear=False).close()
    (path,) = loop.find(image)
    try:
        with loop.attach(image) as second:
            assert set(loop.find(image)) == {path, second.path}
    finally:
        loop.detach(path)
    assert detached(image)
    loop.detach(path)


@pytest.mark.root
def test_attaching_many_at_once(fresh_dir: Path) -> None:
    images = [fresh_dir / str(number) for number in range(4)]
    code = (
        "import sys; from pathlib import Path; from layerfs.kernel import loop\n"
        "for _ in range(5):\n"
        "    with loop.attach(Path(sys.argv[1])) as device: assert device.path in loop.find(Path(sys.argv[1]))\n"
    )
    workers = []
    for path in images:
        loop.create_image(path, 1 << 20)
        workers.append(subprocess.Popen([sys.executable, "-c", code, path]))
    assert [worker.wait() for worker in workers] == [0] * 4


def test_missing_images(fresh_dir: Path) -> None:
    with pytest.raises(NotFound):
        loop.attach(fresh_dir / "nowhere")
    assert loop.find(fresh_dir / "nowhere") == ()
    with pytest.raises(LayerfsError):
        loop.detach(fresh_dir / "nowhere")


@pytest.mark.root
def test_an_ordinary_user_is_told(image: Path) -> None:
    image.chmod(0o666)
    pid = fork()
    if pid == 0:
        status = 1
        try:
            os.setresuid(65534, 65534, 65534)
            loop.attach(image)
        except PermissionDenied as error:
            status = 0 if error.hint else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.fixture
def volume(image: Path) -> Iterator[Path]:
    loop.make_file_system(image, "btrfs")
    target = image.parent / "volume"
    target.mkdir()
    with loop.attach(image) as device, mounted([Mount("btrfs", str(device.path))], target) as root:
        yield root
    assert detached(image)


def _subvolume(path: Path, *, of: Path | None = None) -> int:
    words = ["snapshot", str(of), str(path)] if of else ["create", str(path)]
    subprocess.run(["btrfs", "subvolume", *words], check=True, capture_output=True)
    shown = subprocess.run(["btrfs", "inspect-internal", "rootid", path], check=True, capture_output=True, text=True)
    return int(shown.stdout)


@pytest.mark.root
def test_what_a_subvolume_holds_alone(volume: Path) -> None:
    lower = _subvolume(volume / "lower")
    (volume / "lower" / "file").write_bytes(random.Random(3).randbytes(3 << 20))
    assert qgroups.exclusive(volume, lower) is None
    for words in (["enable"], ["rescan", "-w"]):
        subprocess.run(["btrfs", "quota", *words, volume], check=True, capture_output=True)
    upper = _subvolume(volume / "upper", of=volume / "lower")
    (volume / "upper" / "more").write_bytes(random.Random(4).randbytes(1 << 20))
    tree.syncfs(volume)
    below, above = qgroups.exclusive(volume / "lower", lower), qgroups.exclusive(volume, upper)
    assert below is not None
    assert above is not None
    assert below < 65536
    assert 1 << 20 <= above < (1 << 20) + 65536
    subprocess.run(["btrfs", "subvolume", "delete", "-c", volume / "upper"], check=True, capture_output=True)
    subprocess.run(["btrfs", "subvolume", "sync", volume], check=True, capture_output=True)
    with contextlib.suppress(FileNotFoundError):  # Linux 6.11 deletes it itself
        qgroups.remove(volume, upper)
    assert qgroups.exclusive(volume, upper) is None
