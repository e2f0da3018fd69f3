"""Device-mapper's ioctls, measured against ``dmsetup``."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.contract import Mount
from layerfs.kernel import blockdevices, loop
from layerfs.kernel.dm import DIRECTORY, SECTOR, Mapper, Target
from layerfs.kernel.mounting import mounted

pytestmark = [pytest.mark.guest, pytest.mark.driver("devicemapper")]

SIZE = 64 << 20
NAME = "layerfs-test-one"


def dmsetup(*words: str) -> str:
    return subprocess.run(["dmsetup", *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def mapper() -> Iterator[Mapper]:
    with Mapper() as opened:
        yield opened


@pytest.fixture
def device(mapper: Mapper, fresh_dir: Path) -> Iterator[Path]:
    """Give a linear device on a loop device."""
    loop.create_image(fresh_dir / "disk", SIZE)
    with loop.attach(fresh_dir / "disk") as disk:
        mapper.create(NAME, Target(SIZE // SECTOR, "linear", f"{disk.path} 0"))
    yield DIRECTORY / NAME
    mapper.remove(NAME)
    assert loop.find(fresh_dir / "disk") == ()


def test_a_device_is_what_dmsetup_says(mapper: Mapper, device: Path) -> None:
    found = mapper.find(NAME)
    assert found is not None
    assert NAME in mapper.names()
    assert device.stat().st_rdev == found.number
    assert dmsetup("info", "-c", "--noheadings", "-o", "major,minor,open", NAME) == f"{found.source}:{found.opened}"
    assert dmsetup("table", NAME).startswith(f"0 {SIZE // SECTOR} linear 7:")
    assert blockdevices.size(device) == SIZE
    with device.open("rb"):
        opened = mapper.find(NAME)
        assert opened is not None
        assert opened.opened == 1


def test_names_of_many_devices(mapper: Mapper) -> None:
    names = {f"layerfs-test-{number}-{'x' * 100}" for number in range(80)}  # more than fits the first answer
    before = mapper.names()
    try:
        for name in names:
            mapper.create(name, Target(8, "zero", ""))
        assert mapper.names() == before | names
        assert len(dmsetup("ls").splitlines()) == len(before | names)
    finally:
        for name in names:
            mapper.remove(name)
    assert mapper.names() == before
    assert not [name for name in os.listdir(DIRECTORY) if name.startswith("layerfs-test-")]


def test_what_is_not_there(mapper: Mapper) -> None:
    assert mapper.find("no such device") is None
    assert not mapper.is_busy("no such device")
    mapper.remove("no such device")
    for call in (mapper.suspend, mapper.resume, mapper.status):
        with pytest.raises(OSError, match="no such device") as caught:
            call("no such device")
        assert caught.value.errno == errno.ENXIO
    assert mapper.has_target("thin-pool")
    assert not mapper.has_target("no-such-target")


def test_a_table_that_cannot_be_leaves_nothing(mapper: Mapper) -> None:
    with pytest.raises(OSError, match="layerfs-test"):
        mapper.create("layerfs-test-bad", Target(8, "linear", "/no/such/device 0"))
    assert mapper.find("layerfs-test-bad") is None
    with pytest.raises(OSError, match="layerfs-test"):
        mapper.create("layerfs-test-bad", Target(8, "no-such-target", ""))
    assert "layerfs-test-bad" not in os.listdir(DIRECTORY)


def test_a_mounted_device_is_busy(mapper: Mapper, device: Path) -> None:
    loop.make_file_system(device, "ext4")
    with mounted([Mount("ext4", str(device))]):
        with pytest.raises(OSError, match=NAME) as caught:
            mapper.remove(NAME)
        assert caught.value.errno == errno.EBUSY
        assert device.is_block_device()
    assert not mapper.is_busy(NAME)


def test_a_device_that_rests(mapper: Mapper, device: Path) -> None:
    with mapper.suspended(NAME):
        found = mapper.find(NAME)
        assert found is not None
        assert found.suspended
        assert dmsetup("info", "-c", "--noheadings", "-o", "suspended", NAME) == "Suspended"
    mapper.resume(NAME)
    assert dmsetup("info", "-c", "--noheadings", "-o", "suspended", NAME) == "Active"
    assert device.is_block_device()


def test_a_node_of_another_device_is_replaced(mapper: Mapper) -> None:
    (DIRECTORY / "layerfs-test-node").symlink_to("../null")
    try:
        made = mapper.create("layerfs-test-node", Target(8, "zero", ""))
        assert (DIRECTORY / "layerfs-test-node").stat().st_rdev == made.number
    finally:
        mapper.remove("layerfs-test-node")


def test_inodes_in_use(fresh_dir: Path) -> None:
    for kind in ("ext4", "xfs"):
        image = fresh_dir / kind
        loop.create_image(image, 512 << 20)
        loop.make_file_system(image, kind)
        with loop.attach(image) as disk:
            before = blockdevices.used_inodes(disk.path)
            with mounted([Mount(kind, str(disk.path))]) as path:
                for number in range(100):
                    (path / str(number)).touch()
                counts = os.statvfs(path)
            assert blockdevices.used_inodes(disk.path) == before + 100 == counts.f_files - counts.f_ffree
