"""What the works find: the layers of a stack, the same as a plain directory, and a place for what is written.

A *stage* is a directory with ``layers`` and ``plain``. Beside the tree of trees.py one of the layers brings a
*repository* with its files, a *project* in C, and ``data``, a large file. All lies on one file system, in memory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from peers.meter import Failed

from unions import trees
from unions.trees import Layer, Tree

REPOSITORY, PROJECT, DATA, SMALLER, ARCHIVE = "repository", "project", "data", "smaller", "archive.tar"
LAYERS = "l"
"""Short, because fuse-overlayfs takes the paths of all layers in one option."""
SOURCES = 12
"""Files of the project, each of sixty functions."""
PIECE = 1 << 20
_SUBTREE = 6000
_GIT_CLOCK = 1.1
"""Seconds after which git takes a file for older than its index, and needs not read it to know that it is the same."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is the same at every depth: the tree, a directory of it of some 6,000 names, and what comes beside it."""

    tree: Tree
    seed: int
    repository: Path
    data: int
    subtree: str = field(init=False)

    def __post_init__(self) -> None:
        """Choose the subtree."""
        object.__setattr__(self, "subtree", self.tree.subtree(_SUBTREE))


@dataclass(frozen=True, slots=True)
class Stage:
    """A stack of layers in ``place``, the lowest first, and the plain directory that shows the same."""

    place: Path
    layers: tuple[Path, ...]
    plain: Path

    @property
    def depth(self) -> int:
        """Return the number of layers."""
        return len(self.layers)


def make_plain(inputs: Inputs, place: Path) -> Path:
    """Make the plain directory, and beside it the archive of the subtree."""
    plain = place / "plain"
    trees.write_layer(Layer(list(inputs.tree.entries), list(inputs.tree.directories)), plain)
    _add(inputs, plain)
    _run("tar", "--numeric-owner", "-cf", place / ARCHIVE, "-C", plain / inputs.subtree, ".")
    return plain


def make_stage(inputs: Inputs, place: Path, plain: Path, depth: int) -> Stage:
    """Make the layers, in the place of those of another depth if there are any."""
    above = place / LAYERS
    shutil.rmtree(above, ignore_errors=True)
    above.mkdir()
    layers = tuple(above / str(number) for number in range(depth))
    for layer, root in zip(trees.make_layers(inputs.tree, depth, inputs.seed), layers, strict=True):
        trees.write_layer(layer, root)
    _add(inputs, layers[depth // 2])
    return Stage(place, layers, plain)


def make_big(place: Path, size: int) -> Stage:
    """Make a stage of one layer with nothing but one large file, and a smaller one."""
    layer = place / LAYERS / "0"
    layer.mkdir(parents=True)
    write_data(layer / DATA, size)
    write_data(layer / SMALLER, PIECE)
    os.sync()
    return Stage(place, (layer,), layer)


def write_data(path: Path, size: int) -> None:
    """Write a file without holes."""
    piece = trees.Entry(str(path), PIECE).content
    with path.open("wb") as file:
        for _ in range(size // PIECE):
            file.write(piece)


def _add(inputs: Inputs, root: Path) -> None:
    """Add the repository, the project and the large file to a directory."""
    _run("git", "clone", "--quiet", "--shared", inputs.repository, root / REPOSITORY)
    time.sleep(_GIT_CLOCK)
    _run("git", "-C", root / REPOSITORY, "status", "--porcelain")
    _write_project(root / PROJECT)
    write_data(root / DATA, inputs.data)


def _write_project(root: Path) -> None:
    """Write a program in C with a makefile."""
    root.mkdir()
    names = [f"part{number}" for number in range(SOURCES)]
    for name in names:
        functions = "".join(
            f"int {name}_{index}(int x)\n{{\n    return x % {index + 2} ? x : {name}_{index - 1}(x / 2);\n}}\n"
            for index in range(1, 60)
        )
        (root / f"{name}.h").write_text(f"int {name}_0(int x);\n#define {name.upper()} 1\n")
        start = f"int {name}_0(int x)\n{{\n    return x;\n}}\n"
        includes = "".join(f'#include "{each}.h"\n' for each in names)
        (root / f"{name}.c").write_text(f"#include <stdio.h>\n{includes}{start}{functions}")
    (root / "main.c").write_text("int main(void)\n{\n    return 0;\n}\n")
    objects = " ".join(f"{name}.o" for name in ("main", *names))
    (root / "Makefile").write_text(f"CFLAGS = -O1\nprogram: {objects}\n\t$(CC) -o $@ $^\n")


def _run(*words: str | Path) -> None:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"`{' '.join(str(word) for word in words)}` failed: {done.stderr.strip()}")
