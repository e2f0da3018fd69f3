"""The union on its own: what lies on disk afterwards, what is in memory meanwhile, and how it fails."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from layerfs.contract import Mount
from layerfs.errors import Busy, FailedPrecondition
from layerfs.kernel import mounting
from layerfs.layerdirs import own_whiteouts
from layerfs_fuse.attributes import DIRENT
from layerfs_fuse.union import Caller, Changes, Options, Union, Upper, upper
from tests.support.rootless import Rootless
from tests.support.unions import Client, Seen, Stack, stacked, tree_of

OLD = 1_000_000_000_000_000_000
PREFIX = b"trusted.overlay." if os.geteuid() == 0 else b"user.overlay."


@pytest.fixture
def layer(fresh_dir: Path) -> Path:
    """Give a layer with a few files of each kind."""
    return make_layer(fresh_dir / "layer")


def make_layer(place: Path) -> Path:
    place.mkdir()
    (place / "dir/inner").mkdir(parents=True)
    (place / "file").write_bytes(b"lower")
    (place / "dir/big").write_bytes(b"0123456789" * 100_000)
    (place / "dir/inner/deep").write_bytes(b"deep")
    (place / "link").symlink_to("file")
    os.link(place / "file", place / "dir/again")
    os.link(place / "file", place / "third")
    for path in (*place.rglob("*"), place):
        os.utime(path, ns=(OLD, OLD), follow_symlinks=False)
    return place


@pytest.fixture
def client(fresh_dir: Path, layer: Path) -> Iterator[Client]:
    with stacked(fresh_dir, [layer]) as stack:
        yield Client(stack)


def on_disk(client: Client, path: str) -> os.stat_result:
    return os.lstat(client.stack.upper_path / path)


def marks(path: Path) -> dict[bytes, bytes]:
    names = (os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False))
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names if name.startswith(PREFIX)}


def raises(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.RaisesExc(OSError, check=lambda error: error.errno == number)


# -- on disk -----------------------------------------------------------------------------------------------------------


def test_nothing_is_written_by_reading(client: Client) -> None:
    client.tree()
    assert not list(client.stack.upper_path.iterdir())


def test_whiteout_and_opaque_are_those_of_overlay(client: Client) -> None:
    client.union.unlink(1, b"file")
    assert stat.S_ISCHR(on_disk(client, "file").st_mode)
    assert on_disk(client, "file").st_rdev == 0
    client.count(client.union.make_directory(1, b"file", 0o755, client.caller))
    assert marks(client.stack.upper_path / "file") == {PREFIX + b"opaque": b"y"}
    client.union.remove_directory(1, b"file")
    assert stat.S_ISCHR(on_disk(client, "file").st_mode)
    assert not list((client.stack.work_path / "work").iterdir())


def test_new_names_leave_no_whiteout(client: Client) -> None:
    client.create(b"dir/new")
    client.union.unlink(*client.at(b"dir/new"))
    assert not list((client.stack.upper_path / "dir").iterdir())


def test_renamed_lower_directory_is_whole_and_opaque(client: Client) -> None:
    client.union.unlink(*client.at(b"dir/big"))
    ino = client.fields(client.node(b"dir/inner"))[0]
    client.union.rename(1, b"dir", 1, b"moved")
    upper = client.stack.upper_path
    assert stat.S_ISCHR(on_disk(client, "dir").st_mode)
    assert marks(upper / "moved")[PREFIX + b"opaque"] == b"y"
    assert sorted(path.name for path in upper.glob("moved/*")) == ["again", "inner"]
    assert not any(PREFIX + b"redirect" in marks(path) for path in upper.rglob("*"))
    client.stack.remount()
    client.lookups.clear()
    assert client.fields(client.node(b"moved/inner"))[0] == ino
    assert client.read(b"moved/inner/deep") == b"deep"


def test_copy_up_keeps_times_of_the_directories_on_disk(client: Client) -> None:
    client.union.set_attributes(client.node(b"dir/inner/deep"), Changes(mode=0o600))
    client.stack.remount()
    for path in ("dir", "dir/inner"):
        assert on_disk(client, path).st_mtime_ns == OLD
    client.lookups.clear()
    assert client.tree()[b"dir"].mtime == OLD


def test_hard_links_survive_copy_up_and_remount(client: Client) -> None:
    client.write(b"dir/again", b"upper")
    assert client.read(b"file") == client.read(b"third") == b"upper"
    assert on_disk(client, "file").st_nlink == 3
    client.stack.remount()
    client.lookups.clear()
    nodes = {client.node(path) for path in (b"file", b"dir/again", b"third")}
    assert len(nodes) == 1
    assert client.fields(nodes.pop())[10] == 3


def test_links_are_counted_where_a_whiteout_hides_one(client: Client) -> None:
    client.union.unlink(1, b"file")
    assert client.fields(client.node(b"third"))[10] == 2
    client.forget()
    assert client.fields(client.node(b"third"))[10] == 2
    client.stack.remount()
    client.lookups.clear()
    assert {seen.nlink for path, seen in client.tree().items() if path in (b"third", b"dir/again")} == {2}
    client.write(b"third", b"upper")
    assert client.read(b"dir/again") == b"upper"
    assert on_disk(client, "third").st_nlink == 2


def test_inode_numbers_are_the_same_after_a_remount(client: Client) -> None:
    client.write(b"dir/big", b"x")
    client.create(b"dir/new")
    client.union.rename(1, b"link", 1, b"renamed")
    client.union.set_attributes(client.node(b"dir/inner"), Changes(mode=0o700))
    before = {path: seen.ino for path, seen in client.tree().items()}
    client.stack.remount()
    client.lookups.clear()
    after = {path: seen.ino for path, seen in client.tree().items()}
    if os.geteuid() != 0:  # a symbolic link takes no attribute of an ordinary user
        del before[b"renamed"], after[b"renamed"]
    assert after == before


def test_inode_numbers_stay_wherever_a_copy_goes(fresh_dir: Path) -> None:
    _move_copies(fresh_dir)


@pytest.mark.rootless
def test_inode_numbers_stay_for_an_ordinary_user(rootless_dir: Path, run_rootless: Rootless) -> None:
    run_rootless(_move_copies, rootless_dir)


def _move_copies(place: Path) -> None:
    """Move copies about: one in the place of its lower file says nothing of its number on disk, all others do."""
    layer = place / "layer"
    (layer / "dir").mkdir(parents=True)
    for text in ("kept", "moved", "over", "covered", "linked", "new", "taken", "one", "other", "node", "dir/inside"):
        (layer / text).write_text(text)
    with stacked(place, [layer]) as stack:
        client, union = Client(stack, Caller(os.geteuid(), os.getegid(), 1, 0o022)), stack.union
        for name in (b"kept", b"moved", b"over", b"linked", b"one", b"dir/inside"):
            union.set_attributes(client.node(name), Changes(mode=0o440))
        union.rename(1, b"moved", 1, b"away")
        union.rename(1, b"over", 1, b"covered")
        client.count(union.link(client.node(b"linked"), 1, b"second"))
        union.unlink(1, b"linked")
        for name in (b"new", b"taken", b"node"):
            union.unlink(1, name)
        client.create(b"new")
        client.create(b"fresh")
        client.count(union.link(client.node(b"fresh"), 1, b"taken"))
        union.unlink(1, b"fresh")
        client.count(union.make_node(1, b"node", stat.S_IFREG | 0o400, 0, client.caller))
        union.rename(1, b"one", 1, b"other", 2)  # RENAME_EXCHANGE
        union.rename(1, b"dir", 1, b"directory")
        before = {path: seen.ino for path, seen in client.tree().items()}
        assert len(set(before.values())) == len(before)
        kept = stack.upper_path / "kept"
        assert (marks(kept), on_disk(client, "kept").st_ino != before[b"kept"]) == ({}, True)
        stack.remount()
        client.lookups.clear()
        assert {path: seen.ino for path, seen in client.tree().items()} == before


def test_whiteouts_without_devices(fresh_dir: Path, layer: Path) -> None:
    with stacked(fresh_dir, [layer]) as stack:
        stack.upper.devices = False
        client = Client(stack)
        client.union.unlink(1, b"file")
        client.union.unlink(*client.at(b"dir/big"))
        client.union.rename(*client.at(b"dir/inner/deep"), 1, b"deep")
        assert not any(stat.S_ISCHR(path.lstat().st_mode) for path in stack.upper_path.rglob("*"))
        assert marks(stack.upper_path)[PREFIX + b"opaque"] == b"x"
        before = client.tree()
        stack.remount()
        assert Client(stack).tree() == before
        if os.geteuid() == 0:  # the kernel takes files for whiteouts in lower layers only
            assert sorted(kernel_tree(stack, lower=True)) == sorted(before)


@pytest.mark.parametrize("announced", [False, True])
def test_empty_files_with_the_mark_are_whiteouts(fresh_dir: Path, layer: Path, announced: bool) -> None:  # noqa: FBT001
    (fresh_dir / "upper/dir").mkdir(parents=True)
    for name in ("file", "dir/big", "dir/only-here"):
        (fresh_dir / "upper" / name).touch()
        os.setxattr(fresh_dir / "upper" / name, PREFIX + b"whiteout", b"y")
    (fresh_dir / "upper/third").write_bytes(b"no whiteout, for it has content")
    os.setxattr(fresh_dir / "upper/third", PREFIX + b"whiteout", b"y")
    if announced:
        os.setxattr(fresh_dir / "upper/dir", PREFIX + b"opaque", b"x")
    with stacked(fresh_dir, [layer]) as stack:
        client = Client(stack)
        seen = client.tree()
        assert {b"file", b"dir/big", b"dir/only-here"}.isdisjoint(seen)
        assert client.read(b"third") == b"no whiteout, for it has content"
        client.create(b"dir/big", content=b"new")
        stack.remount()
        assert Client(stack).read(b"dir/big") == b"new"
        if os.geteuid() == 0:
            assert sorted(kernel_tree(stack)) == sorted({*seen, b"dir/big"})


@pytest.mark.root
def test_marks_set_through_the_union_are_escaped(client: Client) -> None:
    node = client.node(b"dir")
    client.union.set_xattr(node, b"trusted.overlay.opaque", b"y")
    assert client.union.get_xattr(node, b"trusted.overlay.opaque") == b"y"
    assert client.union.list_xattrs(node) == [b"trusted.overlay.opaque"]
    assert marks(client.stack.upper_path / "dir") == {b"trusted.overlay.overlay.opaque": b"y"}
    assert b"dir/inner" in client.tree()


@pytest.mark.root
def test_new_things_inherit_in_the_place_of_a_whiteout(client: Client) -> None:
    directory = client.node(b"dir")
    client.union.set_attributes(directory, Changes(gid=77))
    client.union.set_attributes(directory, Changes(mode=0o2775))
    for name in (b"big", b"again"):
        client.union.unlink(directory, name)
    client.caller = Caller(5, 6, 1, 0o022)
    client.create(b"dir/big", 0o666)
    client.count(client.union.make_directory(directory, b"again", 0o777, client.caller))
    tree = client.tree()
    assert (tree[b"dir/big"].uid, tree[b"dir/big"].gid, tree[b"dir/big"].mode & 0o7777) == (5, 77, 0o644)
    assert (tree[b"dir/again"].uid, tree[b"dir/again"].gid, tree[b"dir/again"].mode & 0o7777) == (5, 77, 0o2755)
    client.create(b"new", 0o4755)
    new = client.tree()[b"new"]
    assert (new.uid, new.mode & 0o7777) == (5, 0o4755)


# -- in memory ---------------------------------------------------------------------------------------------------------


def test_unlinked_files_stay_until_they_are_forgotten(client: Client) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    node = client.create(b"dir/new", content=b"still there")
    client.union.unlink(*client.at(b"dir/new"))
    assert client.fields(node)[10] == 0
    handle = client.union.open(node, os.O_RDWR)
    assert handle.read(100, 0) == b"still there"
    handle.write(b"now", 0)
    handle.close()
    client.union.set_attributes(node, Changes(mode=0o600))
    assert client.fields(node)[1] == 11
    client.forget()
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 2  # two directories are kept open
    with raises(errno.ESTALE):
        client.union.open(node, os.O_RDONLY)


def test_unlinked_lower_files_can_still_be_changed(client: Client) -> None:
    node = client.node(b"dir/big")
    client.union.unlink(*client.at(b"dir/big"))
    assert client.fields(node)[10] == 0
    client.union.set_attributes(node, Changes(size=3))
    handle = client.union.open(node, os.O_RDONLY)
    assert handle.read(10, 0) == b"012"
    handle.close()
    assert b"dir/big" not in client.tree()


def test_readers_follow_a_copy_up(client: Client) -> None:
    told: list[int] = []
    client.union.on_copied_up = told.append
    reader = client.union.open(client.node(b"file"), os.O_RDONLY)
    client.write(b"third", b"UPPER")
    assert reader.read(10, 0) == b"UPPER"
    assert told == [client.node(b"file")]
    reader.close()


def test_renumbered_files_leave_the_lower_one_to_its_readers(client: Client) -> None:
    old = client.node(b"file")
    client.write(b"file", b"UPPER")
    new = client.union.renumber(old)
    assert client.node(b"third") == client.node(b"file") == new != old
    handle = client.union.open(old, os.O_RDONLY)
    assert handle.read(10, 0) == b"lower"
    handle.close()
    assert client.fields(new)[0] == client.fields(old)[0]
    assert client.read(b"dir/again") == b"UPPER"


def test_memory_follows_what_the_kernel_knows(client: Client) -> None:
    client.tree()
    for number in range(300):
        client.create(b"dir/%d" % number, content=b"x")
        if number % 3:
            client.union.unlink(*client.at(b"dir/%d" % number))
        if number % 50 == 49:
            client.forget(lambda node: node == 1)
    client.forget(lambda node: node == 1)
    assert len(client.union._nodes) == len(client.union._directories) == 1
    assert not client.union._inodes
    assert len(client.tree()) == 9 + 100


def test_a_listing_is_right_while_names_come_and_go(client: Client) -> None:
    directory = client.node(b"dir")
    for number in range(200):
        client.create(b"dir/%03d" % number)
    stays = {b"%03d" % number for number in range(0, 200, 7)} | {b"again", b"inner", b"big"}
    offset, found, made = 0, list[bytes](), 0
    while reply := bytes(client.union.list(directory, offset, 300, plus=False)):
        place = 0
        while place < len(reply):
            _, offset, length, _ = DIRENT.unpack_from(reply, place)
            name = reply[place + DIRENT.size : place + DIRENT.size + length]
            found.append(name)
            place += DIRENT.size + length + (-length % 8)
            if name not in stays and not name.startswith(b"."):
                client.union.unlink(directory, name)
                if made < 50:
                    made += 1
                    client.create(b"dir/.new%d" % made)
    assert len(found) == len(set(found))
    assert stays <= set(found)


def test_many_directories_need_few_descriptors(client: Client) -> None:
    for number in range(600):
        client.count(client.union.make_directory(1, b"%d" % number, 0o755, client.caller))
        client.create(b"%d/file" % number)
    assert len(os.listdir("/proc/self/fd")) < 350
    assert client.read(b"0/file") == b""


# -- failures ----------------------------------------------------------------------------------------------------------


@contextmanager
def small(place: Path, limit: str) -> Iterator[Path]:
    """Mount a tmpfs with a limit (tmpfs(5))."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "small", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.root
def test_a_full_disk_leaves_the_lower_file_as_it_was(fresh_dir: Path, layer: Path) -> None:
    with small(fresh_dir / "small", "size=600000") as place, stacked(place, [layer]) as stack:
        client = Client(stack)
        for change in (Changes(mode=0o600), Changes(size=900_000)):
            with raises(errno.ENOSPC):
                client.union.set_attributes(client.node(b"dir/big"), change)
            assert client.read(b"dir/big") == b"0123456789" * 100_000
        with raises(errno.ENOSPC):
            client.union.rename(1, b"dir", 1, b"moved")
        assert client.read(b"dir/inner/deep") == b"deep"
        assert not list((stack.work_path / "work").iterdir())
        client.union.set_attributes(client.node(b"dir/big"), Changes(size=10))
        assert client.read(b"dir/big") == b"0123456789"
        client.union.rename(1, b"dir", 1, b"moved")
        assert sorted(kernel_tree(stack)) == sorted(client.tree())


@pytest.mark.root
@pytest.mark.parametrize("room", range(5))
def test_hard_links_are_copied_up_all_or_none(fresh_dir: Path, layer: Path, room: int) -> None:
    with small(fresh_dir / "small", f"nr_inodes={7 + room}") as place, stacked(place, [layer]) as stack:
        client = Client(stack)
        client.union.unlink(1, b"third")  # the file has a node from now on
        before = client.tree()
        with suppress(OSError):
            client.write(b"file", b"upper")
        after = client.tree()
        stack.remount()
        client.lookups.clear()
        assert client.tree() == after
        if room < 4 and after[b"file"].content == b"lower":
            assert after == before
        else:
            assert room > 0
            assert after[b"file"].content == after[b"dir/again"].content == b"upper"
        assert not list((stack.work_path / "work").iterdir())


def test_a_layer_that_is_gone_gives_eio(fresh_dir: Path, layer: Path) -> None:
    with stacked(fresh_dir, [layer]) as stack:
        client = Client(stack)
        shutil.rmtree(layer)
        node = client.node(b"dir/big")
        with raises(errno.EIO):
            client.union.open(node, os.O_RDONLY)
        with raises(errno.EIO):
            client.union.set_attributes(node, Changes(mode=0o600))


def test_a_union_without_an_upper_directory_is_read_only(fresh_dir: Path, layer: Path) -> None:
    with stacked(fresh_dir, [layer]) as stack:
        union = Union(stack.index, stack.fds)
        stack.union.close()
        stack.union = union
        client = Client(stack)
        assert client.read(b"dir/inner/deep") == b"deep"
        for change in (
            lambda: client.create(b"new"),
            lambda: union.unlink(1, b"file"),
            lambda: union.remove_directory(1, b"dir"),
            lambda: union.rename(1, b"file", 1, b"moved"),
            lambda: union.set_attributes(client.node(b"file"), Changes(mode=0)),
            lambda: union.set_xattr(client.node(b"file"), b"user.x", b""),
            lambda: union.open(client.node(b"file"), os.O_WRONLY),
        ):
            with raises(errno.EROFS):
                change()
        assert b"dir/inner/deep" in client.tree()


def test_refusals_are_those_of_an_overlay(client: Client) -> None:
    with raises(errno.EPERM):
        client.union.make_node(1, b"new", stat.S_IFCHR | 0o600, 0, client.caller)
    with raises(errno.EINVAL):
        client.union.rename(1, b"file", 1, b"new", 4)
    with raises(errno.ENAMETOOLONG):
        client.union.lookup(1, b"n" * 256)
    with raises(errno.ENAMETOOLONG):
        client.create(b"n" * 256)


def test_a_removed_directory_is_empty_for_whoever_is_in_it(client: Client) -> None:
    for name in (b"dir/inner/deep",):
        client.union.unlink(*client.at(name))
    node = client.node(b"dir/inner")
    client.union.remove_directory(*client.at(b"dir/inner"))
    assert client.fields(node)[10] == 0
    assert client.union.list(node, 0, 4096, plus=True) == b""
    assert client.union.lookup(node, b"deep") is None
    with raises(errno.ENOENT):
        client.union.create(node, b"new", 0o644, os.O_RDWR, client.caller)


def test_redirects_of_another_overlay_are_refused(fresh_dir: Path, layer: Path) -> None:
    (fresh_dir / "upper").mkdir()
    (fresh_dir / "upper/moved").mkdir()
    os.setxattr(fresh_dir / "upper/moved", PREFIX + b"redirect", b"/dir")
    with stacked(fresh_dir, [layer]) as stack, raises(errno.EIO):
        stack.union.lookup(1, b"moved")


def test_a_volatile_overlay_is_not_taken_over(fresh_dir: Path) -> None:
    (fresh_dir / "upper").mkdir()
    (fresh_dir / "work/work/incompat/volatile").mkdir(parents=True)
    with pytest.raises(FailedPrecondition, match="volatile"):
        Upper.open(fresh_dir / "upper", fresh_dir / "work", marks=own_whiteouts())


def test_an_upper_directory_has_one_union(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upper, "_PATIENCE", 0.05)
    with pytest.raises(Busy, match="another union"):
        Upper.open(client.stack.upper_path, client.stack.work_path, marks=own_whiteouts())
    with pytest.raises(Busy):
        upper.settled(client.stack.work_path)
    client.stack.remount()
    upper.settled(client.stack.work_path / "gone")


def test_what_a_crash_left_in_the_working_directory_is_cleared(fresh_dir: Path, layer: Path) -> None:
    (fresh_dir / "work/work/#1/inner").mkdir(parents=True)
    with stacked(fresh_dir, [layer], options=Options(volatile=True)) as stack:
        assert not list((stack.work_path / "work").iterdir())
        Client(stack).write(b"file", b"new")


def test_trees_deeper_than_a_path_is_long(fresh_dir: Path) -> None:
    layer = fresh_dir / "layer"
    layer.mkdir()
    depth = 30
    fd = os.open(layer, os.O_PATH)
    for _ in range(depth):
        os.mkdir(b"n" * 250, dir_fd=fd)
        fd, last = os.open(b"n" * 250, os.O_PATH, dir_fd=fd), fd
        os.close(last)
    os.close(os.open(b"file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    path = b"/".join([b"n" * 250] * depth)
    with stacked(fresh_dir, [layer]) as stack:
        client = Client(stack)
        assert client.read(path + b"/file") == b""
        client.write(path + b"/file", b"changed")
        client.union.rename(1, b"n" * 250, 1, b"m")
        assert client.read(b"m" + path[250:] + b"/file") == b"changed"


# -- an ordinary user --------------------------------------------------------------------------------------------------


@pytest.mark.rootless
def test_an_ordinary_user_has_the_same(rootless_dir: Path, run_rootless: Rootless) -> None:
    run_rootless(_as_ordinary_user, rootless_dir)


def _as_ordinary_user(place: Path) -> None:
    layer = make_layer(place / "layer")
    (layer / "closed/inner").mkdir(parents=True)
    for name in ("closed/file", "closed/other"):
        (layer / name).write_bytes(name.encode())
    (layer / "closed/other").chmod(0o444)
    (layer / "closed/inner").chmod(0o555)
    (layer / "closed").chmod(0o555)
    with stacked(place, [layer]) as stack:
        client = Client(stack, Caller(os.geteuid(), os.getegid(), 1, 0o022))
        client.write(b"file", b"upper")
        client.union.unlink(*client.at(b"dir/big"))
        node = client.create(b"secret", 0o200, b"write only")
        handle = client.union.open(node, os.O_WRONLY)
        handle.write(b"W", 0)
        handle.close()
        client.write(b"closed/file", b"changed")
        client.union.rename(1, b"closed", 1, b"shut")
        client.union.set_attributes(client.node(b"shut"), Changes(mode=0o300))
        client.union.rename(1, b"dir", 1, b"moved")
        assert os.getxattr(stack.upper_path / "moved", b"user.overlay.opaque") == b"y"
        before = client.tree()
        stack.remount()
        assert Client(stack).tree() == before


# -- the kernel's overlay ----------------------------------------------------------------------------------------------


def kernel_tree(stack: Stack, *, lower: bool = False) -> dict[bytes, Seen]:
    """Return what the kernel's overlay shows of the same directories; ``lower`` takes the upper one as a layer."""
    stack.union.sync()
    layers = (stack.upper_path, *reversed(stack.paths)) if lower else (*reversed(stack.paths),)
    options = [f"lowerdir={':'.join(map(str, layers))}"]
    if not lower:
        options += [f"upperdir={stack.upper_path}", f"workdir={stack.work_path}"]
    with mounting.mounted([Mount("overlay", "overlay", tuple(options))]) as mounted:
        return tree_of(mounted)


@pytest.mark.root
def test_a_copy_shares_blocks_where_the_file_system_can(btrfs_mount: Path) -> None:
    place = btrfs_mount / "union"
    (place / "layer").mkdir(parents=True)
    (place / "layer/big").write_bytes(os.urandom(4 << 20))
    with stacked(place, [place / "layer"]) as stack:
        Client(stack).write(b"big", b"changed")
        subprocess.run(["sync", "-f", place], check=True)
        extents = subprocess.run(["filefrag", "-v", place / "upper/big"], check=True, capture_output=True)
    assert b"shared" in extents.stdout
    shutil.rmtree(place)
