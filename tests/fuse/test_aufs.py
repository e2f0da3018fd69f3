"""Branches of AUFS as lower directories: what they hide is what the same names hide in the layers of images."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from layerfs.contract import LayerRoot, Mount, Whiteouts
from layerfs.errors import Corrupt, InvalidArgument
from layerfs.kernel.mounting import mounted
from layerfs.layer.apply import apply
from layerfs_fuse.index.builder import build
from layerfs_fuse.index.reader import Index
from layerfs_fuse.options import parse
from layerfs_fuse.stack import open_index
from tests.layer import trees
from tests.layer.trees import Node

FILE, EMPTY, DIRECTORY = Node("file", content=b"content"), Node("file"), Node("dir", mode=0o755)
BASE = {
    b"etc": DIRECTORY,
    b"etc/kept": FILE,
    b"etc/gone": FILE,
    b"opaque": DIRECTORY,
    b"opaque/old": FILE,
    b"again": DIRECTORY,
    b"again/old": FILE,
    b"replaced": DIRECTORY,
    b"replaced/inner": FILE,
    b"file": FILE,
    b"tree": DIRECTORY,
    b"tree/deep": DIRECTORY,
    b"tree/deep/file": FILE,
}
BRANCH = {
    b".wh..wh.aufs": EMPTY,
    b".wh..wh.orph": DIRECTORY,
    b".wh..wh.plnk": DIRECTORY,
    b".wh..wh.plnk/1.2": EMPTY,
    b".wh.tree": EMPTY,
    b".wh.again": EMPTY,
    b".wh.never": EMPTY,
    b"again": DIRECTORY,
    b"again/new": FILE,
    b"etc": Node("dir", mode=0o700),
    b"etc/.wh.gone": EMPTY,
    b"etc/new": FILE,
    b"opaque": DIRECTORY,
    b"opaque/.wh..wh..opq": EMPTY,
    b"opaque/new": FILE,
    b"replaced": FILE,
}
TOP = {b".wh.file": EMPTY, b"tree": DIRECTORY, b"tree/new": FILE, b"opaque": DIRECTORY, b"opaque/.wh.new": EMPTY}


@pytest.fixture
def branches(fresh_dir: Path) -> tuple[Path, ...]:
    """Give branches, the lowest first."""
    specs = (BASE, BRANCH, TOP)
    return tuple(trees.make(fresh_dir / f"branch-{number}", spec) for number, spec in enumerate(specs))


@contextmanager
def shown(place: Path, branches: Sequence[Path], *more: str) -> Iterator[Path]:
    for name in ("upper", "work", "merged"):
        (place / name).mkdir(exist_ok=True)
    lowers = ":".join(map(str, reversed(branches)))
    options = (f"lowerdir={lowers}", f"upperdir={place}/upper", f"workdir={place}/work", "aufs", *more)
    with mounted([Mount("fuse.layerfs", "none", options)], place / "merged") as merged:
        yield merged


def tree_of(root: Path) -> dict[bytes, trees.Seen]:
    """Look at everything but the root, which is the upper directory's."""
    return {path: seen for path, seen in trees.describe(root).items() if path != b"."}


def unpacked(place: Path, branches: Sequence[Path]) -> Path:
    """Unpack the branches as layers of an image one upon the other."""
    place.mkdir()
    for branch in branches:
        words: list[str | Path] = ["tar", "--format=pax", "-C", branch, "-c", "."]
        archive = subprocess.run(words, check=True, capture_output=True).stdout
        apply(io.BytesIO(archive), LayerRoot(place, Whiteouts.REMOVE))
    return place


@pytest.mark.root
@pytest.mark.usefixtures("fuse_device")
def test_branches_show_what_the_same_layers_of_an_image_do(fresh_dir: Path, branches: tuple[Path, ...]) -> None:
    expected = tree_of(unpacked(fresh_dir / "image", branches))
    assert {b"etc/gone", b"opaque/old", b"again/old", b"tree/deep", b"file", b"opaque/new"}.isdisjoint(expected)
    with shown(fresh_dir, branches) as merged:
        assert not trees.difference(tree_of(merged), expected)
        (merged / "etc/kept").unlink()
        (merged / "file").write_text("back")
        os.rename(merged / "tree", merged / "moved")
        changed = tree_of(merged)
    with shown(fresh_dir, branches) as merged:
        assert not trees.difference(tree_of(merged), changed)
        assert not (merged / "etc/kept").exists()
        assert (merged / "moved/new").read_bytes() == b"content"


def test_an_index_of_branches_is_that_of_no_layers(fresh_dir: Path, branches: tuple[Path, ...]) -> None:
    fds = [os.open(branch, os.O_RDONLY | os.O_DIRECTORY) for branch in branches]
    try:
        build(fresh_dir / "index", fds, aufs=True, identity=b"aufs", sync=False)
        with open_index(fresh_dir / "index", fds, aufs=True) as index:
            assert not index.child(1, b"file")
        with pytest.raises(Corrupt, match="other layers"):
            open_index(fresh_dir / "index", fds)
        build(fresh_dir / "index", fds, sync=False)
        with pytest.raises(Corrupt, match="other layers"):
            open_index(fresh_dir / "index", fds, aufs=True)
        with Index.open(fresh_dir / "index") as index:
            assert index.child(1, b".wh.file")
    finally:
        for fd in fds:
            os.close(fd)


def test_an_upper_directory_is_no_branch() -> None:
    with pytest.raises(InvalidArgument, match="AUFS"):
        parse(["lowerdir=/a", "upperdir=/u", "workdir=/w", "ro", "aufs"])
    assert parse(["lowerdir=/a", "upperdir=/u", "workdir=/w", "aufs"]).aufs
