"""What the fuse driver does beyond the contract: its index, redirected files, and who finds what it left."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import layerfs
from layerfs import Clone, Store
from layerfs.contract import CopyUnit, Mount, SnapshotId, WritePolicy
from layerfs.errors import Busy, InvalidArgument
from layerfs.kernel.mounting import mounted
from layerfs.testing import DriverContract
from layerfs.testing.driver_rules import active, view
from layerfs_backends import overlay2
from layerfs_fuse.driver import open_driver
from layerfs_fuse.union.upper import locked
from tests.support.images import write_layout

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("fuse_device")]

MEBIBYTE = 1 << 20


@pytest.mark.slow
class TestRedirecting(DriverContract):
    """The whole contract where every write to a lower file is redirected, be it ever so small."""

    factory = staticmethod(open_driver)
    limits = frozenset({"size", "inodes"})
    options = {"write": "redirect", "redirect-from": "1"}  # noqa: RUF012  the contract's form

    @pytest.fixture
    def driver_root(self, fresh_dir: Path) -> Path:
        return fresh_dir / "fuse"


def test_mounts_name_the_stack_and_its_index(fresh_dir: Path) -> None:
    root = fresh_dir / "f"
    driver = open_driver(root, {})
    own = ("allow_other", f"log={root}/3/log")
    lowers = f"lowerdir={root}/2/diff:{root}/1/diff"
    upper = (f"upperdir={root}/3/diff", f"workdir={root}/3/work")
    index = f"index={root}/2/index"
    assert driver.mounts(active(3, 2, 1)) == (
        Mount("fuse.layerfs", f"{root}/3", (lowers, *upper, own[0], index, own[1])),
    )
    assert driver.mounts(view(3, 2, 1)) == (Mount("fuse.layerfs", f"{root}/3", (lowers, "ro", own[0], index, own[1])),)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"wrote": "redirect"}, "no option"), ({"write": "sometimes"}, "write is"), ({"server": ""}, "server is")],
)
def test_options_that_are_refused(fresh_dir: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        open_driver(fresh_dir / "f", options)


def test_traits_tell_how_it_writes(fresh_dir: Path) -> None:
    copying = open_driver(fresh_dir / "f", {}).traits
    redirecting = open_driver(fresh_dir / "f", {"write": "redirect"}).traits
    assert (copying.copy_unit, copying.write_policy) == (CopyUnit.FILE, WritePolicy.COPY_ON_WRITE)
    assert (redirecting.copy_unit, redirecting.write_policy) == (CopyUnit.BLOCK, WritePolicy.REDIRECT_ON_WRITE)


def test_layers_of_overlay2_are_its_layers(fresh_dir: Path) -> None:
    """One format: what one driver committed the other shows, with or without an index."""
    makers = [overlay2.open_driver(fresh_dir / "s", {}), open_driver(fresh_dir / "s", {})]
    for number in range(1, 5):
        maker = makers[number % 2]
        snapshot = active(number, *range(number - 1, 0, -1))
        maker.create(snapshot)
        with mounted(maker.mounts(snapshot)) as root:
            (root / f"file-{number}").touch()
            (root / f"file-{number - 1}").unlink(missing_ok=True)
        maker.commit(snapshot)
    for number, maker in enumerate(makers, 5):
        snapshot = view(number, 4, 3, 2, 1)
        maker.create(snapshot)
        with mounted(maker.mounts(snapshot)) as root:
            assert os.listdir(root) == ["file-4"]


def test_a_missing_index_is_built_when_it_is_needed(fresh_dir: Path) -> None:
    driver = open_driver(fresh_dir / "f", {})
    for snapshot in (active(1), active(2, 1), active(3, 2, 1)):
        driver.create(snapshot)
        (fresh_dir / f"f/{snapshot.id}/diff/file-{snapshot.id}").touch()
        driver.commit(snapshot)
    for number in (1, 2, 3):
        (fresh_dir / f"f/{number}/index").unlink()
    driver.commit(active(3, 2, 1))
    driver.create(view(4, 2, 1))
    with mounted(driver.mounts(view(4, 2, 1))) as root:
        assert sorted(os.listdir(root)) == ["file-1", "file-2"]
    assert [number for number in (1, 2, 3) if (fresh_dir / f"f/{number}/index").exists()] == [2, 3]


@pytest.fixture
def store(fresh_dir: Path) -> Iterator[Store]:
    """Give a store that redirects, with an image that holds a big file."""
    layout = write_layout(fresh_dir / "layout", [{"big": bytes(range(256)) * (4 * MEBIBYTE // 256), "small": b"x"}])
    with layerfs.open(fresh_dir / "store", driver="fuse", options={"write": "redirect"}) as store:
        store.import_image(layout)
        yield store


def _change(clone: Clone) -> bytes:
    """Write 4 bytes into the middle of the big file, and return what the whole then is."""
    with clone.mounted() as root, (root / "big").open("r+b") as file:
        file.seek(MEBIBYTE + 7)
        file.write(b"here")
        file.seek(0)
        return file.read()


def test_a_redirected_file_takes_the_room_of_its_blocks(store: Store) -> None:
    clone = store.clone("test:1", "web")
    content = _change(clone)
    upper = store.path / "fuse"
    (big,) = (path for path in upper.rglob("diff/big") if path.stat().st_blocks * 512 < MEBIBYTE)
    assert big.stat().st_size == len(content) == 4 * MEBIBYTE
    assert [str(change.path, "ascii") for change in clone.changes() if change.path] == ["big"]
    assert clone.flatten() == 1
    assert big.read_bytes() == content
    assert clone.flatten() == 0


def test_a_commit_holds_the_whole_file(store: Store) -> None:
    content = _change(store.clone("test:1", "web"))
    store.get_clone("web").commit("test:2")
    with store.clone("test:2", "after").mounted() as root:
        assert (root / "big").read_bytes() == content


def test_a_snapshot_a_fork_and_the_way_back(store: Store) -> None:
    clone = store.clone("test:1", "web")
    content = _change(clone)
    clone.snapshot("first")
    fork = clone.fork("other")
    with clone.mounted() as root:
        (root / "big").write_bytes(b"gone")
    clone.rollback("first")
    for one in (clone, fork):
        with one.mounted() as root:
            assert (root / "big").read_bytes() == content


def test_a_union_that_is_committed_while_mounted_changes_no_more(fresh_dir: Path) -> None:
    """The suite of containerd commits what is mounted."""
    driver = open_driver(fresh_dir / "f", {})
    driver.create(active(1))
    with mounted(driver.mounts(active(1))) as place:
        (place / "file").write_text("first")
        with (place / "file").open("a"), pytest.raises(Busy):
            driver.commit(active(1))
        driver.commit(active(1))
        with pytest.raises(OSError, match="Read-only"):
            (place / "new").touch()
        driver.create(active(2, 1))
        with mounted(driver.mounts(active(2, 1))) as child:
            assert (child / "file").read_text() == "first"
            (child / "new").touch()
    for number in (2, 1):
        driver.remove(SnapshotId(number))


def test_a_child_waits_for_the_last_times_of_its_parent(fresh_dir: Path) -> None:
    """An unmount is over before the process that served it has put the times of its root directory right."""
    driver = open_driver(fresh_dir / "fuse", {})
    driver.create(active(1))
    parent = fresh_dir / "fuse/1"
    serving = locked(parent / "work")

    def end() -> None:
        os.utime(parent / "diff", ns=(0, 1_000_000_001))
        os.close(serving)

    ending = threading.Timer(0.3, end)
    ending.start()
    driver.create(active(2, 1))
    ending.join()
    assert (fresh_dir / "fuse/2/diff").stat().st_mtime_ns == 1_000_000_001
