"""apply(diff(a, b), a) == b, on real directories and through a real overlay."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from shutil import rmtree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerfs.contract import LayerRoot, Mount, Whiteouts
from layerfs.kernel.mounting import mounted
from layerfs.layer.apply import apply
from layerfs.layer.changes import changes, upper_changes
from layerfs.layer.compression import Compression
from layerfs.layer.write import write_layer
from layerfs.tree import copy_tree
from tests.layer import trees
from tests.layer.trees import Node, Spec

pytestmark = pytest.mark.root

_NAMES = st.sampled_from([b"a", b"b", b"c", b"a-b", b"\xff\n", b"x" * 110])
_MTIMES = st.sampled_from(
    [0, 1, 1_700_000_000_000_000_000, 1_700_000_000_123_456_789, -1_500_000_000, 9_000_000_000 * 10**9]
)
_XATTRS = st.sampled_from(
    [(), ((b"user.k", b"v"),), ((b"user.k", b""), (b"trusted.t=", b"a=\n\0b")), ((b"trusted.overlay.opaque", b"y"),)]
)
_OWNERS = st.sampled_from([0, 1000, 3_000_000])


@st.composite
def _nodes(draw: st.DrawFn, kind: str) -> Node:
    return Node(
        kind,
        mode=draw(st.sampled_from([0o644, 0o4755, 0o600] if kind != "dir" else [0o755, 0o1777, 0o2750])),
        uid=draw(_OWNERS),
        gid=draw(_OWNERS),
        mtime=draw(_MTIMES),
        content=draw(st.sampled_from([b"", b"one", b"two", b"z" * 5000])),
        target=draw(st.sampled_from([b"a", b"/etc/passwd", b"../b", b"t" * 150])),
        xattrs=draw(_XATTRS) if kind in ("file", "dir") else (),
    )


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Make a small tree with everything in it, over few names, so that two of them have much in common."""
    spec: dict[bytes, Node] = {}
    directories = [b""]
    for _ in range(draw(st.integers(0, 10))):
        above = draw(st.sampled_from(directories))
        path = above + draw(_NAMES)
        if path in spec:
            continue
        files = sorted(name for name, node in spec.items() if node.kind in ("file", "link", "fifo"))
        kind = draw(
            st.sampled_from(["dir", "dir", "file", "file", "link", "fifo", "char"] + (["hard"] * 3 if files else []))
        )
        if kind == "hard":
            spec[path] = Node("hard", target=draw(st.sampled_from(files)))
            continue
        spec[path] = draw(_nodes(kind))
        if kind == "dir":
            directories.append(path + b"/")
    spec[b"."] = draw(_nodes("dir"))
    return spec


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Spec, Spec]:
    """Make a tree and a changed form of it, or two of them."""
    before = draw(specs())
    if draw(st.booleans()):
        return before, draw(specs())
    after = dict(before)
    for path in draw(st.lists(st.sampled_from(sorted(before)), max_size=3)):
        node = before[path]
        if node.kind == "hard" or any(other.target == path for other in before.values() if other.kind == "hard"):
            continue
        if path != b"." and not any(name.startswith(path + b"/") for name in after) and draw(st.booleans()):
            after.pop(path, None)
        else:
            after[path] = draw(_nodes(node.kind))
    for path, node in draw(specs()).items():
        above = path.rpartition(b"/")[0]
        placed = not above or (above in after and after[above].kind == "dir")
        if (
            path not in after
            and placed
            and (node.kind != "hard" or (node.target in after and after[node.target].kind == "file"))
        ):
            after[path] = node
    return before, after


_numbers = count()


@contextmanager
def _fresh(top: Path) -> Iterator[Path]:
    path = top / str(next(_numbers))
    path.mkdir()
    try:
        yield path
    finally:
        rmtree(path)


def _layer(before: Path | None, after: Path) -> bytes:
    out = io.BytesIO()
    write_layer(
        changes(before, after, verify_content=True),
        LayerRoot(after, Whiteouts.REMOVE),
        out,
        compression=Compression.NONE,
    )
    return out.getvalue()


_SETTINGS = settings(
    max_examples=int(os.environ.get("LAYERFS_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_SETTINGS
@given(pair=pairs())
def test_a_diff_turns_one_tree_into_the_other(fresh_dir: Path, pair: tuple[Spec, Spec]) -> None:
    with _fresh(fresh_dir) as top:
        before, after = (trees.make(top / name, spec) for name, spec in zip("ab", pair, strict=True))
        copy_tree(before, top / "c")
        layer = _layer(before, after)
        applied = apply(io.BytesIO(layer), LayerRoot(top / "c", Whiteouts.REMOVE))
        assert not trees.difference(trees.describe(top / "c"), trees.describe(after))
        assert applied.size == len(layer)
        assert list(changes(top / "c", after, verify_content=True)) == []


@_SETTINGS
@given(spec=specs())
def test_a_whole_tree_comes_back_whole(fresh_dir: Path, spec: Spec) -> None:
    with _fresh(fresh_dir) as top:
        after = trees.make(top / "a", spec)
        layer = _layer(None, after)
        (top / "b").mkdir()
        apply(io.BytesIO(layer), LayerRoot(top / "b", Whiteouts.REMOVE), base=True)
        assert not trees.difference(trees.describe(top / "b"), trees.describe(after))
        assert _layer(None, top / "b") == layer


@_SETTINGS
@given(pair=pairs(), known=st.booleans())
def test_a_diff_as_overlay_layer_shows_the_other_tree(fresh_dir: Path, pair: tuple[Spec, Spec], known: bool) -> None:  # noqa: FBT001  Hypothesis passes it by name
    with _fresh(fresh_dir) as top:
        before = trees.make(top / "a", without_marks(pair[0]))  # a lower directory: its marks would be orders
        after = trees.make(top / "b", pair[1])
        upper = LayerRoot(trees.make(top / "u", {b".": Node("dir", mode=0o755)}), Whiteouts.OVERLAY)
        copy_root(before, upper.path)
        apply(io.BytesIO(_layer(before, after)), upper, lower=before if known else None)
        mount = Mount("overlay", "overlay", ("ro", f"lowerdir={upper.path}:{before}"))
        with mounted([mount]) as merged:
            shown = trees.describe(merged)
            assert not trees.difference(shown, trees.describe(after))
            listed = list(upper_changes(upper, before))
            assert listed == list(changes(before, merged, verify_content=True))
        copy_tree(before, top / "c")
        out = io.BytesIO()
        write_layer(listed, upper, out, compression=Compression.ZSTD)
        out.seek(0)
        apply(out, LayerRoot(top / "c", Whiteouts.REMOVE))
        assert not trees.difference(trees.describe(top / "c"), trees.describe(after))


def without_marks(spec: Spec) -> Spec:
    """Take away attributes that an overlay would understand."""
    return {
        path: replace(node, xattrs=tuple(pair for pair in node.xattrs if b"overlay" not in pair[0]))
        for path, node in spec.items()
    }


def copy_root(source: Path, target: Path) -> None:
    """Give a snapshot's directory the attributes of the one below, as drivers do."""
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)
    for name in os.listxattr(source):
        os.setxattr(target, name, os.getxattr(source, name))
    os.chmod(target, status.st_mode & 0o7777)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
