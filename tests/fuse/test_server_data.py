"""Data through a mount: what many ways of writing leave is what any file system would hold (as fsx(8) tests)."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import select
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from layerfs.kernel import children, syscalls, userns
from layerfs.kernel.descriptors import opened
from layerfs.layerdirs import own_whiteouts
from layerfs_fuse import daemon, mounting
from layerfs_fuse.daemon import Ready
from layerfs_fuse.ids import AS_THEY_ARE, IdShift, parse_shift
from layerfs_fuse.index.builder import build
from layerfs_fuse.index.reader import Index
from layerfs_fuse.mounting import Attachment
from layerfs_fuse.session import Wishes
from layerfs_fuse.union import Options, Union, Upper
from tests.support.rootless import Rootless

pytestmark = pytest.mark.usefixtures("fuse_device")

LIMIT = 1 << 18
WAYS = {
    "passthrough": Wishes(passthrough=True),
    "no open": Wishes(passthrough=False),
    "no writeback": Wishes(passthrough=False, writeback=False),
}


def _serve(lower: Path, upper: Path, work: Path, target: Path, wishes: Wishes, shift: IdShift, ready: Ready) -> None:
    layer = os.open(lower, os.O_PATH | os.O_DIRECTORY)
    build(lower.with_name("index"), [layer], whiteouts=own_whiteouts(), sync=False)
    with (
        Index.open(lower.with_name("index")) as index,
        closing(Upper.open(upper, work)) as written,
        closing(Union(index, [layer], written, Options())) as union,
    ):
        attachment = Attachment(allow_other=os.geteuid() == 0)
        daemon.serve(union, target, attachment, wishes, ready=ready, users=shift, groups=shift)


@contextmanager
def union_at(directory: Path, wishes: Wishes, shift: IdShift = AS_THEY_ARE) -> Iterator[Path]:
    """Mount what is in ``lower`` below a fresh upper directory; at the end nothing of it runs any more."""
    lower, upper, work, target = (directory / name for name in ("lower", "upper", "work", "mount"))
    for path in (lower, upper, work, target):
        path.mkdir(exist_ok=True)
    body = partial(_serve, lower, upper, work, target, wishes, shift)
    log = directory / "log"
    pid = daemon.start(body, "serve a test", log=log)
    process = os.pidfd_open(pid)
    try:
        yield target
    finally:
        mounting.detach(target)
        with closing_fd(process):
            wait_for_end(process)
    lines = log.read_text().splitlines()
    assert not [line for line in lines if " INFO " not in line]


@contextmanager
def closing_fd(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)


def wait_for_end(process: int) -> None:
    assert select.select([process], [], [], 20)[0], "the server does not end"


class Model:
    """A file as bytes, and the same as a file; each step does the same to both."""

    def __init__(self, path: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.path = path
        self.data = bytearray(path.read_bytes()) if path.exists() else bytearray()
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def close(self) -> None:
        os.close(self.fd)

    def _range(self) -> tuple[int, int]:
        start = self.random.randrange(LIMIT)
        return start, min(LIMIT, start + self.random.choice((1, 7, 100, 4096, 5000, 65536)))

    def _grow(self, size: int) -> None:
        self.data += bytes(max(0, size - len(self.data)))

    def write(self) -> None:
        start, stop = self._range()
        block = self.random.randbytes(stop - start)
        self._grow(stop)
        self.data[start:stop] = block
        assert os.pwrite(self.fd, block, start) == len(block)

    def append(self) -> None:
        block = self.random.randbytes(self.random.randrange(1, 3000))
        if len(self.data) + len(block) > LIMIT:
            return
        with self.path.open("ab") as file:
            file.write(block)
        self.data += block

    def truncate(self) -> None:
        size = self.random.randrange(LIMIT)
        if self.random.random() < 0.5:
            os.ftruncate(self.fd, size)
        else:
            os.truncate(self.path, size)
        self._grow(size)
        del self.data[size:]

    def empty(self) -> None:
        if self.random.random() < 0.2:
            self.path.write_bytes(b"anew")
            self.data[:] = b"anew"

    def map(self) -> None:
        if not self.data:
            return
        with mmap.mmap(self.fd, len(self.data)) as view:
            start = self.random.randrange(len(self.data))
            block = self.random.randbytes(min(5000, len(self.data) - start))
            assert view[start : start + len(block)] == self.data[start : start + len(block)]
            view[start : start + len(block)] = block
            self.data[start : start + len(block)] = block

    def allocate(self) -> None:
        start, stop = self._range()
        os.posix_fallocate(self.fd, start, stop - start)
        self._grow(stop)

    def copy(self) -> None:
        start, stop = self._range()
        stop = min(stop, len(self.data))
        target = self.random.randrange(LIMIT // 2, LIMIT)
        length = min(stop - start, LIMIT - target)
        if length <= 0 or start + length > target:
            return
        done = 0
        with suppress(OSError):  # EXDEV, EINVAL: it may always refuse
            done = os.copy_file_range(self.fd, self.fd, length, start, target)
        self._grow(target + done if done else 0)
        self.data[target : target + done] = self.data[start : start + done]

    def reopen(self) -> None:
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)

    def sync(self) -> None:
        self.random.choice((os.fsync, os.fdatasync))(self.fd)

    def change_mode(self) -> None:
        os.chmod(self.path, self.random.choice((0o600, 0o644, 0o640)))

    def rename(self) -> None:
        new = self.path.with_name(self.random.choice(("one", "two")))
        self.path.rename(new)
        self.path = new

    def check(self) -> None:
        assert os.fstat(self.fd).st_size == os.stat(self.path).st_size == len(self.data)
        start, stop = self._range()
        assert os.pread(self.fd, stop - start, start) == self.data[start:stop]

    def step(self) -> None:
        steps: tuple[Callable[[], None], ...] = (
            self.write,
            self.write,
            self.append,
            self.truncate,
            self.empty,
            self.map,
            self.allocate,
            self.copy,
            self.reopen,
            self.sync,
            self.change_mode,
            self.rename,
        )
        self.random.choice(steps)()
        self.check()


def many_writes(directory: Path, wishes: Wishes, seeds: range, steps: int) -> None:
    for seed in seeds:
        place = directory / str(seed)
        (place / "lower").mkdir(parents=True)
        (place / "lower" / "one").write_bytes(random.Random(seed).randbytes(30_000))
        with union_at(place, wishes) as target:
            model = Model(target / "one", seed)
            with closing(model):
                for _ in range(steps):
                    model.step()
            assert model.path.read_bytes() == model.data
        assert (place / "upper" / model.path.name).read_bytes() == model.data
        assert (place / "lower" / "one").read_bytes() == random.Random(seed).randbytes(30_000)


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS)
def test_data_is_what_was_written(fresh_dir: Path, way: str) -> None:
    many_writes(fresh_dir, WAYS[way], range(4), 300)


@pytest.mark.rootless
def test_data_of_an_ordinary_user(run_rootless: Rootless, rootless_dir: Path) -> None:
    run_rootless(many_writes, rootless_dir, WAYS["no open"], range(10, 13), 300)


def in_a_namespace(directory: Path) -> None:
    userns.enter()
    many_writes(directory, WAYS["no open"], range(20, 22), 300)


@pytest.mark.rootless
def test_data_in_a_user_namespace(run_rootless: Rootless, rootless_dir: Path) -> None:
    run_rootless(in_a_namespace, rootless_dir)


@pytest.fixture(params=WAYS)
def mounted(request: pytest.FixtureRequest, fresh_dir: Path) -> Iterator[Path]:
    """Give a mount with a file `lower` of the lower layer, served in each way in turn; as root."""
    (fresh_dir / "lower").mkdir()
    (fresh_dir / "lower" / "lower").write_bytes(b"below" * 1000)
    with union_at(fresh_dir, WAYS[request.param]) as target:
        yield target


def told(path: Path, cached: str) -> str:
    """Ask statx(2) for everything, and for what the server says now if ``cached`` is "never"."""
    words: list[str | Path] = ["stat", f"--cached={cached}", "--format=%W %i %f %h %u %g %s %b %t %T %X %Y %Z", path]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.mark.root
def test_the_time_of_birth_is_that_of_the_file_below(mounted: Path) -> None:
    (mounted / "new").write_bytes(b"new")
    os.mknod(mounted / "device", stat.S_IFCHR | 0o600, os.makedev(300, 70_000))
    above = mounted.parent
    for name, where in (("lower", "lower"), ("new", "upper"), ("device", "upper")):
        born, *others = told(mounted / name, "never").split()
        assert born == told(above / where / name, "never").split()[0] != "0"
        assert others == told(mounted / name, "default").split()[1:]


@pytest.mark.root
def test_owners_are_shifted_also_for_statx(fresh_dir: Path) -> None:
    (fresh_dir / "lower").mkdir()
    (fresh_dir / "lower/lower").touch()
    os.chown(fresh_dir / "lower/lower", 1000, 1000)
    with union_at(fresh_dir, WAYS["passthrough"], parse_shift("0:1000:10")) as target:
        assert told(target / "lower", "never").split()[4:6] == ["0", "0"]


@pytest.mark.root
def test_holes_are_found_or_denied_but_never_data(mounted: Path) -> None:
    fd = os.open(mounted / "sparse", os.O_RDWR | os.O_CREAT)
    with closing_fd(fd):
        os.pwrite(fd, b"x", 1 << 20)
        assert os.lseek(fd, 0, os.SEEK_DATA) <= 1 << 20
        assert os.lseek(fd, 1 << 20, os.SEEK_DATA) == 1 << 20
        assert os.lseek(fd, 0, os.SEEK_HOLE) in (0, (1 << 20) + 1)


@pytest.mark.root
def test_a_file_that_is_open_keeps_its_data_when_it_is_unlinked(mounted: Path) -> None:
    for name in ("lower", "new"):
        with (mounted / name).open("a+b", buffering=0) as file:
            file.write(b"more")
            (mounted / name).unlink()
            assert os.fstat(file.fileno()).st_nlink == 0
            file.write(b"and more")
            file.seek(0)
            assert file.read().endswith(b"moreand more")
        assert not (mounted / name).exists()


@pytest.mark.root
def test_a_reader_from_before_the_copy_up_sees_one_of_both(mounted: Path) -> None:
    with (mounted / "lower").open("rb", buffering=0) as before:
        assert before.read(5) == b"below"
        with (mounted / "lower").open("r+b", buffering=0) as file:
            file.write(b"ABOVE")
            assert os.pread(file.fileno(), 5, 0) == b"ABOVE"
            assert os.fstat(file.fileno()).st_ino == os.fstat(before.fileno()).st_ino
        assert (mounted / "lower").read_bytes().startswith(b"ABOVEbelow")
        assert os.pread(before.fileno(), 5, 0) in (b"below", b"ABOVE")
        assert (mounted / "lower").stat().st_nlink == 1


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS)
def test_what_is_copied_up_below_readers_can_be_opened_again(fresh_dir: Path, way: str) -> None:
    """The kernel takes a lookup of the new node back while the node is open (3 opens in 100 failed for that)."""
    (fresh_dir / "lower").mkdir()
    for number in range(200):
        (fresh_dir / "lower" / str(number)).write_bytes(b"below" * 1000)
    with union_at(fresh_dir, WAYS[way]) as target:
        for number in range(200):
            path = target / str(number)
            with path.open("rb", buffering=0) as before:
                assert before.read(5) == b"below"
                with path.open("r+b", buffering=0) as file:
                    file.write(b"ABOVE")
                assert path.read_bytes().startswith(b"ABOVEbelow")
                assert os.pread(before.fileno(), 5, 0) in (b"below", b"ABOVE")


@pytest.mark.root
def test_modes_change_below_who_has_it_open(mounted: Path) -> None:
    with (mounted / "lower").open("rb", buffering=0) as before:
        (mounted / "lower").chmod(0o600)
        with (mounted / "lower").open("rb") as after:
            assert after.read() == b"below" * 1000
        with (mounted / "lower").open("r+b") as writer:
            writer.write(b"W")
        assert stat.S_IMODE((mounted / "lower").stat().st_mode) == 0o600
        assert os.pread(before.fileno(), 5, 0) in (b"below", b"Welow")
    assert (mounted / "lower").read_bytes() == b"W" + (b"below" * 1000)[1:]


@pytest.mark.root
def test_a_write_by_somebody_else_takes_the_right_to_run_as_the_owner(mounted: Path) -> None:
    mounted.chmod(0o777)
    for name in ("lower", "new"):
        path = mounted / name
        path.touch()
        path.chmod(0o6777)
        pid = children.fork()
        if pid == 0:
            os.setgroups([])
            os.setresgid(1000, 1000, 1000)
            os.setresuid(1000, 1000, 1000)
            os._exit(0 if _append(path) else 1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o777


def _append(path: Path) -> bool:
    try:
        with path.open("ab") as file:
            file.write(b"x")
    except OSError:
        return False
    return True


@pytest.mark.root
def test_temporary_files_have_a_name_only_when_they_get_one(mounted: Path) -> None:
    fd = os.open(mounted, os.O_RDWR | os.O_TMPFILE, 0o644)
    with closing_fd(fd):
        os.write(fd, b"data")
        assert os.fstat(fd).st_nlink == 0
        # With a descriptor it is linkat(2), which alone can follow; an absolute path does not use it.
        os.link(f"/proc/self/fd/{fd}", mounted / "named", src_dir_fd=fd, follow_symlinks=True)
    assert (mounted / "named").read_bytes() == b"data"


@pytest.mark.root
def test_copying_between_files(mounted: Path) -> None:
    with (mounted / "lower").open("rb") as source, (mounted / "copy").open("w+b") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 1 << 20) == 5000
    assert (mounted / "copy").read_bytes() == b"below" * 1000


@pytest.mark.root
def test_flags_of_files_are_those_below(mounted: Path) -> None:
    """As chattr(1) sets and lsattr(1) shows them; the file system of the upper directory has the last word."""
    nodump, below = 0x40, mounted.with_name("upper")
    (mounted / "directory").mkdir()
    for name in ("lower", "directory"):
        with opened(os.open(mounted / name, os.O_RDONLY)) as fd:
            syscalls.set_file_flags(fd, syscalls.file_flags(fd) | nodump)
        for root in (mounted, below):
            with opened(os.open(root / name, os.O_RDONLY)) as fd:
                assert syscalls.file_flags(fd) & nodump
    assert (mounted / "lower").read_bytes() == b"below" * 1000


@pytest.mark.root
def test_flags_that_forbid_changes_are_refused(mounted: Path) -> None:
    with opened(os.open(mounted / "lower", os.O_RDONLY)) as fd:
        for flag in (syscalls.FS_IMMUTABLE_FL, syscalls.FS_APPEND_FL):
            with pytest.raises(OSError, match="not supported"):
                syscalls.set_file_flags(fd, syscalls.file_flags(fd) | flag)
    assert not list(mounted.with_name("upper").iterdir())


@pytest.mark.root
def test_other_ioctls_are_refused_as_unknown(mounted: Path) -> None:
    with (mounted / "lower").open("rb") as file, pytest.raises(OSError, match="Inappropriate"):
        fcntl.ioctl(file.fileno(), 0x80047601, bytes(8))  # FS_IOC_GETVERSION, as if of an int


@pytest.mark.root
def test_big_lower_files_are_read_whole_and_in_any_order(fresh_dir: Path) -> None:
    (fresh_dir / "lower").mkdir()
    data = random.Random(1).randbytes(5_000_001)
    (fresh_dir / "lower" / "big").write_bytes(data)
    with union_at(fresh_dir, WAYS["no open"]) as target:
        fd = os.open(target / "big", os.O_RDWR)
        with closing_fd(fd):
            for start in (4_000_000, 0, 2_500_000, 4_999_999, 5_000_001, 6_000_000):
                assert os.pread(fd, 300_000, start) == data[start : start + 300_000]
            os.pwrite(fd, b"changed", 1_000_000)
            os.fsync(fd)
        (target / "big").rename(target / "moved")
        assert (target / "moved").read_bytes() == data[:1_000_000] + b"changed" + data[1_000_007:]


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS)
def test_removing_and_linking_lower_files_copies_no_data(fresh_dir: Path, way: str) -> None:
    (fresh_dir / "lower").mkdir()
    for number in range(5):
        (fresh_dir / "lower" / str(number)).write_bytes(bytes(100_000))
    with union_at(fresh_dir, WAYS[way]) as target:
        for number in range(5):
            assert (target / str(number)).stat().st_size == 100_000
            (target / str(number)).unlink()
        os.sync()
        assert sorted(os.listdir(target)) == []
    assert all(stat.S_ISCHR(path.lstat().st_mode) for path in (fresh_dir / "upper").iterdir())


@pytest.mark.root
def test_times_that_are_set_arrive(mounted: Path) -> None:
    for name in ("lower", "new"):
        path = mounted / name
        with path.open("ab") as file:
            file.write(b"x")
            file.flush()
            os.utime(file.fileno(), ns=(10**18 + 5, 10**18 + 7))
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (10**18 + 5, 10**18 + 7)
        os.utime(path, ns=(-5 * 10**9, -3 * 10**9))
        assert path.stat().st_mtime_ns == -3 * 10**9
        assert (mounted.with_name("upper") / name).stat().st_mtime_ns == -3 * 10**9


@pytest.mark.root
def test_what_was_changed_is_shown_as_it_is_below(mounted: Path) -> None:
    """A change is answered without a look at the file; whoever asks afterwards gets to know all the same."""
    told = ("st_mode", "st_uid", "st_gid", "st_size", "st_blocks", "st_nlink", "st_mtime_ns")

    def same(name: str) -> bool:
        shown, real = (mounted / name).stat(), (mounted.with_name("upper") / name).stat()
        return all(getattr(shown, one) == getattr(real, one) for one in told)

    (mounted / "lower").chmod(0o604)
    assert same("lower")
    assert stat.S_IMODE((mounted / "lower").stat().st_mode) == 0o604
    for name in ("lower", "new"):
        fd = os.open(mounted / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o400)
        with closing_fd(fd):
            os.write(fd, b"written" * 1000)
            os.fchown(fd, 7, 8)
            os.fchmod(fd, 0o751)
            os.utime(fd, ns=(10**18 + 1, 10**18 + 2))
            os.fchmod(fd, 0o640)
            shown = os.fstat(fd)
            assert (stat.S_IMODE(shown.st_mode), shown.st_uid, shown.st_gid) == (0o640, 7, 8)
            assert (shown.st_size, shown.st_mtime_ns) == (7000, 10**18 + 2)
        assert same(name)
        os.chown(mounted / name, 9, -1)
        (mounted / name).chmod(0o4711)
        os.chown(mounted / name, 10, 11)
        assert same(name)


@pytest.mark.root
def test_new_files_can_be_written_whatever_their_mode(mounted: Path) -> None:
    fd = os.open(mounted / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0)
    with closing_fd(fd):
        assert os.write(fd, b"once") == 4
    with pytest.raises(FileExistsError):
        os.open(mounted / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0)
    os.mknod(mounted / "node", 0o640 | stat.S_IFREG)
    (mounted / "node").write_bytes(b"more")
    assert [(mounted.with_name("upper") / name).read_bytes() for name in ("new", "node")] == [b"once", b"more"]
    assert stat.S_IMODE((mounted / "new").stat().st_mode) == 0


@pytest.mark.root
def test_owners_are_shown_shifted_and_kept_as_on_disk(fresh_dir: Path) -> None:
    lower, upper = fresh_dir / "lower", fresh_dir / "upper"
    (lower / "directory").mkdir(parents=True)
    (lower / "directory" / "file").write_text("text")
    for path, owner in ((lower, 100_000), (lower / "directory", 100_007), (lower / "directory" / "file", 5)):
        os.chown(path, owner, owner)
    upper.mkdir()
    os.chown(upper, 100_000, 100_000)
    shift = parse_shift("0:100000:1000")
    with union_at(fresh_dir, WAYS["passthrough"], shift) as target:
        shown = {path.name: path.stat().st_uid for path in (target, *target.rglob("*"))}
        assert shown == {"mount": 0, "directory": 7, "file": 65534}
        assert [entry.stat().st_gid for entry in os.scandir(target)] == [7]
        (target / "new").write_text("new")
        (target / "made").mkdir()
        os.chown(target / "made", 3, -1)
        assert (target / "made").stat().st_uid == 3
        assert (target / "new").stat().st_uid == 0
    assert (upper / "new").stat().st_uid == 100_000
    assert ((upper / "made").stat().st_uid, (upper / "made").stat().st_gid) == (100_003, 100_000)


@pytest.mark.root
def test_squashed_owners_are_all_the_same(fresh_dir: Path) -> None:
    (fresh_dir / "lower").mkdir()
    (fresh_dir / "lower" / "file").write_text("text")
    os.chown(fresh_dir / "lower" / "file", 5, 6)
    with union_at(fresh_dir, WAYS["no open"], IdShift(squash=0)) as target:
        assert (target / "file").stat().st_uid == 0
        os.chown(target / "file", 9, 9)
        assert (target / "file").stat().st_uid == 0
        (target / "new").write_text("new")
    assert (fresh_dir / "upper" / "new").stat().st_uid == 0


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Pack an ACL (linux/posix_acl_xattr.h): tag, permissions and id of each entry."""
    return struct.pack("=I", 2) + b"".join(struct.pack("=HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
MINIMAL = acl((1, 6, NOBODY), (4, 5, NOBODY), (32, 1, NOBODY))


@pytest.mark.root
@pytest.mark.parametrize("name", ["lower", "new"])
def test_an_acl_that_says_only_permissions_is_a_change_of_mode(mounted: Path, name: str) -> None:
    path = mounted / name
    path.touch()
    path.chmod(0o4777)
    os.setxattr(path, "system.posix_acl_access", MINIMAL)
    assert stat.S_IMODE(path.stat().st_mode) == 0o4651
    assert os.listxattr(path) == []
    assert stat.S_IMODE((mounted.with_name("upper") / name).stat().st_mode) == 0o4651


@pytest.mark.root
def test_acls_come_and_go(mounted: Path) -> None:
    path = mounted / "lower"
    os.setxattr(
        path,
        "system.posix_acl_access",
        acl((1, 6, NOBODY), (2, 7, 5), (4, 4, NOBODY), (16, 7, NOBODY), (32, 4, NOBODY)),
    )
    assert os.listxattr(path) == ["system.posix_acl_access"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o674
    os.setxattr(path, "system.posix_acl_access", MINIMAL)
    assert os.listxattr(path) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o651
