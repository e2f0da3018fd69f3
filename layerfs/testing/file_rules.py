"""What holds of files in stacked snapshots: every kind of change shows in the child, stays there, and survives commit.

The cases are those in which union file systems have gone wrong; each names its source.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from stat import S_IMODE

import pytest

from layerfs.errors import Unsupported
from layerfs.testing.driver_rules import umask
from layerfs.testing.fixtures import Bench, DriverFixtures
from layerfs.testing.trees import contents, describe, write

Change = Callable[[Path], None]


def rename(source: Path, target: Path) -> None:
    """Rename as mv(1) does: a driver may refuse to rename a directory of a lower layer (EXDEV), then it is copied."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(source, target, symlinks=True)
        shutil.rmtree(source)


def _replace_file_by_directory(path: Path) -> None:
    (path / "file").unlink()
    (path / "file").mkdir()
    write(path, file__inside="new")


def _replace_directory_by_file(path: Path) -> None:
    shutil.rmtree(path / "dir")
    write(path, dir="now a file")


def _replace_link_by_file(path: Path) -> None:
    (path / "link").unlink()
    write(path, link="now a file")


def _recreate_directory(path: Path) -> None:
    shutil.rmtree(path / "dir")
    write(path, dir__new="only this")


def _delete_and_recreate_empty(path: Path) -> None:
    shutil.rmtree(path / "dir")
    (path / "dir").mkdir()


def _delete_everything(path: Path) -> None:
    for name in os.listdir(path):
        if (path / name).is_dir():
            shutil.rmtree(path / name)
        else:
            (path / name).unlink()


def _move_file(path: Path) -> None:
    (path / "file").rename(path / "dir" / "sub" / "moved")


def _move_directory(path: Path) -> None:
    rename(path / "dir", path / "moved")


def _move_over(path: Path) -> None:
    (path / "file").rename(path / "dir" / "one")


def _append(path: Path) -> None:
    with open(path / "dir" / "one", "a", encoding="ascii") as file:
        file.write(" and more")


CHANGES: dict[str, tuple[Change, dict[str, str]]] = {
    "nothing": (lambda _path: None, {}),
    "overwrite": (lambda path: write(path, file="other"), {"file": "other"}),
    "append": (_append, {"dir/one": "1 and more"}),
    "delete a file": (lambda path: (path / "dir" / "one").unlink(), {"dir/one": ""}),
    "delete a directory": (lambda path: shutil.rmtree(path / "dir" / "sub"), {"dir/sub": "", "dir/sub/two": ""}),
    "file becomes directory": (_replace_file_by_directory, {"file": "/", "file/inside": "new"}),
    "directory becomes file": (
        _replace_directory_by_file,
        {"dir": "now a file", "dir/one": "", "dir/sub": "", "dir/sub/two": ""},
    ),
    "link becomes file": (_replace_link_by_file, {"link": "now a file"}),
    "directory is made anew": (
        _recreate_directory,
        {"dir/new": "only this", "dir/one": "", "dir/sub": "", "dir/sub/two": ""},
    ),
    "directory is made anew, empty": (_delete_and_recreate_empty, {"dir/one": "", "dir/sub": "", "dir/sub/two": ""}),
    "delete everything": (
        _delete_everything,
        dict.fromkeys(["file", "link", "dir", "dir/one", "dir/sub", "dir/sub/two"], ""),
    ),
    "move a file": (_move_file, {"file": "", "dir/sub/moved": "0"}),
    "move a directory": (
        _move_directory,
        {
            **dict.fromkeys(["dir", "dir/one", "dir/sub", "dir/sub/two"], ""),
            "moved": "/",
            "moved/one": "1",
            "moved/sub": "/",
            "moved/sub/two": "2",
        },
    ),
    "move over another file": (_move_over, {"file": "", "dir/one": "0"}),
}
"""Each change with what it makes of a name; "" is gone."""

BASE = {"file": "0", "link": "-> dir/one", "dir": "/", "dir/one": "1", "dir/sub": "/", "dir/sub/two": "2"}


def _make_base(path: Path) -> None:
    write(path, file="0", dir__one="1", dir__sub__two="2")
    (path / "link").symlink_to("dir/one")


def _apply(tree: dict[str, str], change: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in {**tree, **change}.items() if value}


class FileRules(DriverFixtures):
    """Tests of what snapshots hold, through the kernel's own mounts."""

    @pytest.mark.parametrize("name", CHANGES)
    def test_change_over_a_layer(self, bench: Bench, name: str) -> None:
        """A change shows at once, in the next layer, and not in the layer below."""
        change, difference = CHANGES[name]
        expected = _apply(BASE, difference)
        with bench.layer("base") as path:
            _make_base(path)
        with bench.layer("changed", "base") as path:
            assert contents(path) == BASE
            change(path)
            assert contents(path) == expected
        with bench.viewed("changed") as path:
            assert contents(path) == expected
        with bench.layer("above", "changed") as path:
            assert contents(path) == expected
            write(path, above="above")
        with bench.viewed("above") as path:
            assert contents(path) == {**expected, "above": "above"}
        with bench.viewed("base") as path:
            assert contents(path) == BASE

    def test_deletion_and_creation_over_many_layers(self, bench: Bench) -> None:
        """What a layer deletes, the next may make anew, and what was in it stays gone (buildkit#2614)."""
        steps: list[tuple[Change, dict[str, str]]] = [
            (
                lambda path: write(path, dir__old="0", dir__sub__old="0"),
                {"dir/old": "0", "dir/sub": "/", "dir/sub/old": "0"},
            ),
            (_delete_everything, {}),
            (lambda path: write(path, dir__sub__new="2"), {"dir/sub": "/", "dir/sub/new": "2"}),
            (_delete_and_recreate_empty, {}),
            (lambda path: write(path, dir__sub="a file now"), {"dir/sub": "a file now"}),
            (_recreate_directory, {"dir/new": "only this"}),
            (_delete_everything, {}),
            (lambda path: write(path, dir__sub__new="7"), {"dir/sub": "/", "dir/sub/new": "7"}),
        ]
        parent = ""
        for number, (change, _) in enumerate(steps):
            with bench.layer(str(number), parent) as path:
                change(path)
            parent = str(number)
        for number, (change, inside) in enumerate(steps):
            with bench.viewed(str(number)) as path:
                assert contents(path) == ({} if change is _delete_everything else {"dir": "/", **inside}), number

    def test_hard_links(self, bench: Bench) -> None:
        """Hard links made in one layer are links in the next, and can be replaced there (containerd: hardlinks)."""
        with bench.layer("base") as path:
            write(path, a="linked")
            (path / "b").hardlink_to(path / "a")
            (path / "sub").mkdir()
            (path / "sub" / "c").hardlink_to(path / "a")
        with bench.viewed("base") as path:
            assert describe(path)[b"a"].links == (b"a", b"b", b"sub/c")
            assert (path / "a").stat().st_nlink == 3
        with bench.layer("child", "base") as path:
            (path / "b").unlink()
            (path / "b").mkdir()
            (path / "d").hardlink_to(path / "sub" / "c")
        with bench.viewed("child") as path:
            assert contents(path) == {"a": "linked", "b": "/", "d": "linked", "sub": "/", "sub/c": "linked"}
            assert describe(path)[b"d"].links[:2] in ((b"d", b"sub/c"), (b"a", b"d"))
        with bench.layer("again", "child") as path:
            (path / "b").rmdir()
            (path / "b").hardlink_to(path / "d")
        with bench.viewed("again") as path:
            assert b"b" in describe(path)[b"d"].links
            assert contents(path)["b"] == "linked"

    def test_rename_of_directories_of_the_same_layer(self, bench: Bench) -> None:
        """A directory that a snapshot made itself is renamed in place (containerd: Rename)."""
        with bench.layer("base") as path:
            write(path, dir__lower="lower")
        with bench.layer("child", "base") as path:
            write(path, new__file="1")
            (path / "new").rename(path / "dir" / "renamed")
            (path / "dir" / "renamed").rename(path / "again")
        with bench.viewed("child") as path:
            assert contents(path) == {"dir": "/", "dir/lower": "lower", "again": "/", "again/file": "1"}

    # Attributes

    @pytest.mark.parametrize("mask", [0o022, 0o077])
    def test_root_mode(self, bench: Bench, mask: int) -> None:
        """The root is 0755 whatever the umask, in every layer (RootPermission)."""
        with umask(mask):
            with bench.layer("base"):
                pass
            with bench.layer("child", "base"):
                pass
            bench.snapshotter.prepare("active", "child")
            bench.snapshotter.view("view", "child")
        for key in ("active", "view"):
            with bench.mounted(key) as path:
                assert S_IMODE(path.stat().st_mode) == 0o755

    def test_root_attributes_survive(self, bench: Bench) -> None:
        """Mode and times of the root directory pass from layer to layer."""
        with bench.layer("base") as path:
            path.chmod(0o1711)
            os.utime(path, ns=(1_000_000_001, 2_000_000_002))
        with bench.layer("child", "base") as path:
            assert S_IMODE(path.stat().st_mode) == 0o1711
            assert path.stat().st_mtime_ns == 2_000_000_002
        with bench.viewed("child") as path:
            assert S_IMODE(path.stat().st_mode) == 0o1711
            assert path.stat().st_mtime_ns == 2_000_000_002

    def test_directory_modes_survive_commit(self, bench: Bench) -> None:
        """A directory keeps its mode when only what is in it changes (DirectoryPermissionOnCommit)."""
        modes = {"dir1": 0o700, "dir2": 0o777, "dir3": 0o1777, "dir4": 0o2755, "dir5": 0o000}
        with bench.layer("base") as path:
            for name, mode in modes.items():
                (path / name).mkdir()
                (path / name).chmod(mode)
        with bench.layer("child", "base") as path:
            for name in modes:
                write(path / name, file="x")
        with bench.viewed("child") as path:
            assert {name: S_IMODE((path / name).stat().st_mode) for name in modes} == modes

    def test_directory_owners_survive_commit(self, bench: Bench, other_owner: tuple[int, int]) -> None:
        """A directory keeps its owner through layers and a child that writes into it (moby#27298)."""
        user, group = other_owner
        with bench.layer("base") as path:
            (path / "opt" / "app").mkdir(parents=True)
        with bench.layer("owned", "base") as path:
            os.chown(path / "opt", user, group)
            os.chown(path, user, 0)
        with bench.layer("child", "owned") as path:
            write(path, opt__app__file="x")
        with bench.viewed("child") as path:
            assert [(path / name).stat().st_uid for name in (".", "opt", "opt/app")] == [user, user, 0]
            assert [(path / name).stat().st_gid for name in (".", "opt", "opt/app")] == [0, group, 0]

    def test_attributes_change_in_upper_layers(self, bench: Bench) -> None:
        """A new mode, times and extended attributes of a lower file leave its content, and the lower file, alone."""
        with bench.layer("base") as path:
            write(path, file="content", dir__file="inside")
            before = describe(path, times=True)
        with bench.layer("child", "base") as path:
            for name in ("file", "dir"):
                (path / name).chmod(0o640)
                os.setxattr(path / name, "user.layerfs", b"\x00value")
                os.utime(path / name, ns=(3, 4_000_000_005))
        with bench.viewed("child") as path:
            after = describe(path, times=True)
            assert contents(path) == {"file": "content", "dir": "/", "dir/file": "inside"}
        for entry in (after[b"file"], after[b"dir"]):
            assert S_IMODE(entry.mode) == 0o640
            assert entry.attributes == (("user.layerfs", b"\x00value"),)
            assert entry.mtime_ns == 4_000_000_005
        with bench.viewed("base") as path:
            assert describe(path, times=True) == before

    def test_owner_changes_in_upper_layers(self, bench: Bench, other_owner: tuple[int, int]) -> None:
        """A chown of a lower file keeps its content and its links to the lower layers' names (containerd: Chown)."""
        user, group = other_owner
        with bench.layer("base") as path:
            write(path, dir__file="content")
            (path / "link").symlink_to("dir/file")
        with bench.layer("child", "base") as path:
            for name in ("dir", "dir/file", "link"):
                os.chown(path / name, user, group, follow_symlinks=False)
        with bench.viewed("child") as path:
            after = describe(path)
            assert contents(path) == {"dir": "/", "dir/file": "content", "link": "-> dir/file"}
        assert {(after[name].uid, after[name].gid) for name in (b"dir", b"dir/file", b"link")} == {other_owner}

    def test_special_files(self, bench: Bench) -> None:
        """FIFOs and setuid bits pass from layer to layer."""
        with bench.layer("base") as path:
            os.mkfifo(path / "fifo", 0o640)
            write(path, program="#!")
            (path / "program").chmod(0o4755)
        with bench.layer("child", "base") as path:
            (path / "fifo").rename(path / "pipe")
            (path / "program").rename(path / "tool")
        with bench.viewed("child") as path:
            found = {name: entry.mode for name, entry in describe(path).items() if name != b"."}
        assert found == {b"pipe": stat.S_IFIFO | 0o640, b"tool": stat.S_IFREG | 0o4755}

    def test_odd_names(self, bench: Bench) -> None:
        """Names are bytes: whatever is not "/" and NUL, 255 of them, those that whiteouts use in tar files too."""
        names = [b"n" * 255, b"\xff\xfe", b"new\nline", b" ", b"-rf", b".wh.file", b".wh..wh..opq", b"a:b,c\\d", b"#x"]
        with bench.layer("base") as path:
            for name in names:
                Path(os.fsdecode(os.path.join(os.fsencode(path), name))).write_bytes(name)
        with bench.layer("child", "base") as path:
            for name in names[::2]:
                os.unlink(os.path.join(os.fsencode(path), name))
        with bench.viewed("child") as path:
            assert {name: entry.data for name, entry in describe(path).items() if name != b"."} == {
                name: name for name in names[1::2]
            }

    # Depth

    @pytest.mark.parametrize("depth", [128])
    def test_many_layers(self, bench: Bench, depth: int) -> None:
        """128 layers mount, and the topmost one's content wins (containerd: 128LayersMount)."""
        limit = bench.snapshotter.driver.traits.max_layers
        assert limit is None or limit >= depth
        parent = ""
        for number in range(depth):
            with bench.layer(f"layer-{number}", parent) as path:
                write(path, last=str(number), **{f"file{number}": str(number)})
                if number % 2:
                    (path / f"file{number - 1}").unlink()
            parent = f"layer-{number}"
        expected = {"last": str(depth - 1), **{f"file{number}": str(number) for number in range(1, depth, 2)}}
        with bench.viewed(parent) as path:
            assert contents(path) == expected
        bench.snapshotter.prepare("top", parent)
        with bench.mounted("top") as path:
            (path / "file1").unlink()
            write(path, last="top")
            del expected["file1"]
            assert contents(path) == {**expected, "last": "top"}
            assert len({(path / name).lstat().st_dev for name in (".", "last", "file3")}) == 1

    def test_deeper_than_the_limit(self, bench: Bench) -> None:
        """The chain that cannot be mounted any more is refused with a hint, and leaves nothing."""
        limit = bench.snapshotter.driver.traits.max_layers
        if limit is None:
            return
        parent = ""
        for number in range(limit + 1):
            bench.snapshotter.prepare("key", parent)
            bench.snapshotter.commit(f"layer-{number}", "key")
            parent = f"layer-{number}"
        bench.snapshotter.prepare("last", f"layer-{limit - 1}")
        with bench.mounted("last") as path:
            write(path, f="x")
        for kind in (bench.snapshotter.prepare, bench.snapshotter.view):
            with pytest.raises(Unsupported) as caught:
                kind("too deep", parent)
            assert caught.value.hint
        assert {info.name for info in bench.snapshotter.infos("kind!=committed")} == {"last"}
