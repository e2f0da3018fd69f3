"""Debian's containerd with layerfs as its snapshotter: images, containers, restarts of both, and nothing left over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import layerfs
from layerfs.kernel import mountinfo
from tests.support import containerd, images
from tests.support.containerd import Containerd
from tests.support.serving import Serving

IMAGE = "example.org/box:1"

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(containerd.missing() is not None, reason=str(containerd.missing())),
    pytest.mark.parametrize("driver_name", ["overlay2", "btrfs", "fuse"], indirect=True),
]


@pytest.fixture
def daemon(serving: Serving, fresh_dir: Path) -> Iterator[Containerd]:
    """Give a containerd that has an image with layers that replace and delete files of others."""
    layout = images.write_layout(fresh_dir / "layout", [images.with_busybox(), images.EDIT, images.SHRINK], name=IMAGE)
    archive = fresh_dir / "image.tar"
    containerd.pack(layout, archive)
    with Containerd(fresh_dir, serving.socket) as running:
        running.ctr("images", "import", "--snapshotter", "layerfs", str(archive))
        yield running


def test_containers_run_on_what_an_image_holds(daemon: Containerd) -> None:
    seen = daemon.run("one", IMAGE, "/bin/sh", "-c", "cat /etc/issue /etc/more /var/small; ls /var; echo new > /new")
    assert seen == "layerfs test, second layer\nmore\n1small\n"
    again = daemon.run("two", IMAGE, "/bin/sh", "-c", "ls /; id -u")
    assert "new" not in again.split()
    daemon.snapshots("commit", "changed", "one")
    assert "changed" in daemon.known()
    daemon.snapshots("view", "look", "changed")
    assert daemon.snapshots("mounts", str(daemon.place), "look").startswith("mount -t ")


def test_containers_outlive_both_services(daemon: Containerd, serving: Serving) -> None:
    daemon.run("long", IMAGE, "/bin/sh", "-c", "echo first > /log; sleep 1000", detach=True)
    serving.stop()
    assert daemon.exec("long", "/bin/sh", "-c", "cat /log; echo second >> /log") == "first\n"
    serving.start()
    daemon.stop()
    daemon.start()
    assert daemon.exec("long", "/bin/cat", "/log", "/etc/more") == "first\nsecond\nmore\n"
    assert "long" in daemon.known()
    after = daemon.run("after", IMAGE, "/bin/cat", "/etc/issue")
    assert after == "layerfs test, second layer\n"


def test_nothing_is_left_of_what_is_removed(daemon: Containerd, serving: Serving, place: Path, fresh_dir: Path) -> None:
    daemon.run("one", IMAGE, "/bin/sh", "-c", "echo kept > /kept")
    daemon.snapshots("commit", "mine", "one")
    daemon.ctr("containers", "rm", "one")
    daemon.snapshots("rm", "mine")
    daemon.ctr("images", "rm", "--sync", IMAGE)
    assert daemon.known() == set()
    assert [point.path for directory in {place, fresh_dir} for point in mountinfo.below(directory)] == []
    daemon.stop()
    serving.stop()
    with layerfs.open(serving.store, create=False) as store:
        assert store.snapshotter.infos() == []
        assert list(store.driver.ids()) == []
    serving.start()


def test_layerfs_s_own_images_are_none_of_containerd_s_business(
    daemon: Containerd, serving: Serving, fresh_dir: Path
) -> None:
    with layerfs.open(serving.store, create=False) as store:
        (image,) = store.import_image(fresh_dir / "layout", names=["mine:1"])
        store.clone("mine:1", "web")
        before = {info.name for info in store.snapshotter.infos() if not info.name.startswith("containerd")}
        assert len(before) == 1 + len(image.config.chain_ids)
        daemon.run("one", IMAGE, "/bin/cat", "/etc/more")
        daemon.ctr("containers", "rm", "one")
        daemon.ctr("images", "rm", "--sync", IMAGE)  # runs containerd's garbage collector
        assert daemon.known() == set()
        left = {info.name for info in store.snapshotter.infos()}
        assert left == before
