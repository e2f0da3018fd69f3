"""What an index says of layers, and what it refuses."""

from __future__ import annotations

import os
import random
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerfs.contract import Whiteouts
from layerfs.errors import Busy, Corrupt, FailedPrecondition, InvalidArgument, NoSpace, NotFound, Unsupported
from layerfs.kernel import syscalls
from layerfs_fuse.attributes import ATTRIBUTES, DIRENT, ENTRY_SIZE, FOREVER, RECORD_NAME, pack_attributes, pack_entry
from layerfs_fuse.index.builder import build
from layerfs_fuse.index.checks import check
from layerfs_fuse.index.format import HEADER_SIZE, PROBES, ROOT, Section, pack_header, unique_ino, unpack_header
from layerfs_fuse.index.format import checksum as crc
from layerfs_fuse.index.markers import TRUSTED, USER, marks_of
from layerfs_fuse.index.reader import Index
from tests.fuse.layer_trees import seen_by, seen_in
from tests.support.rootless import Rootless

USER_MARKS = Whiteouts.OVERLAY_USER


def make(path: Path, layers: Sequence[Path], parent: Index | None = None, identity: bytes = b"") -> Index:
    """Build the index of layers, and open it."""
    with ExitStack() as stack:
        fds = [os.open(layer, os.O_RDONLY | os.O_DIRECTORY) for layer in layers]
        for fd in fds:
            stack.callback(os.close, fd)
        build(path, fds, parent=parent, whiteouts=USER_MARKS, identity=identity, sync=False)
    return Index.open(path)


def fill(place: Path, names: Sequence[str]) -> Path:
    """Make a layer of empty files; a name that ends in "/" is a directory, one that starts with "-" a whiteout."""
    place.mkdir(exist_ok=True)
    for name in names:
        path = place / name.removeprefix("-")
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("-"):
            os.mknod(path, stat.S_IFCHR, 0)
        elif name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.touch()
    return place


def row_of(index: Index, path: bytes) -> int:
    """Walk to a row, 0 where there is none."""
    row = ROOT
    for name in path.split(b"/"):
        row = index.child(row, name)
    return row


# -- what it says ------------------------------------------------------------------------------------------------------


def test_an_entry_is_a_reply_to_lookup_and_to_getattr(fresh_dir: Path) -> None:
    layer = fill(fresh_dir / "layer", ["a"])
    path = layer / "a"
    path.write_bytes(b"x" * 5000)
    os.utime(path, ns=(-1_500_000_000, 12_345_678_901_234_567))
    status = path.stat()
    with make(fresh_dir / "index", [layer]) as index:
        row = index.child(ROOT, b"a")
        assert index.attributes(row) == pack_attributes(status, status.st_ino)
        assert index.entry(row) == pack_entry(row, index.attributes(row))
        assert index.attributes_reply(row) == struct.pack("=QII", FOREVER, 0, 0) + index.attributes(row)
        assert ATTRIBUTES.unpack(index.attributes(row))[3:9] == (
            *(-2, 12_345_678, status.st_ctime_ns // 10**9),
            *(500_000_000, 901_234_567, status.st_ctime_ns % 10**9),
        )


def test_names_are_found_in_their_directory_only(fresh_dir: Path) -> None:
    layer = fill(fresh_dir / "layer", ["a/b", "a/c", "b", "d/a"])
    with make(fresh_dir / "index", [layer], identity=b"sha256:1") as index:
        assert index.path(row_of(index, b"a/b")) == b"a/b"
        assert not row_of(index, b"a/a")
        assert not row_of(index, b"b/a")  # b is no directory
        assert not index.child(ROOT, b"")
        assert index.path(ROOT) == index.name(ROOT) == b""
        assert index.parent(ROOT) == ROOT
        assert not index.children(row_of(index, b"b"))
        assert index.identity == b"sha256:1".ljust(64, b"\0")
        assert (index.layers, index.layer(row_of(index, b"a"))) == (1, 0)
        check(index)


def test_a_layer_is_where_its_object_lies(fresh_dir: Path) -> None:
    layers = [fill(fresh_dir / "1", ["a/x", "a/y", "b"]), fill(fresh_dir / "2", ["a/y"]), fill(fresh_dir / "3", ["-b"])]
    with make(fresh_dir / "index", layers) as index:
        assert {
            index.path(row): index.layer(row) for row in (*index.children(ROOT), *index.children(row_of(index, b"a")))
        } == {
            b"a": 1,
            b"a/x": 0,
            b"a/y": 1,
        }
        table = index.layer_table
        assert [layer.root for layer in table] == [place.stat().st_ino for place in layers]
        assert {layer.ordinal for layer in table} == {0}


def test_small_layers_leave_most_rows_alone(fresh_dir: Path) -> None:
    names = [f"{first}/{second}/{third}" for first in range(9) for second in range(9) for third in range(9)]
    base, top = fill(fresh_dir / "base", names), fill(fresh_dir / "top", ["3/3/3", "3/4/new", "-5"])
    with make(fresh_dir / "base-index", [base]) as parent, make(fresh_dir / "index", [top], parent) as index:
        assert index.count < parent.count + 30
        for path in (b"0/0/0", b"3/3/3", b"8/8"):
            assert row_of(index, path) == row_of(parent, path)
        assert not row_of(index, b"5")
        assert row_of(index, b"3/4/new")
        assert index.living == parent.living + 1 - 91
        check(index)


def test_dead_rows_are_left_out_when_they_are_the_most(fresh_dir: Path) -> None:
    base = fill(fresh_dir / "base", [f"d/{number:04}" for number in range(1500)])
    os.link(base / "d" / "0000", base / "d" / "linked")
    (base / "d" / "symlink").symlink_to("0000")
    tops = [fill(fresh_dir / f"top{number}", [f"d/new{number}"]) for number in range(12)]
    one = make(fresh_dir / "index", [base, *tops])
    parent = make(fresh_dir / "parent", [base])
    for top in tops:
        previous, parent = parent, make(fresh_dir / "parent", [top], parent)
        previous.close()
    with one, parent:
        assert seen_by(one) == seen_by(parent)
        assert one.count < 1500 * 6
        assert parent.count < 1500 * 6
        assert len(one.aliases(row_of(one, b"d/0000"))) == 2
        assert one.target(row_of(one, b"d/symlink")) == b"0000"
        check(one)
        check(parent)


def test_hard_links_are_counted_by_the_names_that_show(fresh_dir: Path) -> None:
    base = fill(fresh_dir / "base", ["a", "d/"])
    for name in ("b", "d/c"):
        os.link(base / "a", base / name)
    tops = [fill(fresh_dir / "1", ["-a"]), fill(fresh_dir / "2", ["-d"])]
    shown: list[tuple[int, tuple[bytes, ...]]] = []
    for number in range(3):
        with make(fresh_dir / "index", [base, *tops[:number]]) as index:
            row = row_of(index, b"b")
            nlink = ATTRIBUTES.unpack(index.attributes(row))[10]
            shown.append((nlink, tuple(sorted(index.path(alias) for alias in index.aliases(row)))))
            check(index)
    assert shown == [(3, (b"a", b"b", b"d/c")), (2, (b"b", b"d/c")), (1, (b"b",))]


def test_attributes_are_noticed(fresh_dir: Path) -> None:
    layer = fill(fresh_dir / "layer", ["plain", "with", "marked/", "nested/", "other"])
    os.setxattr(layer / "with", "user.a", b"")
    os.setxattr(layer / "marked", "user.overlay.opaque", b"y")
    os.setxattr(layer / "nested", "user.overlay.overlay.opaque", b"y")
    with make(fresh_dir / "index", [layer]) as index:
        noticed = {index.name(row) for row in index.children(ROOT) if index.has_xattrs(row)}
    assert noticed == {b"with", b"nested"}


@pytest.mark.parametrize("marks", [TRUSTED, USER])
def test_names_of_attributes_are_escaped_and_come_back(marks: object) -> None:
    assert isinstance(marks, type(TRUSTED))
    for name in (b"user.x", b"trusted.overlay.opaque", b"user.overlay.opaque", b"trusted.overlay.overlay.opaque"):
        assert marks.shown(marks.stored(name)) == name
    assert marks.shown(marks.opaque) is None
    assert marks.stored(marks.opaque) == marks.prefix + b"overlay.opaque"
    with pytest.raises(KeyError):
        marks_of(Whiteouts.REMOVE)


# -- listings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [280, 900, 4096, 1 << 20])
def test_a_directory_is_listed_piece_by_piece(fresh_dir: Path, size: int) -> None:
    names = [f"{number:03}".ljust(number % 90 + 3, "x") for number in range(200)]
    layer = fill(fresh_dir / "layer", [*names, "directory/"])
    with make(fresh_dir / "index", [layer]) as index:
        for read, start in ((index.records, ENTRY_SIZE), (index.dirents, 0)):
            found: list[bytes] = []
            offset = 0
            while piece := bytes(read(ROOT, offset, size)):
                assert len(piece) <= size
                at = 0
                while at < len(piece):
                    ino, offset, length, kind = DIRENT.unpack_from(piece, at + start)
                    begin = at + start + DIRENT.size
                    found.append(piece[begin : begin + length])
                    row = index.child(ROOT, found[-1])
                    assert (ino, kind) == (index.ino(row), index.mode(row) >> 12)
                    assert not start or piece[at : at + ENTRY_SIZE] == index.entry(row)
                    at = begin + (length + 7 & ~7)
            assert found == sorted(os.fsencode(name) for name in os.listdir(layer))


def test_a_directory_names_itself_and_the_one_above(fresh_dir: Path) -> None:
    layer = fill(fresh_dir / "layer", ["directory/"])
    with make(fresh_dir / "index", [layer]) as index:
        row = index.child(ROOT, b"directory")
        for plus in (False, True):
            here, above = (one[ENTRY_SIZE if plus else 0 :] for one in index.dots(row, plus=plus))
            assert DIRENT.unpack_from(here) == (index.ino(row), 1, 1, 4)
            assert DIRENT.unpack_from(above) == (index.ino(ROOT), 2, 2, 4)
            assert (here[24:], above[24:]) == (b".".ljust(8, b"\0"), b"..".ljust(8, b"\0"))
        assert not index.dirents(row, 0, 4096)
        assert not index.records(row, 0, 4096)


# -- layers that are odd -----------------------------------------------------------------------------------------------


def _colliding(count: int) -> list[bytes]:
    """Return names with one CRC-32, whatever it starts with: four bytes can be chosen to make it anything."""
    table = {}
    for number in range(256):
        value = number
        for _ in range(8):
            value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
        table[value >> 24] = (number, value)

    def ended(prefix: bytes) -> bytes:
        wanted, indexes = 0x12345678 ^ 0xFFFFFFFF, []
        for _ in range(4):
            number, value = table[wanted >> 24]
            indexes.append(number)
            wanted = (wanted ^ value) << 8 & 0xFFFFFFFF
        state, suffix = crc32(prefix) ^ 0xFFFFFFFF, b""
        for number in reversed(indexes):
            suffix += bytes([number ^ state & 0xFF])
            value = number
            for _ in range(8):
                value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
            state = state >> 8 ^ value
        return prefix + suffix

    names: list[bytes] = []
    number = 0
    while len(names) < count:
        name = ended(b"%010x" % number)
        number += 1
        if b"/" not in name and b"\0" not in name:
            names.append(name)
    return names


def test_names_that_collide_on_purpose_are_found(fresh_dir: Path) -> None:
    names = _colliding(400)
    assert len({crc32(name, 7) for name in names}) == 1
    layers = [fresh_dir / "1", fresh_dir / "2"]
    for layer, part in zip(layers, (names[:300], names[200:]), strict=True):
        layer.mkdir()
        for name in part:
            Path(os.fsdecode(os.fsencode(layer) + b"/" + name)).touch()
    fill(layers[1], [f"other{number}" for number in range(3000)])  # so many that the table is made anew
    os.unlink(os.fsencode(layers[1]) + b"/" + names[250])
    os.mknod(os.fsencode(layers[1]) + b"/" + names[250], stat.S_IFCHR, 0)
    with (
        make(fresh_dir / "one", layers) as one,
        make(fresh_dir / "first", layers[:1]) as first,
        make(fresh_dir / "two", layers[1:], first) as two,
    ):
        for index in (one, two):
            assert {index.name(row) for row in index.children(ROOT)} >= {*names} - {names[250]}
            assert all(index.child(ROOT, name) for name in names if name != names[250])
            assert not index.child(ROOT, names[250])
            assert not index.child(ROOT, names[0] + b"x")
            check(index)
    assert PROBES < 300


def test_a_deep_tree_needs_few_descriptors(fresh_dir: Path) -> None:
    depth = 1500
    layer = fresh_dir / "layer"
    layer.mkdir()
    fd = os.open(layer, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    with make(fresh_dir / "index", [layer, layer]) as index:
        row = row_of(index, b"/".join([b"d"] * depth + [b"f"]))
        assert index.path(row) == b"d/" * depth + b"f"
        assert index.layer(row) == 1
        check(index)


def test_names_of_every_length(fresh_dir: Path) -> None:
    names = ["n" * length for length in range(1, 256)]
    with make(fresh_dir / "index", [fill(fresh_dir / "layer", names)]) as index:
        assert [index.name(row) for row in index.children(ROOT)] == [os.fsencode(name) for name in names]
        assert all(index.child(ROOT, os.fsencode(name)) for name in names)
        check(index)


def test_a_layer_that_vanishes_is_told(fresh_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fill(fresh_dir / "layer", ["a", "d/b"])
    inner = os.stat

    def stat_late(name: bytes, *, dir_fd: int, follow_symlinks: bool) -> os.stat_result:
        if name == b"a":
            (layer / "a").unlink(missing_ok=True)
        return inner(name, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "stat", stat_late)
    with pytest.raises(FailedPrecondition, match="'a' is another file now"):
        make(fresh_dir / "index", [layer])
    assert not [name for name in os.listdir(fresh_dir) if "index" in name]


def test_orders_of_another_overlay_are_refused(fresh_dir: Path) -> None:
    layer = fill(fresh_dir / "layer", ["d/"])
    os.setxattr(layer / "d", "user.overlay.redirect", b"/e")  # the kernel follows none with userxattr either
    with make(fresh_dir / "index", [layer]) as index:
        assert not index.has_xattrs(row_of(index, b"d"))


@pytest.mark.root
@pytest.mark.parametrize("order", ["redirect", "metacopy"])
def test_trusted_orders_are_refused(fresh_dir: Path, order: str) -> None:
    layer = fill(fresh_dir / "layer", ["d/x"])
    os.setxattr(layer / "d" / "x", f"trusted.overlay.{order}", b"/e")
    fd = os.open(layer, os.O_RDONLY)
    with pytest.raises(Unsupported, match=f"'x' takes its content from another place.*{order}"):
        build(fresh_dir / "index", [fd])
    os.close(fd)


@pytest.mark.root
def test_a_mount_inside_a_layer_is_busy(fresh_dir: Path) -> None:
    layer = fill(fresh_dir / "layer", ["d/"])
    syscalls.mount(b"tmpfs", os.fsencode(layer / "d"), b"tmpfs", 0)
    try:
        with pytest.raises(Busy, match=r"something is mounted at .*d"):
            make(fresh_dir / "index", [layer])
    finally:
        syscalls.umount(os.fsencode(layer / "d"))


@pytest.mark.root
def test_a_full_disk_leaves_nothing(fresh_dir: Path) -> None:
    layer = fill(fresh_dir / "layer", [f"{number:0200}" for number in range(500)])
    (small := fresh_dir / "small").mkdir()
    syscalls.mount(b"tmpfs", os.fsencode(small), b"tmpfs", 0, b"size=64k")
    try:
        with pytest.raises(NoSpace):
            make(small / "index", [layer])
        assert not os.listdir(small)
    finally:
        syscalls.umount(os.fsencode(small))


@pytest.mark.root
def test_inodes_of_several_file_systems_differ(fresh_dir: Path) -> None:
    with ExitStack() as stack:
        layers: list[Path] = []
        for name in "12":
            (place := fresh_dir / name).mkdir()
            syscalls.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0)
            stack.callback(syscalls.umount, os.fsencode(place))
            layers.append(fill(place / "layer", [f"{name}{number}" for number in range(5)]))
        with make(fresh_dir / "index", layers) as index:
            rows = index.children(ROOT)
            assert len({index.ino(row) for row in rows}) == len(rows) == 10
            assert index.ino(rows[0]) == (layers[0] / "10").stat().st_ino
            assert [layer.ordinal for layer in index.layer_table] == [0, 1]


@pytest.mark.root
@pytest.mark.driver("btrfs")
def test_inodes_of_subvolumes_differ(btrfs_mount: Path, fresh_dir: Path) -> None:
    layers = [btrfs_mount / "index-1", btrfs_mount / "index-2"]
    for layer in (*layers, layers[0] / "inner"):
        subprocess.run(["btrfs", "-q", "subvolume", "create", layer], check=True)
    fill(layers[0], ["a", "inner/b"])
    fill(layers[1], ["c"])
    with make(fresh_dir / "index", layers) as index:
        rows = [row_of(index, path) for path in (b"a", b"inner/b", b"c", b"inner")]
        assert len({index.ino(row) for row in rows}) == len(rows)
        assert [layer.ordinal for layer in index.layer_table] == [0, 1]
        check(index)


def test_inode_numbers_that_do_not_fit_are_mixed() -> None:
    plain = [unique_ino(ino, ordinal) for ino in (1, 5, 1 << 47) for ordinal in (0, 1, 9)]
    large = [unique_ino((1 << 60) + ino, ordinal) for ino in (1, 5) for ordinal in (1, 9, 1 << 20)]
    assert len({*plain, *large}) == len(plain) + len(large)
    assert all(0 < ino < 1 << 64 for ino in (*plain, *large))


def test_an_index_of_nothing_is_a_mistake(fresh_dir: Path) -> None:
    with pytest.raises(InvalidArgument):
        make(fresh_dir / "index", [])
    with pytest.raises(InvalidArgument, match="65 bytes"):
        make(fresh_dir / "index", [fill(fresh_dir / "layer", [])], identity=b"x" * 65)
    with pytest.raises(NotFound):
        Index.open(fresh_dir / "index")


@pytest.mark.rootless
def test_an_ordinary_user_builds_and_reads(run_rootless: Rootless, rootless_dir: Path) -> None:
    def body() -> None:
        base, top = fill(rootless_dir / "base", ["a", "b/c"]), fill(rootless_dir / "top", ["-a", "b/d"])
        os.setxattr(top / "b", "user.overlay.opaque", b"y")
        with make(rootless_dir / "index", [base, top]) as index:
            assert sorted(seen_by(index)) == [b"", b"b", b"b/d"]

    run_rootless(body)


@pytest.mark.rootless
def test_a_directory_that_may_not_be_read_is_told(run_rootless: Rootless, rootless_dir: Path) -> None:
    def body() -> str:
        layer = fill(rootless_dir / "layer", ["d/x"])
        (layer / "d").chmod(0)
        try:
            make(rootless_dir / "index", [layer]).close()
        except Exception as error:  # noqa: BLE001  its class cannot be imported by name in the child only
            return f"{type(error).__name__}: {error}"
        finally:
            (layer / "d").chmod(0o755)
        return ""

    assert run_rootless(body).startswith("PermissionDenied: cannot build the index of layers: Permission denied")


def test_a_kernel_without_listxattrat_is_enough(fresh_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fill(fresh_dir / "layer", ["plain", "with", "d/"])
    os.setxattr(layer / "with", "user.a", b"")
    monkeypatch.setattr(syscalls, "_NR_LISTXATTRAT", 9999)  # a call that no kernel has
    with make(fresh_dir / "index", [layer]) as index:
        assert [index.has_xattrs(row) for row in index.children(ROOT)] == [False, False, True]
        assert seen_by(index) == seen_in(os.fsencode(layer))


# -- files that are wrong ----------------------------------------------------------------------------------------------


@pytest.fixture
def whole(fresh_dir: Path) -> bytes:
    """Give the bytes of an index with something in every section."""
    base = fill(fresh_dir / "base", ["a", "b", "d/x", "d/y", "e/z"])
    os.link(base / "a", base / "d" / "link")
    (base / "symlink").symlink_to("a/b")
    top = fill(fresh_dir / "top", ["-b", "d/new", "e/z"])
    make(fresh_dir / "index", [base, top]).close()
    return (fresh_dir / "index").read_bytes()


@contextmanager
def opened(path: Path, data: bytes | bytearray) -> Iterator[Index]:
    path.write_bytes(data)
    with Index.open(path) as index:
        yield index


def test_a_short_file_is_corrupt(fresh_dir: Path, whole: bytes) -> None:
    path = fresh_dir / "short"
    lengths = [*range(0, len(whole), 97), HEADER_SIZE, len(whole) - 1]
    for length in lengths:
        with pytest.raises(Corrupt), opened(path, whole[:length]):
            pass
    with pytest.raises(Corrupt, match="should have"), opened(path, whole + b"\0"):
        pass


def test_a_byte_that_changed_is_corrupt(fresh_dir: Path, whole: bytes) -> None:
    path = fresh_dir / "changed"
    places = unpack_header(whole[:HEADER_SIZE], len(whole)).places
    used = [number for place in places for number in range(place.offset, place.offset + place.size)]
    chance = random.Random(1)
    for number in (*range(0, HEADER_SIZE, 61), *chance.sample(used, 300)):
        data = bytearray(whole)
        data[number] ^= 1 << chance.randrange(8)
        with pytest.raises(Corrupt), opened(path, data) as index:
            index.verify()


def _edited(whole: bytes, edit: Callable[[bytearray], None]) -> bytearray:
    """Change an index, and make all checksums right again."""
    data = bytearray(whole)
    edit(data)
    header = unpack_header(whole[:HEADER_SIZE], len(whole))
    places = tuple(
        place._replace(checksum=crc(data[place.offset : place.offset + place.size])) for place in header.places
    )
    data[:HEADER_SIZE] = pack_header(header._replace(places=places))
    return data


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_lies_is_corrupt_or_harmless(fresh_dir: Path, whole: bytes, data: st.DataObject) -> None:
    places = unpack_header(whole[:HEADER_SIZE], len(whole)).places
    place = data.draw(st.sampled_from([place for place in places if place.size]))
    width = data.draw(st.sampled_from([1, 2, 4, 8]))
    start = place.offset + data.draw(st.integers(0, (place.size - 1) // width)) * width
    value = data.draw(st.one_of(st.integers(0, 40), st.integers(0, (1 << 8 * width) - 1))) & (1 << 8 * width) - 1

    def edit(content: bytearray) -> None:
        content[start : start + width] = value.to_bytes(width, "little")

    with opened(fresh_dir / "lies", _edited(whole, edit)) as index:
        try:
            check(index)
        except Corrupt:
            return
        pending = [ROOT]
        for row in pending:
            pending.extend(index.children(row))
            assert len(pending) <= index.count
            assert len(index.entry(row)) == ENTRY_SIZE
            assert len(index.record(row)) >= RECORD_NAME
            index.path(row)
            index.aliases(row)
            if stat.S_ISLNK(index.mode(row)):
                index.target(row)
            bytes(index.records(row, 0, 4096))
            index.dirents(row, 0, 4096)


def test_a_circle_of_directories_ends(fresh_dir: Path, whole: bytes) -> None:
    header = unpack_header(whole[:HEADER_SIZE], len(whole))

    def edit(content: bytearray) -> None:
        rows = header.places[Section.DIRECTORY_ROW]
        parents = header.places[Section.PARENTS]
        for number in range(2, header.directories + 1):
            content[rows.offset + 4 * number :][:4] = (2).to_bytes(4, "little")
        content[parents.offset + 8 : parents.offset + 12] = (2).to_bytes(4, "little")
        content[rows.offset + 8 : rows.offset + 12] = (2).to_bytes(4, "little")

    with opened(fresh_dir / "circle", _edited(whole, edit)) as index:
        with pytest.raises(Corrupt, match="no tree"):
            index.path(2)
        with pytest.raises(Corrupt):
            check(index)


def test_another_file_is_no_index(fresh_dir: Path) -> None:
    for content in (b"", b"layerfsI", b"\0" * 5000, os.urandom(9000)):
        with pytest.raises(Corrupt), opened(fresh_dir / "other", content):
            pass
