"""The verbs that limit clones, on a store of the fuse driver, which counts by itself."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from tests.command.conftest import Command

_MEBIBYTE = 1 << 20


@pytest.fixture
def limited(fresh_dir: Path, layout: Path) -> Command:
    """Give the command on a store with the image test:1 and its clone web of 4 MiB and 100 inodes."""
    layerfs = Command(fresh_dir / "store", "fuse", in_process=True)
    layerfs("image", "import", layout)
    layerfs("clone", "test:1", "web", "--size", "4M", "--inodes", "100")
    return layerfs


@pytest.mark.root
class TestQuota:
    def test_it_is_shown(self, limited: Command) -> None:
        size, inodes = limited("quota", "web").splitlines()
        assert size.split(maxsplit=1) == ["size:", "0 B of 4.0 MiB"]
        assert inodes.split(maxsplit=1) == ["inodes:", "1 of 100"]
        document = limited.json("quota", "web")
        assert document["quota"] == {"size": 4 * _MEBIBYTE, "inodes": 100}
        assert document["used"] == {"size": 0, "inodes": 1}
        headings, row = limited("ls").splitlines()
        assert row[headings.index("QUOTA") :].startswith("4.0 MiB, 100 inodes")
        assert limited.json("ls")["clones"][0]["quota"] == document["quota"]

    def test_what_is_not_said_stays(self, limited: Command) -> None:
        limited("quota", "web", "--size", "1G")
        assert limited.json("quota", "web")["quota"] == {"size": 1 << 30, "inodes": 100}
        limited("quota", "web", "--inodes", "10k")
        assert limited.json("quota", "web")["quota"] == {"size": 1 << 30, "inodes": 10_000}
        assert limited("quota", "web", "--none") == "web has no quota"
        assert limited.json("quota", "web") == {"name": "web", "quota": {"size": None, "inodes": None}}

    @pytest.mark.parametrize(
        "words",
        [["--size", "0"], ["--size", "much"], ["--inodes", "1.5k"], ["--inodes", "-3"], ["--none", "--size", "1"]],
    )
    def test_what_cannot_be(self, limited: Command, words: list[str]) -> None:
        assert limited.fails(2, "quota", "web", *words)
        assert limited.json("quota", "web")["quota"]["inodes"] == 100

    def test_it_holds_inside_and_can_be_raised_there(self, limited: Command, fresh_dir: Path) -> None:
        target = fresh_dir / "mnt"
        target.mkdir()
        limited("mount", "web", target)
        try:
            with (target / "file").open("wb", buffering=0) as file:
                assert file.write(bytes(8 * _MEBIBYTE)) == 4 * _MEBIBYTE
                with pytest.raises(OSError, match="quota") as caught:
                    file.write(b"more")
                assert caught.value.errno == errno.EDQUOT
                limited("quota", "web", "--size", "5M")
                assert file.write(bytes(8 * _MEBIBYTE)) == _MEBIBYTE
            assert limited("quota", "web").splitlines()[0].endswith("5.0 MiB of 5.0 MiB")
        finally:
            limited("umount", "web")

    def test_what_follows_a_clone_has_it_too(self, limited: Command) -> None:
        wanted = limited.json("quota", "web")["quota"]
        limited("snapshot", "web", "one")
        assert limited.json("quota", "web")["quota"] == wanted
        limited("rollback", "web", "one")
        assert limited.json("quota", "web")["quota"] == wanted
        limited("fork", "web", "other")
        assert limited.json("quota", "other")["quota"] == wanted


def test_a_driver_that_holds_none_says_so(stocked: Command) -> None:
    """Neither copy nor overlay2 has one here, where no file system counts projects."""
    error = stocked.fails(5, "clone", "test:1", "small", "--size", "1M")
    assert "hint: " in error
    assert "fuse" in error
    assert stocked("-q", "ls") == "web"
    assert stocked.fails(5, "quota", "web", "--size", "1M")
    assert json.loads(stocked("--json", "quota", "web"))["quota"] == {"size": None, "inodes": None}
