"""`layerfs migrate` on real stores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.command.conftest import Command


@pytest.fixture
def target(layerfs: Command, fresh_dir: Path) -> Command:
    """Give the command on the store that is migrated to."""
    return replace(layerfs, store=fresh_dir / "target", backend="auto")


def test_everything_is_carried_once(layerfs: Command, layout: Path, target: Command) -> None:
    layerfs("image", "import", layout)
    layerfs("clone", "test:1", "web")
    document = layerfs.json("migrate", "--to", target.store, "--driver", "copy")
    assert document == {"target": str(target.store), "images": 1, "clones": 1, "snapshots": 0, "there": 0}
    assert target("-q", "ls") == "web"
    assert layerfs.json("migrate", "--to", target.store)["there"] == 2
    assert layerfs("-q", "migrate", "--to", target.store, "web") == str(target.store)
    assert target("store", "close") == ""
    done = layerfs.run("migrate", "--to", target.store, "--remove")
    assert "2 were there already" in done.stderr
    assert layerfs("-q", "ls") == ""
    assert layerfs("-q", "image", "ls") == ""
    assert target("-q", "image", "ls") == "test:1"


def test_options_are_those_of_the_target(layerfs: Command, layout: Path, target: Command) -> None:
    layerfs("image", "import", layout)
    words = ("migrate", "--to", target.store, "--driver", "copy", "--driver-option")
    assert "has no option 'speed'" in layerfs.fails(2, *words, "speed=high")
    assert "is not of the form KEY=VALUE" in layerfs.fails(2, *words, "speed")
    assert not target.store.exists()


def test_what_cannot_be_carried(layerfs: Command, layout: Path, target: Command) -> None:
    layerfs("image", "import", layout)
    assert "there is no image 'nothing'" in layerfs.fails(3, "migrate", "--to", target.store, "nothing")
    assert "cannot be migrated to itself" in layerfs.fails(2, "migrate", "--to", layerfs.store)


@pytest.mark.root
def test_a_mounted_clone_is_in_the_way(layerfs: Command, layout: Path, target: Command, fresh_dir: Path) -> None:
    layerfs("image", "import", layout)
    layerfs("clone", "test:1", "web")
    (fresh_dir / "mnt").mkdir()
    layerfs("mount", "web", fresh_dir / "mnt")
    try:
        message = layerfs.fails(4, "migrate", "--to", target.store)
        assert f"the clone 'web' is mounted at {fresh_dir / 'mnt'}" in message
    finally:
        layerfs("umount", "web")
