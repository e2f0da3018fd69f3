"""The union by way of fusepy and mfusepy: the same files, seen through libfuse."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.kernel import mountinfo
from layerfs.kernel.mounting import unmount
from layerfs.testing.file_rules import FileRules
from layerfs.testing.trees import describe
from layerfs_fuse.driver import open_driver
from layerfs_fuse.fusepy import BINDINGS

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("fuse_device")]


class TestFiles(FileRules):
    """What every driver shows of files, with the better of the bindings."""

    factory = staticmethod(open_driver)
    options = {"server": "fusepy"}  # noqa: RUF012  the contract's form

    @pytest.fixture
    def driver_root(self, fresh_dir: Path) -> Path:
        return fresh_dir / "fuse"


@pytest.fixture(params=BINDINGS)
def mounted_by(request: pytest.FixtureRequest, fresh_dir: Path) -> Iterator[Path]:
    """Give a union that each binding serves in turn."""
    try:
        importlib.import_module(request.param)
    except (ImportError, OSError) as error:
        pytest.skip(f"{request.param} does not work here: {error}")
    others = [name for name in BINDINGS if name != request.param]
    for name in ("lower", "upper", "work", "merged"):
        (fresh_dir / name).mkdir()
    (fresh_dir / "lower/file").write_text("lower")
    os.mkdir(os.fsencode(fresh_dir) + b"/lower/not-\xff-utf8")
    options = f"lowerdir={fresh_dir}/lower,upperdir={fresh_dir}/upper,workdir={fresh_dir}/work,fusepy"
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({others})); "
        f"from layerfs_fuse.command import main; sys.exit(main(['-o', {options!r}, {str(fresh_dir / 'merged')!r}]))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    yield fresh_dir / "merged"
    if mountinfo.at(fresh_dir / "merged"):
        unmount(fresh_dir / "merged")


def test_each_binding_serves_it(mounted_by: Path) -> None:
    tree = Path(__file__).parents[2] / "layerfs"
    subprocess.run(["cp", "-a", tree, mounted_by / "copy"], check=True, timeout=120)
    (mounted_by / "file").write_text("upper")
    os.utime(mounted_by / "file", ns=(1_000_000_001, 2_000_000_002))
    os.rename(os.fsencode(mounted_by) + b"/not-\xff-utf8", os.fsencode(mounted_by) + b"/copy/\xfe")
    seen = (mounted_by / "file").stat()
    listed = sorted(os.listdir(os.fsencode(mounted_by)))
    assert describe(mounted_by / "copy/kernel", times=True) == describe(tree / "kernel", times=True)
    unmount(mounted_by)

    upper = mounted_by.parent / "upper"
    assert (seen.st_mtime_ns, seen.st_size) == (2_000_000_002, 5)
    assert listed == [b"copy", b"file"]
    assert (upper / "file").read_text() == "upper"
    assert os.path.isdir(os.fsencode(upper) + b"/copy/\xfe")


def test_a_file_that_is_open_outlives_its_name(mounted_by: Path) -> None:
    with (mounted_by / "file").open("r+") as file:
        (mounted_by / "file").unlink()
        assert not (mounted_by / "file").exists()
        file.write("later")
        file.seek(0)
        assert file.read() == "later"
    assert os.listdir(os.fsencode(mounted_by)) == [b"not-\xff-utf8"]
