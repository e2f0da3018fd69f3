"""What must hold when things go wrong or become many: killed servers, lost layers, many clients, long lives."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import FileIO
from pathlib import Path

import pytest

from layerfs.contract import Mount, Quota
from layerfs.kernel.mounting import mounted, overlay_options
from layerfs_fuse.union.ledger import write_quota
from tests.support.rootless import Rootless
from tests.support.served import Served

pytestmark = pytest.mark.usefixtures("fuse_device")

_KILLS = 100
_MEBIBYTE = 1 << 20


class Writer(threading.Thread):
    """Make and change files for as long as the server lives, and remember what fsync confirmed."""

    def __init__(self, root: Path, seed: int) -> None:
        super().__init__()
        # By descriptor: when the dead mount is taken away, the path leads to the empty directory below it.
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self._random = random.Random(seed)
        self.confirmed: dict[str, bytes] = {}

    def run(self) -> None:
        """Go on until a call fails, which it does when the server is killed."""
        with suppress(OSError):
            while True:
                self._step()
        with suppress(OSError):
            os.close(self._root)

    def _step(self) -> None:
        name = f"file-{self._random.randrange(12)}"
        content = self._random.randbytes(self._random.choice((10, 5000, 200_000)))
        old = self.confirmed.pop(name, None)  # from here on either may be there
        if self._random.random() < 0.3:
            self._write("new", content)
            os.rename("new", name, src_dir_fd=self._root, dst_dir_fd=self._root)
            os.fsync(self._root)
        else:
            self._write(name, content)
            if old is None:
                os.fsync(self._root)
        self.confirmed[name] = content

    def _write(self, name: str, content: bytes) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd=self._root)
        try:
            os.write(fd, content)
            os.fsync(fd)
        finally:
            with suppress(OSError):
                os.close(fd)


def _survive(place: Path, kills: int) -> None:
    chance = random.Random(7)
    with Served(place) as union:
        for number in range(12):
            (place / f"lower/file-{number}").write_bytes(b"lower" * 1000)
        union.unmount()
        for seed in range(kills):
            union.mount()
            writer = Writer(union.root, seed)
            writer.start()
            time.sleep(chance.uniform(0, 0.2))
            union.kill()
            writer.join()
            union.mount()
            for name, content in writer.confirmed.items():
                assert (union.root / name).read_bytes() == content, f"{name} after kill {seed}"
            assert sorted(set(os.listdir(union.root)) - {"new"}) == sorted(f"file-{number}" for number in range(12))
            union.unmount()


@pytest.mark.root
@pytest.mark.slow
def test_a_hundred_kills_lose_nothing_that_fsync_confirmed(fresh_dir: Path) -> None:
    _survive(fresh_dir, _KILLS)
    lower, upper, work = (fresh_dir / name for name in ("lower", "upper", "work"))
    with Served(fresh_dir) as union:
        ours = {path.name: path.read_bytes() for path in union.root.iterdir()}
    with mounted([Mount("overlay", "overlay", overlay_options([lower], upper, work))]) as root:
        assert {path.name: path.read_bytes() for path in root.iterdir()} == ours


@pytest.mark.rootless
@pytest.mark.slow
def test_kills_of_an_ordinary_users_server(run_rootless: Rootless, rootless_dir: Path) -> None:
    run_rootless(_survive, rootless_dir, 10)


@pytest.mark.root
@pytest.mark.parametrize("options", [(), ("nopassthrough",)], ids=["passthrough", "no open"])
def test_a_layer_that_is_lost_is_an_error_and_no_crash(fresh_dir: Path, options: tuple[str, ...]) -> None:
    (fresh_dir / "lower/d").mkdir(parents=True)
    for number in range(10):
        (fresh_dir / f"lower/d/{number}").write_text("x" * number)
    with Served(fresh_dir, *options) as union:
        shutil.rmtree(fresh_dir / "lower")
        for number in range(1, 10):  # nothing is read of an empty file
            with pytest.raises(OSError, match=r"Input/output error|No such file|Stale"):
                (union.root / f"d/{number}").read_bytes()
        (union.root / "new").write_text("still there")
        union.unmount()
    assert (fresh_dir / "upper/new").read_text() == "still there"


@pytest.mark.root
@pytest.mark.parametrize("options", [(), ("nopassthrough",)], ids=["passthrough", "no open"])
def test_a_thousand_open_files(fresh_dir: Path, options: tuple[str, ...]) -> None:
    (fresh_dir / "lower").mkdir()
    for number in range(500):
        (fresh_dir / f"lower/{number}").write_text(str(number))
    with Served(fresh_dir, *options) as union:
        files = [(union.root / str(number)).open("a+") for number in range(1000)]
        for number, file in enumerate(files):
            file.write("!")
            file.flush()
            (union.root / str(number)).unlink()
        for number, file in enumerate(files):
            file.seek(0)
            assert file.read() == (f"{number}!" if number < 500 else "!")
            file.close()
        assert os.listdir(union.root) == []


def _client(root: Path, number: int) -> str:
    """Do a bit of everything in a directory of one's own; return what is there in the end."""
    own = root / f"client-{number}"
    own.mkdir()
    for step in range(20):
        path = own / f"{step}"
        path.write_text(f"{number} {step}")
        if step % 3 == 0:
            path.rename(own / f"renamed-{step}")
        elif step % 3 == 1:
            path.unlink()
        (root / "shared").read_text()
    return " ".join(sorted(path.read_text() for path in own.iterdir()))


@pytest.mark.root
def test_sixty_four_clients_at_once(fresh_dir: Path) -> None:
    (fresh_dir / "lower").mkdir()
    (fresh_dir / "lower/shared").write_text("for all")
    with Served(fresh_dir) as union:
        with ThreadPoolExecutor(64) as pool:
            seen = list(pool.map(lambda number: _client(union.root, number), range(64)))
        assert len(os.listdir(union.root)) == 65
    for number, text in enumerate(seen):
        assert text == " ".join(sorted(f"{number} {step}" for step in range(20) if step % 3 != 1))


def _operations(root: Path, rounds: int) -> None:
    """Do ten operations a round, of which nothing stays."""
    for number in range(rounds):
        path, other = root / f"d/{number % 7}", root / f"d/other-{number % 5}"
        path.write_text("x")
        path.chmod(0o600)
        path.stat()
        path.rename(other)
        other.read_text()
        with other.open("r+") as file:
            other.unlink()
            file.write("y")
        path.mkdir()
        path.rmdir()
        with suppress(FileNotFoundError):
            (root / f"nothing-{number}").stat()


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("nopassthrough",)], ids=["passthrough", "no open"])
def test_a_hundred_thousand_operations_leave_nothing_in_the_server(fresh_dir: Path, options: tuple[str, ...]) -> None:
    with Served(fresh_dir, *options) as union:
        (union.root / "d").mkdir()
        _operations(union.root, 2_000)
        descriptors, memory = union.descriptors(), union.memory()
        _operations(union.root, 10_000)
        assert union.descriptors() <= descriptors + 16
        assert union.memory() <= memory + 4 * _MEBIBYTE


@pytest.mark.root
@pytest.mark.parametrize("change", [lambda path: path.chmod(0o700), lambda path: path.open("r+").close()])
def test_a_full_disk_leaves_the_lower_file_visible(fresh_dir: Path, change: Callable[[Path], None]) -> None:
    small = fresh_dir / "small"
    small.mkdir()
    with mounted([Mount("tmpfs", "small", ("size=1m",))], small):
        (small / "lower").mkdir()
        (small / "lower/big").write_bytes(b"b" * 600_000)
        with Served(small) as union:
            with pytest.raises(OSError, match="No space"):
                change(union.root / "big")
            assert (union.root / "big").read_bytes() == b"b" * 600_000
            (union.root / "big").unlink()
            assert os.listdir(union.root) == []


@pytest.mark.root
def test_requests_that_find_no_room_leave_nothing_in_the_server(fresh_dir: Path) -> None:
    """What takes all the room is deleted and open, so each request waits in vain for it to be forgotten."""
    write_quota(fresh_dir / "quota", Quota(size=2 * _MEBIBYTE))
    with Served(fresh_dir, f"quota={fresh_dir}/quota") as union:
        held, other = union.root / "held", union.root / "other"
        with held.open("wb", buffering=0) as taking, other.open("wb", buffering=0) as file:
            taking.write(bytes(2 * _MEBIBYTE))
            held.unlink()
            _refused(file, 5)
            memory = union.memory()
            _refused(file, 40)
            assert union.memory() <= memory + 8 * _MEBIBYTE


def _refused(file: FileIO, times: int) -> None:
    for _ in range(times):
        with pytest.raises(OSError, match="quota"):
            file.write(bytes(_MEBIBYTE))
