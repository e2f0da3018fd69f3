"""`layerfs store`: stores in directories, and in files with a file system of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from layerfs.kernel import mountinfo
from layerfs.opening import open_store
from tests.command.conftest import Command
from tests.support import thin


@pytest.fixture
def store(fresh_dir: Path) -> Command:
    """Give the command on a store that is not there yet, with whatever driver comes."""
    return Command(fresh_dir / "store", "auto", in_process=True)


def test_create_makes_a_store_and_prints_it(layerfs: Command) -> None:
    document = layerfs.json("store", "create")
    assert document == {"store": str(layerfs.store), "driver": layerfs.backend}
    assert layerfs("-q", "ls") == ""
    assert "is a store already" in layerfs.fails(4, "store", "create")


def test_create_keeps_out_of_a_directory_with_other_things(store: Command) -> None:
    store.store.mkdir()
    (store.store / "letter").touch()
    assert str(store.store) in store.fails(4, "store", "create")
    assert [path.name for path in store.store.iterdir()] == ["letter"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--loop", "1G"], "belong together"),
        (["--fs", "btrfs"], "belong together"),
        (["--loop", "much", "--fs", "btrfs"], "is no size"),
        (["--loop", "1M", "--fs", "btrfs"], "too small"),
        (["--loop", "1G", "--fs", "ntfs"], "'ntfs' is not one of"),
    ],
)
def test_what_cannot_be_made(store: Command, words: list[str], said: str) -> None:
    assert said in store.fails(2, "store", "create", *words)
    assert not store.store.exists()


def test_closing_a_store_in_a_directory_does_nothing(layerfs: Command) -> None:
    layerfs("store", "create")
    done = layerfs.run("store", "close")
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing to unmount" in done.stderr


@pytest.mark.root
@pytest.mark.parametrize(("file_system", "driver"), [("btrfs", "btrfs"), ("ext4", "overlay2"), ("xfs", "overlay2")])
def test_a_store_in_a_file(store: Command, layout: Path, file_system: str, driver: str) -> None:
    if shutil.which(f"mkfs.{file_system}", path="/usr/sbin:/sbin:/usr/bin") is None:
        pytest.skip(f"needs mkfs.{file_system}")
    place = store.store / driver
    try:
        document = store.json("store", "create", "--loop", "512M", "--fs", file_system)
        assert document["driver"] == driver
        assert [point.type for point in mountinfo.at(place)] == [file_system]
        store("image", "import", layout)
        store("clone", "test:1", "web")
        assert store("store", "close") == str(store.store)
        assert mountinfo.at(place) == ()
        assert store("-q", "ls") == "web"  # opening it mounts it again
        assert [point.type for point in mountinfo.at(place)] == [file_system]
    finally:
        store.run("store", "close")
    assert mountinfo.at(place) == ()


@pytest.mark.guest
@pytest.mark.driver("devicemapper")
def test_a_store_on_a_thin_pool(store: Command, layout: Path) -> None:
    try:
        assert store.json("store", "create", "--loop", "10G", "--fs", "dm")["driver"] == "devicemapper"
        assert (store.store / "devicemapper/data.img").stat().st_size == 10 << 30
        store("image", "import", layout)
        store("clone", "test:1", "web")
        assert "web" in store.fails(4, "image", "rm", "test:1")
        assert store("store", "close") == str(store.store)
        assert thin.devices() == set()
        assert store("-q", "ls") == "web"
        store("check")
        store("rm", "web")
        store("image", "rm", "test:1")
    finally:
        store.run("store", "close")
    assert thin.devices() == set()


@pytest.mark.root
def test_a_store_with_a_mounted_clone_is_not_closed(store: Command, layout: Path, fresh_dir: Path) -> None:
    target = fresh_dir / "mnt"
    target.mkdir()
    try:
        store("store", "create", "--loop", "256M", "--fs", "ext4")
        store("image", "import", layout)
        store("clone", "test:1", "web")
        store("mount", "web", target)
        error = store.fails(4, "store", "close")
        assert str(target) in error
        assert f"hint: layerfs umount {target}" in error
        assert mountinfo.at(store.store / "overlay2")
    finally:
        store.run("umount", "web")
        store.run("store", "close")


@pytest.mark.root
def test_a_store_for_a_user_namespace(layerfs: Command, layout: Path, fresh_dir: Path) -> None:
    layerfs("store", "create", "--uidmap", "0:100000:65536", "--gidmap", "0:200000:1", "--gidmap", "1:5:10")
    layerfs("image", "import", layout)
    layerfs("clone", "test:1", "web")
    target = fresh_dir / "mnt"
    target.mkdir()
    layerfs("mount", "web", target)
    status = (target / "etc/issue").stat()
    layerfs("umount", "web")
    assert (status.st_uid, status.st_gid) == (100_000, 200_000)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--uidmap", "0:1"], "INSIDE:OUTSIDE:COUNT"),
        (["--uidmap", "5:5:5"], "no root"),
        (["--gidmap", "0:0:5"], "--gidmap needs --uidmap"),
    ],
)
def test_a_map_that_is_none_makes_no_store(layerfs: Command, words: list[str], said: str) -> None:
    assert said in layerfs.fails(2, "store", "create", *words)
    assert not layerfs.store.exists()


def test_check_names_what_is_gone_and_whom_it_hurts(layerfs: Command, layout: Path) -> None:
    layerfs("image", "import", layout)
    layerfs("clone", "test:1", "web")
    assert layerfs.run("check").stderr == "nothing is wrong\n"
    assert layerfs.json("check") == {"problems": []}
    with open_store(layerfs.store) as store:
        store.driver.remove(store.snapshotter.snapshot("clone/web").id)
    done = layerfs.run("check")
    assert done.returncode == 7
    assert "clone/web: its bytes are gone" in done.stdout
    assert "hurts: web" in done.stdout
    layerfs("rm", "web")
    layerfs("check")


def test_owner(layerfs: Command, layout: Path, tmp_path: Path) -> None:
    layerfs("image", "import", layout)
    document = layerfs.json("owner", layerfs.store / "meta.db", tmp_path)
    assert [(one["kind"], one["name"]) for one in document["owners"]] == [
        ("store", str(layerfs.store)),
        ("foreign", ""),
    ]
    blob = next((layerfs.store / "blobs/sha256").iterdir())
    assert layerfs("owner", blob).splitlines()[1].split()[1:] == ["blob", blob.name[:12], "test:1"]
    assert "No such file" in layerfs.fails(3, "owner", tmp_path / "nothing")
