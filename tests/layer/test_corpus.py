"""The layers that other projects test themselves with: each must behave as the corpus's manifest says.

The corpus is found by ``LAYERFS_CORPUS`` or beside the checkout, in ``../shared/corpus``; without it these tests are
skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from layerfs.contract import LayerRoot, Mount, Whiteouts
from layerfs.errors import LayerfsError
from layerfs.kernel.mounting import mounted
from layerfs.layer.apply import apply
from tests.layer import trees

CORPUS = Path(os.environ.get("LAYERFS_CORPUS", Path(__file__).parents[3] / "shared" / "corpus"))


@dataclass(frozen=True)
class Case:
    """One case of the manifest."""

    id: str
    layers: tuple[str, ...]
    expect: str
    checks: tuple[Any, ...]


def _cases() -> list[Case]:
    manifest = CORPUS / "manifest.json"
    if not manifest.exists():
        return []
    loaded = json.loads(manifest.read_text())["cases"]
    return [Case(one["id"], tuple(one["layers"]), one["expect"], tuple(one["checks"])) for one in loaded]


CASES = _cases()
pytestmark = [pytest.mark.root] if CASES else [pytest.mark.root, pytest.mark.outside]


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the directory that the manifest's paths are relative to."""
    path = tmp_path_factory.mktemp("corpus")
    subprocess.run(["tar", "--zstd", "-xf", CORPUS / "layers.tar.zst", "-C", path], check=True)
    return path


@pytest.fixture
def victim(fresh_dir: Path) -> Iterator[Path]:
    """Give a directory whose neighbours must stay as they are: the layers know some of them by name."""
    outside = fresh_dir / "outside"
    for name in ("victim", "etc", "tmp"):
        (outside / name).mkdir(parents=True)
        (outside / name / "hello").write_text("hello")
        (outside / name / "passwd").write_text("secret")
    (outside / "root").mkdir()
    before = trees.describe(outside)
    host = [_identity(Path(path)) for path in ("/etc/passwd", "/etc", "/")]
    yield outside / "root"
    after = trees.describe(outside)
    for inside in [name for name in after if name.startswith(b"root")]:
        del after[inside]
    del before[b"root"]
    assert not trees.difference(before, after)
    assert [_identity(Path(path)) for path in ("/etc/passwd", "/etc", "/")] == host


def _identity(path: Path) -> tuple[int, ...]:
    status = path.lstat()
    return status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_nlink


def test_the_corpus_is_here() -> None:
    if not CASES:
        pytest.skip(f"THE CORPUS OF FOREIGN LAYERS IS NOT HERE ({CORPUS}): set LAYERFS_CORPUS")
    assert len(CASES) == 158


def _apply_all(case: Case, layers: Path, roots: list[LayerRoot]) -> LayerfsError | None:
    """Apply the layers, each to its root and over the ones before; return the error."""
    for number, name in enumerate(case.layers):
        root = roots[min(number, len(roots) - 1)]
        base = number == 0
        with (layers / name).open("rb") as stream:
            try:
                if root.whiteouts is Whiteouts.REMOVE or base:
                    apply(stream, root, base=base)
                else:
                    with mounted(_merged(roots[:number])) as lower:
                        apply(stream, root, lower=lower)
            except LayerfsError as error:
                return error
    return None


def _merged(roots: list[LayerRoot]) -> list[Mount]:
    """Show some layers as one tree."""
    if len(roots) == 1:
        return [Mount("bind", str(roots[0].path), ("ro", "bind"))]
    lowers = ":".join(str(root.path) for root in reversed(roots))
    return [Mount("overlay", "overlay", ("ro", f"lowerdir={lowers}"))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_whole_tree(case: Case, layers: Path, victim: Path) -> None:
    error = _apply_all(case, layers, [LayerRoot(victim, Whiteouts.REMOVE)])
    _judge(case, error, victim)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_overlay_layers(case: Case, layers: Path, victim: Path) -> None:
    """Each layer has a directory of its own, below the one where the layers of the other test meet."""
    roots = []
    for number in range(len(case.layers)):
        root = victim / str(number)
        root.mkdir()
        roots.append(LayerRoot(root, Whiteouts.OVERLAY))
    error = _apply_all(case, layers, roots)
    whole = victim / "whole"
    whole.mkdir()
    other = _apply_all(case, layers, [LayerRoot(whole, Whiteouts.REMOVE)])
    assert (error is None) == (other is None), (error, other)
    if error is not None:
        _judge(case, error, whole)
        return
    with mounted(_merged(roots)) as merged:
        _judge(case, error, merged)
        shown, expected = trees.describe(merged), trees.describe(whole)
        del shown[b"."], expected[b"."]  # the drivers give a snapshot's root the attributes of its parent's
        assert not trees.difference(shown, expected)


def _judge(case: Case, error: LayerfsError | None, root: Path) -> None:
    if case.expect == "accept":
        assert error is None, error
    elif case.expect == "reject":
        assert error is not None
    if error is None:
        for kind, where, names in case.checks:
            assert kind == "tree"
            assert trees.names(root / where) == names
