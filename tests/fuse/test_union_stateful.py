"""The union beside a plain directory: the same operations on both, and everything visible compared after each."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.database import InMemoryExampleDatabase
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from layerfs.contract import Mount, Quota
from layerfs.kernel import mounting, syscalls
from layerfs.tree import copy_tree
from layerfs_fuse.index.markers import TRUSTED
from layerfs_fuse.union import NOW, Changes, Handle, Options, Union
from layerfs_fuse.union.ledger import write_quota
from tests.fuse import layer_trees
from tests.support import drivers
from tests.support.rootless import Rootless
from tests.support.unions import Client, Seen, Stack, tree_of

OLD = 1_000_000_000_123_456_789
_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, bits, 0xFFFFFFFF) for tag, bits in ((0x01, 7), (0x04, 5), (0x10, 5), (0x20, 1))
)
NAMES = (b"a", b"b", b"c", b"\xff", b"n" * 255)
PATHS = st.lists(st.sampled_from(NAMES[:3]), min_size=1, max_size=3).map(b"/".join) | st.sampled_from(NAMES)
DATA = st.sampled_from([b"", b"short", b"x" * 70_000])
RENAME_ERRORS = {errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.ENOENT}


def make_layers(place: Path) -> tuple[list[Path], Path]:
    """Make three layers and what they show when merged, apart from them."""
    model, layers = place / "model", [place / f"layer{number}" for number in range(3)]
    model.mkdir()
    for path in ("a", "a/b", "a/b/a", "a/c", "b", "c", "c/c"):
        (model / path).mkdir()
    for path in ("a/a", "a/b/b", "a/b/a/c", "b/a", "b/b"):
        (model / path).write_bytes(path.encode() * 40_000)
    os.link(model / "a/a", model / "b/c")
    os.link(model / "a/a", model / "a/b/c")
    (model / "c/a").symlink_to("../a")
    os.mkfifo(model / "c/b")
    os.setxattr(model / "b/b", "user.layerfs", b"of a file")
    os.setxattr(model / "a/b", "user.layerfs", b"of a directory")
    age(model)
    copy_tree(model, layers[0])
    # A layer that hides a file and a directory, brings a file and an opaque directory.
    layers[1].mkdir()
    for path in ("a", "a/b", "c"):
        (layers[1] / path).mkdir()
    os.mknod(layers[1] / "a/b/b", stat.S_IFCHR, 0)
    os.mknod(layers[1] / "a/c", stat.S_IFCHR, 0)
    (layers[1] / "c/c").write_bytes(b"a file in the place of a directory")
    prefix = "trusted" if is_root() else "user"
    os.setxattr(layers[1] / "c", f"{prefix}.overlay.opaque", b"y")
    age(layers[1])
    layers[2].mkdir()
    (layers[2] / "a").mkdir(0o2775)
    (layers[2] / "a").chmod(0o2775)
    (layers[2] / "a/d").write_bytes(b"top")
    age(layers[2])
    (model / "a/b/b").unlink()
    (model / "a/c").rmdir()
    shutil.rmtree(model / "c")
    (model / "c").mkdir()
    (model / "c/c").write_bytes(b"a file in the place of a directory")
    os.removexattr(model / "a/b", "user.layerfs")
    (model / "a").chmod(0o2775)
    (model / "a/d").write_bytes(b"top")
    age(model)
    return layers, model


def is_root() -> bool:
    return os.geteuid() == 0


def age(root: Path) -> None:
    """Give everything an old time."""
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, ns=(OLD, OLD), follow_symlinks=False)
    os.utime(root, ns=(OLD, OLD))


@dataclass
class Held:
    """A file that is open on both sides."""

    fd: int
    handle: Handle
    writable: bool

    def close(self) -> None:
        os.close(self.fd)
        self.handle.close()


class UnionBesideDirectory(RuleBasedStateMachine):
    """The machine; ``kernel`` (as root) also lets the kernel's overlay mount the result."""

    kernel = False
    options: Options | None = None
    quota: Quota | None = None

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.stack_of_contexts = ExitStack()
        self.place = self.stack_of_contexts.enter_context(drivers.workspace("union"))
        # First, for Hypothesis may end an example in the middle of the next line.
        self.stack_of_contexts.callback(os.umask, os.umask(0))
        layers, self.model = self.make_layers(data)
        quota = self.place / "quota" if self.quota else None
        if quota and self.quota:
            write_quota(quota, self.quota)
        self.stack = Stack(self.place, layers, options=self.options, quota=quota)
        shutil.copymode(self.model, self.stack.upper_path)
        os.utime(self.stack.upper_path, ns=(OLD, OLD))
        self.stack.remount()
        self.client = Client(self.stack)
        self.held: list[Held] = []
        self.inodes: dict[int, int] = {}
        self.begun = time.time_ns() - 10_000_000

    def teardown(self) -> None:
        if not hasattr(self, "stack"):
            self.stack_of_contexts.close()
            return
        try:
            while self.held:
                self.held.pop().close()
            self.compare()
            if self.kernel:
                self.compare_with_kernel()
        finally:
            self.stack.close()
            self.stack_of_contexts.close()

    def make_layers(self, data: st.DataObject) -> tuple[list[Path], Path]:  # noqa: ARG002  others draw theirs
        return make_layers(self.place)

    # -- both sides ----------------------------------------------------------------------------------------------------

    def path(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.model), path)

    def through_link(self, path: bytes) -> bool:
        parts = path.split(b"/")
        return any(os.path.islink(self.path(b"/".join(parts[:end]))) for end in range(1, len(parts)))

    def kind(self, path: bytes) -> int:
        try:
            return stat.S_IFMT(os.lstat(self.path(path)).st_mode)
        except OSError:
            return 0

    def both(self, ours: Callable[[], object], theirs: Callable[[], object], *, loose: bool = False) -> bool:
        """Do the same on both sides; tell whether it worked."""
        expected = outcome(theirs)
        found = outcome(ours)
        if loose and expected in RENAME_ERRORS:
            assert found in RENAME_ERRORS, (found, expected)
        else:
            assert found == expected, (found, expected)
        return expected == 0

    @rule(path=PATHS, mode=st.sampled_from([0o644, 0o600, 0o4755, 0o2755]), data=DATA)
    def create(self, path: bytes, mode: int, data: bytes) -> None:
        if self.through_link(path):
            return

        def theirs() -> None:
            os.umask(0o022)
            try:
                fd = os.open(self.path(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
            finally:
                os.umask(0)
            os.write(fd, data)
            os.close(fd)

        self.both(lambda: self.client.create(path, mode, data), theirs)

    @rule(path=PATHS, data=DATA, offset=st.sampled_from([0, 5, 100_000]))
    def write(self, path: bytes, data: bytes, offset: int) -> None:
        if self.through_link(path) or self.kind(path) not in (0, stat.S_IFREG):
            return

        def theirs() -> None:
            fd = os.open(self.path(path), os.O_WRONLY)
            os.pwrite(fd, data, offset)
            os.close(fd)

        self.both(lambda: self.client.write(path, data, offset), theirs)

    @rule(path=PATHS, size=st.sampled_from([0, 3, 50_000, 1_000_000]))
    def truncate(self, path: bytes, size: int) -> None:
        if self.through_link(path) or self.kind(path) not in (0, stat.S_IFREG):
            return
        self.both(
            lambda: self.union.set_attributes(self.client.node(path), Changes(size=size)),
            lambda: os.truncate(self.path(path), size),
        )

    @property
    def union(self) -> Union:
        return self.stack.union

    @rule(path=PATHS, mode=st.sampled_from([0o755, 0o700, 0o2775]))
    def mkdir(self, path: bytes, mode: int) -> None:
        if self.through_link(path):
            return

        def theirs() -> None:
            os.umask(0o022)
            try:
                os.mkdir(self.path(path), mode)
            finally:
                os.umask(0)

        # mkdir(2) leaves set-group-id out, which FUSE's caller has done before it asks.
        self.both(
            lambda: self.client.count(
                self.union.make_directory(*self.client.at(path), mode & 0o777, self.client.caller)
            ),
            theirs,
        )

    @rule(path=PATHS, kind=st.sampled_from(["symlink", "fifo", "socket"]))
    def make(self, path: bytes, kind: str) -> None:
        if self.through_link(path):
            return
        mode = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "symlink": 0}[kind] | 0o640

        def ours() -> None:
            if kind == "symlink":
                self.client.count(self.union.make_symlink(*self.client.at(path), b"a/b", self.client.caller))
            else:
                self.client.count(self.union.make_node(*self.client.at(path), mode, 0, self.client.caller))

        def theirs() -> None:
            if kind == "symlink":
                os.symlink(b"a/b", self.path(path))
            else:
                os.mknod(self.path(path), mode)

        self.both(ours, theirs)

    @rule(path=PATHS, new=PATHS)
    def link(self, path: bytes, new: bytes) -> None:
        if self.through_link(path) or self.through_link(new) or self.kind(path) == stat.S_IFDIR:
            return
        self.both(
            lambda: self.client.count(self.union.link(self.client.node(path), *self.client.at(new))),
            lambda: os.link(self.path(path), self.path(new), follow_symlinks=False),
        )

    @rule(path=PATHS)
    def unlink(self, path: bytes) -> None:
        if not self.through_link(path):
            self.both(lambda: self.union.unlink(*self.client.at(path)), lambda: os.unlink(self.path(path)))

    @rule(path=PATHS)
    def rmdir(self, path: bytes) -> None:
        if not self.through_link(path):
            self.both(lambda: self.union.remove_directory(*self.client.at(path)), lambda: os.rmdir(self.path(path)))

    @rule(path=PATHS)
    def remove_tree(self, path: bytes) -> None:
        if self.through_link(path) or self.kind(path) != stat.S_IFDIR:
            return
        for below in sorted((one for one in tree_of(self.model) if one.startswith(path + b"/")), reverse=True):
            (self.rmdir if self.kind(below) == stat.S_IFDIR else self.unlink)(below)
        self.rmdir(path)

    @rule(path=PATHS, new=PATHS, flags=st.sampled_from([0, 0, 0, 1, 2]))
    def rename(self, path: bytes, new: bytes, flags: int) -> None:
        if self.through_link(path) or self.through_link(new):
            return

        def ours() -> None:
            self.union.rename(*self.client.at(path), *self.client.at(new), flags)

        def theirs() -> None:
            call = {0: lambda _, a, __, b: os.rename(a, b), 1: syscalls.rename_noreplace, 2: syscalls.rename_exchange}
            call[flags](-100, self.path(path), -100, self.path(new))

        self.both(ours, theirs, loose=True)

    @rule(path=PATHS, mode=st.sampled_from([0o600, 0o755, 0o4755, 0o2755, 0o1777]))
    def chmod(self, path: bytes, mode: int) -> None:
        if self.through_link(path) or self.kind(path) == stat.S_IFLNK:
            return
        if not is_root() and self.kind(path) == stat.S_IFDIR:
            mode |= stat.S_IRWXU  # without it nobody could compare what is inside
        self.both(
            lambda: self.union.set_attributes(self.client.node(path), Changes(mode=mode)),
            lambda: os.chmod(self.path(path), mode),
        )

    @precondition(lambda _: is_root())
    @rule(path=PATHS, uid=st.sampled_from([None, 0, 7]), gid=st.sampled_from([None, 0, 8]))
    def chown(self, path: bytes, uid: int | None, gid: int | None) -> None:
        if self.through_link(path) or uid is gid is None:
            return
        ids = (-1 if uid is None else uid, -1 if gid is None else gid)
        self.both(
            lambda: self.union.set_attributes(self.client.node(path), Changes(uid=uid, gid=gid)),
            lambda: os.chown(self.path(path), *ids, follow_symlinks=False),
        )

    @rule(path=PATHS, mtime=st.sampled_from([1, OLD, -5_000_000_001, NOW]))
    def utime(self, path: bytes, mtime: int) -> None:
        if self.through_link(path):
            return
        times = None if mtime == NOW else (OLD, mtime)
        self.both(
            lambda: self.union.set_attributes(
                self.client.node(path), Changes(atime_ns=OLD if mtime != NOW else NOW, mtime_ns=mtime)
            ),
            lambda: (
                os.utime(self.path(path), None, follow_symlinks=False)
                if times is None
                else os.utime(self.path(path), ns=times, follow_symlinks=False)
            ),
        )

    @rule(path=PATHS, name=st.sampled_from([b"user.one", b"user.overlay.opaque"]), flags=st.sampled_from([0, 0, 1, 2]))
    def setxattr(self, path: bytes, name: bytes, flags: int) -> None:
        if self.through_link(path) or self.kind(path) not in (0, stat.S_IFREG, stat.S_IFDIR):
            return
        self.both(
            lambda: self.union.set_xattr(self.client.node(path), name, b"value", flags),
            lambda: os.setxattr(self.path(path), name, b"value", flags),
        )

    @rule(path=PATHS, name=st.sampled_from([b"user.one", b"user.layerfs"]))
    def removexattr(self, path: bytes, name: bytes) -> None:
        if self.through_link(path) or self.kind(path) not in (0, stat.S_IFREG, stat.S_IFDIR):
            return
        self.both(
            lambda: self.union.remove_xattr(self.client.node(path), name),
            lambda: os.removexattr(self.path(path), name),
        )

    @rule(path=PATHS, name=st.sampled_from([b"system.posix_acl_default", b"system.posix_acl_access"]))
    def acl(self, path: bytes, name: bytes) -> None:
        if self.through_link(path) or self.kind(path) not in (0, stat.S_IFDIR):
            return
        self.both(
            lambda: self.union.set_xattr(self.client.node(path), name, _ACL),
            lambda: os.setxattr(self.path(path), name, _ACL),
        )

    # -- open files ----------------------------------------------------------------------------------------------------

    @rule(path=PATHS, flags=st.sampled_from([os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC]))
    def hold(self, path: bytes, flags: int) -> None:
        if self.through_link(path) or self.kind(path) != stat.S_IFREG or len(self.held) > 5:
            return
        handle = self.union.open(self.client.node(path), flags)
        self.held.append(Held(os.open(self.path(path), flags), handle, bool(flags & os.O_ACCMODE)))

    @rule(mode=st.sampled_from([0o600, 0o644]), path=PATHS)
    def temporary(self, mode: int, path: bytes) -> None:
        if self.through_link(path) or self.kind(path) != stat.S_IFDIR or len(self.held) > 5:
            return
        os.umask(0o022)
        fd = os.open(self.path(path), os.O_RDWR | os.O_TMPFILE, mode)
        os.umask(0)
        entry, handle = self.union.temporary(self.client.node(path), mode, os.O_RDWR, self.client.caller)
        self.client.count(entry)
        self.held.append(Held(fd, handle, writable=True))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 5), new=PATHS)
    def link_held(self, which: int, new: bytes) -> None:
        held = self.held[which % len(self.held)]
        if self.through_link(new):
            return

        def theirs() -> None:
            # Only with a descriptor does Python call linkat(2), which follows; absolute paths do not need it.
            os.link(b"/proc/self/fd/%d" % held.fd, self.path(new), dst_dir_fd=held.fd, follow_symlinks=True)

        def ours() -> None:
            self.client.count(self.union.link(held.handle.node, *self.client.at(new)))

        self.both(ours, theirs, loose=True)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 5), data=DATA)
    def write_held(self, which: int, data: bytes) -> None:
        held = self.held[which % len(self.held)]
        if held.writable:
            os.pwrite(held.fd, data, 3)
            assert self.client.put(held.handle, data, 3) == len(data)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 5), mode=st.sampled_from([0o600, 0o640]))
    def chmod_held(self, which: int, mode: int) -> None:
        held = self.held[which % len(self.held)]
        os.fchmod(held.fd, mode)
        self.union.set_attributes(held.handle.node, Changes(mode=mode))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 5))
    def close_held(self, which: int) -> None:
        self.held.pop(which % len(self.held)).close()

    # -- beyond operations ---------------------------------------------------------------------------------------------

    @rule()
    def forget(self) -> None:
        kept = {held.handle.node for held in self.held}
        self.client.forget(lambda node: node in kept)

    @rule()
    def remount(self) -> None:
        while self.held:
            self.held.pop().close()
        self.client.lookups.clear()
        self.stack.remount()

    # -- comparing -----------------------------------------------------------------------------------------------------

    @invariant()
    def compare(self) -> None:
        if not hasattr(self, "stack"):
            return
        theirs, ours = tree_of(self.model), self.client.tree()
        assert sorted(ours) == sorted(theirs)
        before, self.inodes = self.inodes, {}
        for path, expected in theirs.items():
            self.compare_one(path, ours[path], expected)
            if path:
                assert self.inodes.setdefault(expected.ino, ours[path].ino) == ours[path].ino, path
                assert before.get(expected.ino, ours[path].ino) == ours[path].ino, path
        assert len(set(self.inodes.values())) == len(self.inodes)
        for directory in self.union._directories.values():
            assert directory.live == sum(known > 0 for known in directory.children.values())
        for held in self.held:
            status = os.fstat(held.fd)
            assert held.handle.read(1 << 22, 0) == os.pread(held.fd, 1 << 22, 0)
            fields = self.client.fields(held.handle.node)
            assert (fields[1], fields[9], fields[10]) == (status.st_size, status.st_mode, status.st_nlink)

    def compare_one(self, path: bytes, ours: Seen, theirs: Seen) -> None:
        same = (ours.mode, ours.nlink, ours.uid, ours.gid, ours.rdev, ours.size, ours.content, ours.xattrs)
        expected = (
            *(theirs.mode, theirs.nlink, theirs.uid, theirs.gid),
            *(theirs.rdev, theirs.size, theirs.content, theirs.xattrs),
        )
        if path or self.kind(b""):
            assert same == expected, (path, same, expected)
        if theirs.mtime < self.begun:
            assert ours.mtime == theirs.mtime, path
        else:
            assert ours.mtime >= self.begun, path

    def compare_with_kernel(self) -> None:
        """Let the kernel's overlay mount the upper directory, and see the same tree."""
        ours = {path: seen.without_ino() for path, seen in self.client.tree().items()}
        self.stack.union.sync()
        lowers = ":".join(str(path) for path in reversed(self.stack.paths))
        options = (f"lowerdir={lowers}", f"upperdir={self.stack.upper_path}", f"workdir={self.stack.work_path}")
        with mounting.mounted([Mount("overlay", "overlay", options)]) as mounted:
            theirs = {path: seen.without_ino() for path, seen in tree_of(mounted).items()}
        assert sorted(ours) == sorted(theirs)
        for path, seen in theirs.items():
            # The kernel shows 1 link of merged directories, and of lower files as many as the layer has.
            links = stat.S_ISREG(seen.mode) and seen.nlink == ours[path].nlink
            assert unlinked(ours[path], links=links) == unlinked(seen, links=links), path


def unlinked(seen: Seen, *, links: bool) -> Seen:
    """Return the same without the number of links."""
    return seen if links else replace(seen, nlink=0)


class UnionOfDrawnLayers(UnionBesideDirectory):
    """The machine on layers that Hypothesis draws; what they show is what the kernel's overlay shows."""

    kernel = True

    def make_layers(self, data: st.DataObject) -> tuple[list[Path], Path]:
        trees = data.draw(st.lists(layer_trees.layers(privileged=True), min_size=1, max_size=3))
        layers = [self.place / f"layer{number}" for number in range(len(trees) + 1)]
        layers[0].mkdir()
        for tree, place in zip(trees, layers[1:], strict=True):
            layer_trees.write(tree, place, TRUSTED)
            age(place)
        lowers = ":".join(map(str, reversed(layers)))
        with mounting.mounted([Mount("overlay", "overlay", (f"lowerdir={lowers}",))]) as mounted:
            # The kernel lists whiteouts where nothing is below, and finds nothing there: cp complains and goes on.
            command = ["cp", "--archive", f"{mounted}/.", str(self.place / "model")]
            subprocess.run(command, check=False, capture_output=True)
        age(self.place / "model")
        return layers, self.place / "model"


def outcome(call: Callable[[], object]) -> int:
    """Return the errno of a call, or 0."""
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


def run(machine: type[UnionBesideDirectory]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("LAYERFS_EXAMPLES", "60")),
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            database=InMemoryExampleDatabase(),  # an ordinary user may not write below the checkout
        ),
    )


def test_union_and_directory_stay_the_same() -> None:
    run(type("Machine", (UnionBesideDirectory,), {"kernel": is_root()}))


@pytest.mark.rootless
def test_an_ordinary_users_union_and_directory_stay_the_same(run_rootless: Rootless) -> None:
    run_rootless(run, UnionBesideDirectory)


@pytest.mark.root
def test_union_of_drawn_layers_and_directory_stay_the_same() -> None:
    run(UnionOfDrawnLayers)
