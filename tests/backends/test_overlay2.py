"""What overlay2 does beyond the contract: shapes of mounts, what stands on disk, and where it does not work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from stat import S_IFCHR, S_IMODE, S_ISCHR

import pytest

from layerfs.contract import Driver, Kind, Mount, Snapshot, SnapshotId, Whiteouts
from layerfs.errors import FailedPrecondition, InvalidArgument, LayerfsError, Unsupported
from layerfs.kernel import mountinfo, userns
from layerfs.kernel.mounting import mount, mounted, unmount
from layerfs.layerdirs import LayerDirectories
from layerfs.testing.driver_rules import active, view
from layerfs_backends.overlay2 import SHARE_ABOVE, Overlay2Driver, open_driver
from tests.support.rootless import Rootless

_OPTIONS = ("index=off", "metacopy=off", "redirect_dir=nofollow")


def _driver(root: Path, **options: str) -> Overlay2Driver:
    driver = open_driver(root, {name.replace("_", "-"): value for name, value in options.items()})
    assert isinstance(driver, Overlay2Driver)
    return driver


def _commit(driver: Driver, snapshot: Snapshot, name: str) -> None:
    driver.create(snapshot)
    with mounted(driver.mounts(snapshot)) as path:
        (path / name).write_text(name, encoding="ascii")
    driver.commit(snapshot)


def _stack(driver: Driver, layers: int) -> tuple[int, ...]:
    for number in range(1, layers + 1):
        _commit(driver, active(number, *range(number - 1, 0, -1)), f"file-{number}")
    return tuple(range(layers, 0, -1))


# Mounts, without touching a disk


@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        (active(1), (Mount("bind", "/s/1/diff", ("rbind", "rw")),)),
        (view(1), (Mount("bind", "/s/1/diff", ("rbind", "ro")),)),
        (view(2, 1), (Mount("bind", "/s/1/diff", ("rbind", "ro")),)),
        (view(3, 2, 1), (Mount("overlay", "overlay", ("lowerdir=/s/2/diff:/s/1/diff", "ro", *_OPTIONS)),)),
        (
            active(3, 2, 1),
            (
                Mount(
                    "overlay",
                    "overlay",
                    ("lowerdir=/s/2/diff:/s/1/diff", "upperdir=/s/3/diff", "workdir=/s/3/work", *_OPTIONS),
                ),
            ),
        ),
    ],
)
def test_mount_shapes(snapshot: Snapshot, expected: tuple[Mount, ...]) -> None:
    assert Overlay2Driver(LayerDirectories(Path("/s"), Whiteouts.OVERLAY)).mounts(snapshot) == expected


@pytest.mark.parametrize(("depth", "mounts"), [(SHARE_ABOVE, 1), (SHARE_ABOVE + 1, 2), (500, 2)])
def test_deep_clones_share_their_layers(depth: int, mounts: int) -> None:
    driver = Overlay2Driver(LayerDirectories(Path("/s"), Whiteouts.OVERLAY))
    found = driver.mounts(active(depth + 1, *range(depth, 0, -1)))
    assert len(found) == mounts
    assert found[-1].target == ""
    if mounts == 2:
        assert found[0].target == f"/s/{depth}/merged"
        assert found[0].read_only
        assert f"lowerdir=/s/{depth}/merged" in found[1].options
        other = driver.mounts(active(depth + 2, *range(depth, 0, -1)))
        assert other[0] == found[0]


@pytest.mark.parametrize("kind", [active, view])
def test_who_cannot_share_gets_one_mount_of_all_layers(kind: Callable[..., Snapshot]) -> None:
    driver = Overlay2Driver(LayerDirectories(Path("/s"), Whiteouts.OVERLAY))
    snapshot = kind(SHARE_ABOVE + 2, *range(SHARE_ABOVE + 1, 0, -1))
    (mount,) = driver.unshared_mounts(snapshot)
    assert mount.target == ""
    assert mount.options[0].count(":") == SHARE_ABOVE


def test_userxattr_where_there_is_no_root() -> None:
    driver = Overlay2Driver(LayerDirectories(Path("/s"), Whiteouts.OVERLAY_USER))
    for snapshot in (active(40, *range(39, 0, -1)), view(3, 2, 1)):
        assert all("userxattr" in found.options for found in driver.mounts(snapshot))


def test_colons_and_backslashes_are_escaped() -> None:
    (found,) = Overlay2Driver(LayerDirectories(Path("/a:b\\c"), Whiteouts.OVERLAY)).mounts(active(2, 1))
    assert r"lowerdir=/a\:b\\c/1/diff" in found.options


@pytest.mark.parametrize("value", ["", "0", "501", "-1", "many"])
def test_share_above_is_checked(tmp_path: Path, value: str) -> None:
    with pytest.raises(InvalidArgument, match="share-above"):
        open_driver(tmp_path / "driver", {"share-above": value})
    assert not (tmp_path / "driver").exists()


# On disk


@pytest.mark.root
def test_one_shared_mount_for_all_clones(fresh_dir: Path) -> None:
    driver = _driver(fresh_dir / "o", share_above="2")
    parents = _stack(driver, 3)
    clones = [active(number, *parents) for number in (10, 11)]
    for clone in clones:
        driver.create(clone)
    with mounted(driver.mounts(clones[0])) as first:
        with mounted(driver.mounts(clones[1])) as second:
            (second / "file-1").unlink()
            shared = [point.path for point in mountinfo.below(fresh_dir)]
            assert shared == [fresh_dir / "o" / "3" / "merged"]
        assert sorted(os.listdir(first)) == ["file-1", "file-2", "file-3"]
        assert [point.path for point in mountinfo.below(fresh_dir)] == shared
    assert mountinfo.below(fresh_dir) == ()


@pytest.mark.root
def test_remove_unmounts_what_children_shared(fresh_dir: Path) -> None:
    """A process that was killed leaves the shared mount; it must not keep the layer from going."""
    driver = _driver(fresh_dir / "o", share_above="1")
    parents = _stack(driver, 2)
    clone = active(9, *parents)
    driver.create(clone)
    target = fresh_dir / "target"
    target.mkdir()
    mount(driver.mounts(clone), target)
    unmount(target)
    assert len(mountinfo.below(fresh_dir)) == 1
    driver.remove(clone.id)
    driver.remove(SnapshotId(2))
    assert mountinfo.below(fresh_dir) == ()
    assert list(driver.ids()) == [1]


@pytest.mark.root
def test_deletions_on_disk(fresh_dir: Path) -> None:
    driver = _driver(fresh_dir / "o")
    driver.create(active(1))
    with mounted(driver.mounts(active(1))) as path:
        (path / "file").touch()
        (path / "dir").mkdir()
    driver.commit(active(1))
    driver.create(active(2, 1))
    with mounted(driver.mounts(active(2, 1))) as path:
        (path / "file").unlink()
        (path / "dir").rmdir()
        (path / "dir").mkdir()
    root = driver.layer_root(active(2, 1))
    assert root.whiteouts is Whiteouts.OVERLAY
    status = (root.path / "file").lstat()
    assert S_ISCHR(status.st_mode)
    assert status.st_rdev == 0
    assert os.getxattr(root.path / "dir", "trusted.overlay.opaque") == b"y"


@pytest.mark.root
def test_a_layer_unpacked_by_itself_deletes_once_it_has_a_parent(fresh_dir: Path) -> None:
    """Layers of an image are unpacked side by side: their whiteouts take effect by the stack that they end up in."""
    driver = _driver(fresh_dir / "o")
    _commit(driver, active(1), "file-1")
    driver.create(active(2))
    diff = driver.layer_root(active(2)).path
    os.mknod(diff / "file-1", S_IFCHR, os.makedev(0, 0))
    (diff / "file-2").touch()
    driver.commit(active(2, 1))
    driver.create(view(3, 2, 1))
    with mounted(driver.mounts(view(3, 2, 1))) as path:
        assert os.listdir(path) == ["file-2"]


@pytest.mark.root
def test_what_a_crash_left_does_not_stand_in_the_way(fresh_dir: Path) -> None:
    """A power cut may take the row, and with it the number is free again."""
    driver = _driver(fresh_dir / "o")
    (fresh_dir / "o/.new/1/diff/old").mkdir(parents=True)
    driver.create(active(1))
    assert os.listdir(fresh_dir / "o/1/diff") == []


@pytest.mark.root
def test_directories_on_disk(fresh_dir: Path) -> None:
    driver = _driver(fresh_dir / "o")
    driver.create(active(1))
    os.setxattr(fresh_dir / "o/1/diff", "user.note", b"kept")
    os.setxattr(fresh_dir / "o/1/diff", "trusted.overlay.opaque", b"y")
    driver.commit(active(1))
    driver.create(active(2, 1))
    assert S_IMODE((fresh_dir / "o").stat().st_mode) == 0o700
    assert S_IMODE((fresh_dir / "o/2").stat().st_mode) == 0o700
    assert S_IMODE((fresh_dir / "o/2/work").stat().st_mode) == 0o711
    assert os.listxattr(fresh_dir / "o/2/diff") == ["user.note"]
    assert not (fresh_dir / "o/1/work").exists()


@pytest.mark.root
@pytest.mark.parametrize("place", [".new", ".removed"])
def test_what_a_crash_leaves_is_named_and_removed(fresh_dir: Path, place: str) -> None:
    driver = _driver(fresh_dir / "o")
    (fresh_dir / "o" / place / "7" / "diff").mkdir(parents=True)
    assert list(driver.ids()) == [7]
    driver.remove(SnapshotId(7))
    assert list(driver.ids()) == []
    assert os.listdir(fresh_dir / "o" / place) == []


@pytest.mark.root
def test_volatile_refuses_until_settled(fresh_dir: Path) -> None:
    driver = _driver(fresh_dir / "o")
    _commit(driver, active(1), "file")
    driver.create(active(2, 1))
    with mounted(driver.volatile_mounts(active(2, 1))) as path:
        (path / "quick").touch()
    with pytest.raises(FailedPrecondition, match="volatile"), mounted(driver.mounts(active(2, 1))):
        pass
    driver.settle(active(2, 1))
    with mounted(driver.mounts(active(2, 1))) as path:
        assert sorted(os.listdir(path)) == ["file", "quick"]


@pytest.mark.root
@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b", 'a"b c', "x" * 200, "ü\n"])
def test_odd_paths(fresh_dir: Path, name: str) -> None:
    driver = _driver(fresh_dir / name, share_above="2")
    parents = _stack(driver, 3)
    for snapshot in (active(8, *parents), view(9, *parents)):
        driver.create(snapshot)
        with mounted(driver.mounts(snapshot)) as path:
            assert sorted(os.listdir(path)) == ["file-1", "file-2", "file-3"]
    for number in (9, 8, 3, 2, 1):
        driver.remove(SnapshotId(number))


@pytest.mark.root
def test_no_space_leaves_nothing(fresh_dir: Path) -> None:
    with mounted([Mount("tmpfs", "tmpfs", ("size=1m", "nr_inodes=40"))], fresh_dir):
        driver = _driver(fresh_dir / "o")
        made: list[int] = []
        with pytest.raises(OSError, match="No space"):
            _fill(driver, made)
        assert sorted(driver.ids()) == made
        assert os.listdir(fresh_dir / "o" / ".new") == []
        driver = _driver(fresh_dir / "o")  # opens, for all that the disk is full
        driver.remove(SnapshotId(made[0]))
        driver.create(active(100))


def _fill(driver: Driver, made: list[int]) -> None:
    for number in range(1, 100):
        driver.create(active(number))
        made.append(number)


# Where it works, and where not


@pytest.mark.root
def test_the_try_leaves_no_trace(fresh_dir: Path) -> None:
    driver = _driver(fresh_dir / "o")
    assert sorted(os.listdir(fresh_dir / "o")) == [".new", ".removed", "xattrs"]
    assert list(driver.ids()) == []


@pytest.mark.root
def test_what_a_killed_try_left_is_cleared(fresh_dir: Path) -> None:
    merged = fresh_dir / "o" / ".try" / "merged"
    merged.mkdir(parents=True)
    mount([Mount("tmpfs", "tmpfs")], merged)
    _driver(fresh_dir / "o")
    assert not (fresh_dir / "o" / ".try").exists()
    assert mountinfo.below(fresh_dir) == ()


@pytest.mark.root
def test_on_an_overlay_it_says_so(fresh_dir: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (fresh_dir / name).mkdir()
    options = (f"lowerdir={fresh_dir}/lower", f"upperdir={fresh_dir}/upper", f"workdir={fresh_dir}/work")
    with mounted([Mount("overlay", "overlay", options)], fresh_dir / "merged") as path:
        with pytest.raises(Unsupported, match="does not work") as caught:
            open_driver(path / "o", {})
        assert "overlay itself" in (caught.value.hint or "")
        assert os.listdir(path) == []


def _open(root: Path, *, inside: bool) -> tuple[str, str]:
    """Open the driver and return how it deletes, or the error and its hint."""
    if inside:
        userns.enter()
    try:
        return _driver(root).layer_root(active(1)).whiteouts, ""
    except LayerfsError as error:
        return f"{type(error).__name__}: {error.message}", error.hint or ""


@pytest.mark.root
@pytest.mark.rootless
def test_the_kind_of_attributes_is_kept(fresh_dir: Path, rootless_dir: Path, run_rootless: Rootless) -> None:
    """Layers that say "opaque" in one namespace are never mounted with the other."""
    assert run_rootless(_open, rootless_dir / "o", inside=True)[0] == Whiteouts.OVERLAY_USER
    assert _open(rootless_dir / "o", inside=False)[0] == Whiteouts.OVERLAY_USER
    assert _open(fresh_dir / "root's", inside=False)[0] == Whiteouts.OVERLAY
    _open(rootless_dir / "made by root", inside=False)
    for path in (rootless_dir / "made by root", *(rootless_dir / "made by root").rglob("*")):
        os.chown(path, 65534, 65534)
    error, hint = run_rootless(_open, rootless_dir / "made by root", inside=True)
    assert error.startswith("Unsupported")
    assert "made by root" in error
    assert "store of your own" in hint


@pytest.mark.rootless
def test_without_root_it_says_so(rootless_dir: Path, run_rootless: Rootless) -> None:
    error, hint = run_rootless(_open, rootless_dir / "o", inside=False)
    assert error.startswith("Unsupported: overlayfs does not work")
    assert "user namespace" in hint
    assert os.listdir(rootless_dir) == []


def test_a_chain_without_end_is_refused() -> None:
    driver = Overlay2Driver(LayerDirectories(Path("/nowhere"), Whiteouts.OVERLAY))
    with pytest.raises(Unsupported, match="501"):
        driver.create(Snapshot(SnapshotId(600), Kind.ACTIVE, tuple(map(SnapshotId, range(501, 0, -1)))))
