"""The native list of changes of btrfs: the same answer as the walk of both trees, whatever was done between."""

from __future__ import annotations

import io
import logging
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import layerfs
from layerfs.contract import Candidates, NativeChanges, Snapshot, SnapshotId
from layerfs.errors import Corrupt, Unsupported
from layerfs.kernel import btrfs_send
from layerfs.layer.changes import Change, ChangeKind, changes
from layerfs.testing.driver_rules import active
from layerfs_backends.btrfs import BtrfsDriver, open_driver
from tests.support.images import BASE, EDIT, write_layout

BASE_ID = SnapshotId(1)


@pytest.fixture
def driver(btrfs_dir: Path) -> Iterator[BtrfsDriver]:
    opened = open_driver(btrfs_dir / "b", {})
    assert isinstance(opened, BtrfsDriver)
    yield opened
    for number in sorted(opened.ids(), reverse=True):
        opened.remove(number)


def _root(driver: BtrfsDriver, number: int) -> Path:
    return driver.layer_root(active(number)).path


def _populate(root: Path) -> None:
    """Make a tree with hard links across directories, and with everything else that has a name."""
    for directory in ("d", "d/e", "d/e/deep", "other", "many"):
        (root / directory).mkdir()
    for name in ("f", "g", "d/f", "d/e/f", "d/e/deep/f", "other/f"):
        (root / name).write_text(name)
    os.link(root / "f", root / "d/link")
    os.link(root / "f", root / "other/link")
    os.link(root / "d/e/f", root / "d/e/link")
    os.symlink("d/f", root / "symbolic")
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    for number in range(200):
        (root / f"many/{number}").write_text(str(number))
    os.setxattr(root / "g", "user.k", b"v")


def _check(driver: BtrfsDriver, number: int = 2, base: int = 1, *, most: int | None = None) -> list[Change]:
    """Compare the list of the candidates with that of the walk, with and without contents; return it."""
    parents = tuple(SnapshotId(one) for one in range(number - 1, 0, -1))
    found = driver.changed_paths(Snapshot(SnapshotId(number), active(1).kind, parents), SnapshotId(base))
    lower, upper = _root(driver, base), _root(driver, number)
    for verify in (False, True):
        listed = list(changes(lower, upper, verify_content=verify, candidates=found))
        assert listed == list(changes(lower, upper, verify_content=verify))
    if most is not None:
        assert len(found.paths | found.trees) <= most
    return listed


def _copy_over(root: Path) -> None:
    """Replace one name of a linked file by a file that looks the same: the others change without being touched."""
    shutil.copy2(root / "f", root / "aside")
    os.rename(root / "aside", root / "f")


def _keep_times(path: Path, change: Callable[[], object]) -> None:
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _socket(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mknod(path, stat.S_IFSOCK | 0o600)


def _subvolume(path: Path) -> None:
    subprocess.run(["btrfs", "-q", "subvolume", "create", path], check=True)
    (path / "file").write_text("nested")


EDITS: dict[str, str | Callable[[Path], object]] = {
    "nothing": "true",
    "content": "echo changed > d/f",
    "content with the same size and time": lambda root: _keep_times(
        root / "d/f", lambda: (root / "d/f").write_text("D/F")
    ),
    "mode": "chmod 4711 d/f",
    "owner": "chown -h 5:6 symbolic",
    "time": "touch -d @1 d/e/deep",
    "attribute": lambda root: os.setxattr(root / "g", "user.k", b"w"),
    "attribute gone": lambda root: os.removexattr(root / "g", "user.k"),
    "root": "chmod 700 .",
    "deletion": "rm d/e/deep/f",
    "deletion of a tree": "rm -r d",
    "deletion and creation": "rm -r d; mkdir d; touch d/f",
    "directory for file": "rm f; mkdir f; touch f/x",
    "file for directory": "rm -r d; echo d > d",
    "rename": "mv d renamed",
    "rename there and back": "mv d x; echo y > x/f; mv x d",
    "swap": "mv d aside; mv other d; mv aside other",
    "a child above its parent": "mv d/e e; mv d e/d; echo changed > e/d/f",
    "symbolic links": "ln -s ../../etc d/up; ln -s /etc/passwd absolute; ln -sf . symbolic",
    "new name": "ln f d/e/deep/third",
    "name gone": "rm other/link",
    "link broken": _copy_over,
    "link made": "ln -f g d/f",
    "same file by another link": lambda root: _keep_times(root / "d/e", lambda: _sh(root, "ln -f d/e/f d/e/link")),
    "socket": lambda root: _socket(root / "d/socket"),
    "socket for file": lambda root: _socket(root / "g"),
    "subvolume": lambda root: _subvolume(root / "d/e/volume"),
    "device": "rm device; mknod device c 1 5",
    "many": "for n in $(seq 0 3 199); do mv many/$n other/$n; done",
}


def _sh(root: Path, script: str) -> None:
    subprocess.run(["sh", "-ec", script], cwd=root, check=True)


def _edit(root: Path, name: str) -> None:
    edit = EDITS[name]
    if isinstance(edit, str):
        _sh(root, edit)
    else:
        edit(root)


@pytest.mark.root
@pytest.mark.parametrize("name", EDITS)
def test_the_answer_is_that_of_the_walk(name: str, driver: BtrfsDriver) -> None:
    driver.create(active(1))
    _populate(_root(driver, 1))
    driver.commit(active(1))
    driver.create(active(2, 1))
    _edit(_root(driver, 2), name)
    listed = _check(driver, most=None if name == "many" else 60)
    assert bool(listed) == (name not in {"nothing", "same file by another link"})
    driver.commit(active(2, 1))  # and once more without a snapshot for the time being
    assert _check(driver) == listed


@pytest.mark.root
def test_more_than_one_snapshot_up(driver: BtrfsDriver) -> None:
    driver.create(active(1))
    _populate(_root(driver, 1))
    driver.commit(active(1))
    for number, edit in ((2, "rename"), (3, "content of the renamed"), (4, "link broken")):
        driver.create(active(number, *range(number - 1, 0, -1)))
        if number == 3:
            (_root(driver, 3) / "renamed/f").write_text("z")
        else:
            _edit(_root(driver, number), edit)
        driver.commit(active(number))
    assert any(change.path == b"renamed/f" for change in _check(driver, 4))


_NAMES = st.sampled_from(["a", "b", "c", "d"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["file", "dir", "rename", "link", "symlink", "remove", "touch", "mode", "same"]), _PATHS, _PATHS
    ),
    max_size=12,
)


def _do(root: Path, step: tuple[str, str, str]) -> None:
    """Do one thing, if it can be done."""
    kind, one, other = step
    path = root / one
    try:
        match kind:
            case "file":
                path.write_text(other)
            case "dir":
                path.mkdir()
            case "rename":
                os.rename(path, root / other)
            case "link":
                os.link(path, root / other)
            case "symlink":
                path.symlink_to(f"../{other}")
            case "remove":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            case "touch":
                os.utime(path, ns=(len(other), len(other)))
            case "mode":
                path.chmod(0o700 + len(other))
            case _:
                shutil.copy2(path, root / "aside", follow_symlinks=False)
                os.rename(root / "aside", path)
    except (OSError, shutil.Error):
        pass


_numbers = iter(range(10, 1_000_000, 2))


@pytest.mark.root
@settings(
    max_examples=int(os.environ.get("LAYERFS_EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(before=_STEPS, after=_STEPS)
def test_the_answer_is_that_of_the_walk_whatever_happened(
    driver: BtrfsDriver, before: list[tuple[str, str, str]], after: list[tuple[str, str, str]]
) -> None:
    base = next(_numbers)
    driver.create(active(base))
    for step in before:
        _do(_root(driver, base), step)
    driver.commit(active(base))
    driver.create(active(base + 1, base))
    for step in after:
        _do(_root(driver, base + 1), step)
    _check(driver, base + 1, base)
    driver.remove(SnapshotId(base + 1))
    driver.remove(SnapshotId(base))


@pytest.mark.root
def test_nothing_stays_behind(driver: BtrfsDriver, btrfs_dir: Path) -> None:
    driver.create(active(1))
    driver.commit(active(1))
    driver.create(active(2, 1))
    assert isinstance(driver, NativeChanges)
    driver.changed_paths(active(2, 1), BASE_ID)
    place = btrfs_dir / "b/.changes"
    assert os.listdir(place) == ["lock"]
    assert set(driver.ids()) == {1, 2}
    driver._library.create_snapshot(_root(driver, 2), place / "killed", read_only=True)
    with driver._freezing(exclusive=False):
        driver.sweep()
        assert sorted(os.listdir(place)) == ["killed", "lock"], "somebody may be using it"
    open_driver(btrfs_dir / "b", {})
    assert os.listdir(place) == ["lock"]


@pytest.mark.root
def test_an_unknown_base_is_refused(driver: BtrfsDriver) -> None:
    """A base that is not read-only cannot be compared with: the kernel says so, and the core would walk."""
    driver.create(active(1))
    driver.create(active(2, 1))
    with pytest.raises(Unsupported, match="does not tell"):
        driver.changed_paths(active(2, 1), BASE_ID)


@pytest.mark.root
@pytest.mark.driver("btrfs")
def test_a_clone_uses_it_and_falls_back_loudly(
    btrfs_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with layerfs.open(btrfs_dir / "store", driver="btrfs") as store:
        store.import_image(write_layout(tmp_path / "image", [BASE, EDIT]))
        clone = store.clone("test:1", "web")
        with clone.mounted() as root:
            issue = root / "etc/issue"
            _keep_times(issue, lambda: issue.write_text(issue.read_text().upper()))
            (root / "var/big").unlink()
        asked: list[SnapshotId] = []
        real = BtrfsDriver.changed_paths

        def spy(self: BtrfsDriver, snapshot: Snapshot, base: SnapshotId) -> Candidates:
            asked.append(base)
            return real(self, snapshot, base)

        monkeypatch.setattr(BtrfsDriver, "changed_paths", spy)
        native = list(clone.changes())
        assert Change(ChangeKind.MODIFIED, b"etc/issue", 27) in native, "contents are compared where that is cheap"
        assert asked == [store.snapshotter.snapshot(store.image("test:1").top).id]
        assert list(store.changes("test:1", "web", verify_content=True)) == native
        image = clone.commit("test:2")
        assert list(store.changes("test:2", "web", verify_content=True)) == []
        assert len(asked) == 3, "the image that was committed is no parent of the clone"

        def refuse(*_: object) -> Candidates:
            raise Unsupported("not today")

        monkeypatch.setattr(BtrfsDriver, "changed_paths", refuse)
        with caplog.at_level(logging.WARNING):
            assert list(clone.changes(verify_content=True)) == native
        assert "not today" in caplog.text
        assert image.manifest.layers
        clone.remove()


def _stream(*commands: tuple[int, tuple[tuple[int, bytes], ...]]) -> bytes:
    data = b"btrfs-stream\0" + struct.pack("<I", 1)
    for number, attributes in commands:
        body = b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in attributes)
        data += struct.pack("<IHI", len(body), number, 0) + body
    return data


END = (21, ())


def test_paths_are_gathered_from_a_stream() -> None:
    data = _stream(
        (2, ((15, b"snapshot"), (1, bytes(16)))),
        (3, ((15, b"o257-9-0"), (3, bytes(8)))),
        (9, ((15, b"o257-9-0"), (16, b"d/new"))),
        (10, ((15, b"d/second"), (17, b"first"))),
        (8, ((15, b"o258-9-0"), (3, bytes(8)), (17, b"../../target"))),
        (20, ((15, b""), (10, bytes(12)))),
        END,
    )
    found = btrfs_send.gather(btrfs_send.commands(io.BytesIO(data + b"what follows")))
    assert found == Candidates(
        frozenset({b"o257-9-0", b"d/second", b"first", b"o258-9-0", b""}), frozenset({b"o257-9-0", b"d/new"})
    )


@pytest.mark.parametrize(
    "data",
    [
        b"btrfs-strea",
        b"x" * 20,
        b"btrfs-stream\0" + struct.pack("<I", 2),
        _stream(),
        _stream((12, ((15, b"a"),))),
        _stream(END)[:-1],
        _stream((12, ((15, b"a"),)))[:-1],
        b"btrfs-stream\0" + struct.pack("<IIHI", 1, 2, 12, 0) + b"xx",
    ],
)
def test_a_stream_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        list(btrfs_send.commands(io.BytesIO(data)))


def test_a_stream_that_never_began_has_no_commands() -> None:
    assert list(btrfs_send.commands(io.BytesIO())) == []
