"""apply(diff(a, b), a) == b, on real directories and through a real overlay."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from shutil import rmtree, which

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
from tests.layer.any_trees import pairs, specs, without_marks
from tests.layer.trees import Node, Spec
from tests.support.images import write_layout

pytestmark = pytest.mark.root

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


@settings(_SETTINGS, max_examples=int(os.environ.get("LAYERFS_EXAMPLES", "40")))
@given(pair=pairs())
def test_other_tools_read_what_we_write(fresh_dir: Path, pair: tuple[Spec, Spec]) -> None:
    """GNU tar makes the whole tree of a whole layer; umoci makes it of a layer and the changes on top."""
    with _fresh(fresh_dir) as top:
        before, after = (trees.make(top / name, _for_others(spec)) for name, spec in zip("ab", pair, strict=True))
        layers = _layer(None, before), _layer(before, after)
        (top / "tar").mkdir()
        options = ("--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*")
        subprocess.run(["tar", "-xpf", "-", *options, "-C", top / "tar"], input=layers[0], check=True)
        assert not trees.difference(trees.describe(top / "tar"), trees.describe(before))
        if which("umoci") is None:
            pytest.skip("umoci is not installed")
        write_layout(top / "oci", layers, name="x")
        subprocess.run(["umoci", "unpack", "--image", f"{top}/oci:x", top / "bundle"], check=True, capture_output=True)
        assert not trees.difference(trees.describe(top / "bundle/rootfs"), trees.describe(after))


def _for_others(spec: Spec) -> Spec:
    """Take away attributes that PAX has no words for, "=" in their names or empty, and those that umoci leaves out."""
    return {
        path: replace(node, xattrs=tuple(pair for pair in node.xattrs if b"=" not in pair[0] and pair[1]))
        for path, node in without_marks(spec).items()
    }


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


def copy_root(source: Path, target: Path) -> None:
    """Give a snapshot's directory the attributes of the one below, as drivers do."""
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)
    for name in os.listxattr(source):
        os.setxattr(target, name, os.getxattr(source, name))
    os.chmod(target, status.st_mode & 0o7777)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
