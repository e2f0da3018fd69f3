"""Random stacks of layers, merged by the index, are what the kernel's overlay shows of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerfs.contract import Mount, Whiteouts
from layerfs.kernel.mounting import mounted
from layerfs_fuse.index.builder import build
from layerfs_fuse.index.checks import check
from layerfs_fuse.index.markers import marks_of
from layerfs_fuse.index.reader import Index
from tests.fuse.layer_trees import Leaf, Tree, layers, seen_by, seen_in, write

pytestmark = pytest.mark.root

_KINDS = st.sampled_from([Whiteouts.OVERLAY, Whiteouts.OVERLAY_USER])


@contextmanager
def kernel(places: Sequence[Path], whiteouts: Whiteouts) -> Iterator[Path]:
    """Mount an overlay of layers, the lowest first."""
    empty = places[0].parent / "empty"  # an overlay of one layer needs another
    empty.mkdir(exist_ok=True)
    (target := places[0].parent / "merged").mkdir(exist_ok=True)
    lower = ":".join(str(place) for place in reversed([empty, *places]))
    options = ["userxattr"] if whiteouts is Whiteouts.OVERLAY_USER else ["redirect_dir=nofollow"]
    with mounted([Mount("overlay", "overlay", (f"lowerdir={lower}", "ro", *options))], target) as path:
        yield path


@contextmanager
def indexed(places: Sequence[Path], whiteouts: Whiteouts, cuts: frozenset[int] = frozenset()) -> Iterator[Index]:
    """Build the index of layers, in one go but for the places where a parent's index is made."""
    path = places[0].parent / "index"
    with ExitStack() as stack:
        parent: Index | None = None
        fds: list[int] = []
        for number, place in enumerate(places, 1):
            fds.append(os.open(place, os.O_RDONLY | os.O_DIRECTORY))
            stack.callback(os.close, fds[-1])
            if number in cuts or number == len(places):
                build(path, fds, parent=parent, whiteouts=whiteouts, sync=False)
                parent = stack.enter_context(Index.open(path))
                fds = []
        assert parent is not None
        check(parent)
        yield parent


@settings(
    max_examples=int(os.environ.get("LAYERFS_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    stack=st.lists(layers(privileged=True), min_size=1, max_size=5), kind=_KINDS, cuts=st.frozensets(st.integers(1, 5))
)
def test_a_stack_is_what_the_kernel_shows(
    fresh_dir: Path, stack: list[Tree], kind: Whiteouts, cuts: frozenset[int]
) -> None:
    with tempfile.TemporaryDirectory(dir=fresh_dir) as directory:
        places = [Path(directory, str(number)) for number in range(len(stack))]
        for tree, place in zip(stack, places, strict=True):
            write(tree, place, marks_of(kind))
        with kernel(places, kind) as merged:
            expected = seen_in(os.fsencode(merged))
        with indexed(places, kind, cuts) as index:
            assert seen_by(index) == expected


@pytest.mark.parametrize("kind", [Whiteouts.OVERLAY, Whiteouts.OVERLAY_USER])
@pytest.mark.parametrize("mark", [b"y", b"x", b""])
def test_marks_of_a_root_mean_what_the_kernel_makes_of_them(fresh_dir: Path, kind: Whiteouts, mark: bytes) -> None:
    base = Tree({b"a": Leaf("file"), b"b": Leaf("file"), b"d": Tree({b"x": Leaf("file")})})
    top = Tree({b"a": Leaf("xwhiteout"), b"c": Leaf("file"), b"d": Tree({b"x": Leaf("xwhiteout")})}, opaque=mark)
    places = [fresh_dir / "base", fresh_dir / "top"]
    for tree, place in zip((base, top), places, strict=True):
        write(tree, place, marks_of(kind))
    with kernel(places, kind) as merged:
        expected = seen_in(os.fsencode(merged), marks_of(kind).prefix)
    with indexed(places, kind) as index:
        assert seen_by(index) == expected


def test_a_hundred_layers(fresh_dir: Path) -> None:
    places = [fresh_dir / f"{number:03}" for number in range(100)]
    for number, place in enumerate(places):
        hidden = {b"file%d" % (number - 7): Leaf("whiteout")} if number % 3 else {}
        same = Tree(
            {b"here%d" % (number % 9): Leaf("file"), **hidden}, opaque=b"y" if number == 50 and not hidden else b""
        )
        write(Tree({b"file%d" % number: Leaf("file"), b"d": same, **hidden}), place, marks_of(Whiteouts.OVERLAY))
    with kernel(places, Whiteouts.OVERLAY) as merged:
        expected = seen_in(os.fsencode(merged))
    with indexed(places, Whiteouts.OVERLAY, frozenset(range(0, 100, 13))) as index:
        assert seen_by(index) == expected
        assert index.layers == 100
        check(index)
