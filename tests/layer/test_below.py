"""Lower layers that we merge ourselves show what the kernel's overlay shows."""

from __future__ import annotations

import errno
import itertools
import os
import random
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from layerfs.contract import LayerRoot, Mount, Whiteouts
from layerfs.kernel.mounting import mounted
from layerfs.layer import attributes
from layerfs.layer import below as below_module
from layerfs.layer.below import Below, Mounted, Stack

NAMES = (b"a", b"b", b"c")
PATHS = [b"/".join(parts) for depth in (1, 2, 3) for parts in itertools.product(NAMES, repeat=depth)]
OPAQUE = attributes.opaque_name(Whiteouts.OVERLAY).decode()


def fill(place: Path, chance: random.Random, depth: int = 3) -> None:
    """Make a directory as a layer's may be."""
    for name in NAMES:
        path = place / name.decode()
        kind = chance.choice(["nothing", "nothing", "file", "link", "whiteout", "directory", "directory", "opaque"])
        if kind in {"directory", "opaque"} and depth > 1:
            path.mkdir(mode=chance.choice([0o700, 0o755]))
            os.setxattr(path, "trusted.layerfs", str(chance.random()).encode())
            if kind == "opaque":
                os.setxattr(path, OPAQUE, b"y")
            fill(path, chance, depth - 1)
        elif kind == "file":
            path.write_text(str(chance.random()))
        elif kind == "link":
            path.symlink_to(chance.choice(["a", "../b", "/c/a"]))
        elif kind == "whiteout":
            os.mknod(path, stat.S_IFCHR, 0)


def seen(below: Below) -> dict[bytes, object]:
    """Look up every path; a directory is its mode and attributes, another file its inode."""
    found: dict[bytes, object] = {b"": sorted(below.names())}
    for path in PATHS:
        assert below.has(path) == _opens(below, path)
        try:
            fd = below.open(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:  # a symbolic link in the way, which the mount refuses to follow
            if error.errno != errno.ELOOP:
                raise
            continue
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                xattrs = attributes.from_disk(attributes.read(b"/proc/self/fd/%d" % fd, follow=True), below.whiteouts)
                found[path] = (status.st_mode, status.st_mtime_ns, xattrs)
            else:
                found[path] = (status.st_mode, status.st_ino)
        finally:
            os.close(fd)
    return found


def _opens(below: Below, path: bytes) -> bool:
    with suppress(OSError):
        os.close(below.open(path))
        return True
    return False


@pytest.mark.root
@pytest.mark.parametrize("most", [1, 2, 100_000], ids=["no names", "few names", "all names"])
@pytest.mark.parametrize("seed", range(20))
def test_a_stack_shows_what_an_overlay_shows(
    seed: int, most: int, fresh_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("_MOST_LISTED", "_MOST_NAMES", "_MOST_HELD"):
        monkeypatch.setattr(below_module, limit, most)
    chance = random.Random(seed)
    stack = Stack()
    layers: list[Path] = []
    try:
        for number in range(6):
            layer = fresh_dir / str(number)
            layer.mkdir()
            fill(layer, chance)
            layers.insert(0, layer)
            stack.push(LayerRoot(layer, Whiteouts.OVERLAY))
            if len(layers) < 2 or chance.random() < 0.3:
                continue
            lowers = ":".join(str(each) for each in layers)
            with mounted([Mount("overlay", "overlay", (f"lowerdir={lowers}",))]) as merged:
                whole = Mounted(merged)
                try:
                    assert seen(stack) == seen(whole)
                finally:
                    whole.close()
    finally:
        stack.drop()


@pytest.mark.root
def test_an_empty_stack_has_nothing() -> None:
    stack = Stack()
    assert stack.names() == []
    with pytest.raises(FileNotFoundError):
        stack.open(b"a/b")
