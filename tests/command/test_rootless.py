"""The command for an ordinary user: root of a user namespace inside, with no mounts that last."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.command.conftest import Command
from tests.support.fuse_device import fuse_device
from tests.support.rootless import Rootless

__all__ = ["fuse_device"]

pytestmark = [pytest.mark.rootless, pytest.mark.usefixtures("fuse_device")]


@pytest.fixture(params=["copy", "overlay2", "fuse"])
def user(request: pytest.FixtureRequest, rootless_dir: Path) -> Command:
    """Give the command on a store of an ordinary user, to be run by `run_rootless`."""
    return Command(rootless_dir / "store", request.param)


def _stock(user: Command, layout: Path) -> None:
    user("image", "import", layout)
    user("clone", "shell:1", "box")


@pytest.fixture
def readable(shell_layout: Path, rootless_dir: Path) -> Path:
    """Give the layout of `shell_layout` where the user can read it."""
    return Path(shutil.copytree(shell_layout, rootless_dir / "layout"))


def test_the_main_job(run_rootless: Rootless, user: Command, readable: Path, rootless_dir: Path) -> None:
    def work() -> tuple[str, list[str], int, str]:
        _stock(user, readable)
        identity = user("shell", "box", "--", "id", "-u")
        user("shell", "box", "--", "sh", "-c", "echo hello > /etc/motd; rm /etc/issue")
        changes = user("-q", "diff", "box").splitlines()
        layers = len(user.json("commit", "box", "shell:2")["layers"])
        user("image", "export", "shell:2", "-o", rootless_dir / "out.tar")
        user("clone", "shell:2", "second")
        said = user("shell", "second", "--", "cat", "/etc/motd")
        user("rm", "box", "second")
        return identity, changes, layers, said

    identity, changes, layers, said = run_rootless(work)
    assert identity == "0"
    assert {"A /etc/motd", "D /etc/issue"} <= set(changes)
    assert layers == 2
    assert said == "hello"
    assert (rootless_dir / "out.tar").stat().st_size > 0


def test_a_mount_lasts_and_is_seen_by_all_processes_of_the_user(
    run_rootless: Rootless, readable: Path, rootless_dir: Path
) -> None:
    user = Command(rootless_dir / "store", "fuse")
    place = rootless_dir / "place"

    def work() -> tuple[str, list[str], str, list[str]]:
        place.mkdir()
        _stock(user, readable)
        user("mount", "box", place)
        seen = (place / "etc/motd").exists(), user("ls")
        (place / "etc/new").write_text("new")
        busy = user.fails(4, "commit", "box", "shell:2")
        user("umount", "box")
        return str(seen), os.listdir(place), busy, user("-q", "diff", "box").splitlines()

    seen, left, busy, changes = run_rootless(work)
    assert str(place) in seen
    assert left == []
    assert "is mounted at" in busy
    assert "A /etc/new" in changes


@pytest.mark.parametrize("driver", ["copy", "overlay2"])
def test_a_mount_that_nobody_would_see_is_refused(
    run_rootless: Rootless, readable: Path, rootless_dir: Path, driver: str
) -> None:
    user = Command(rootless_dir / "store", driver)

    def work() -> str:
        _stock(user, readable)
        return user.fails(6, "mount", "box", rootless_dir)

    error = run_rootless(work)
    assert "this process only" in error
    assert "layerfs shell box" in error


def test_the_store_is_in_the_home_of_the_user(run_rootless: Rootless, readable: Path, rootless_dir: Path) -> None:
    def work() -> str:
        nowhere_named = Command(Path(), "copy", {"LAYERFS_STORE": ""})
        nowhere_named("image", "import", readable)
        return nowhere_named("-q", "image", "ls")

    assert run_rootless(work) == "shell:1"
    assert (rootless_dir / ".local/share/layerfs/meta.db").exists()


def test_doctor_tells_what_works(run_rootless: Rootless, user: Command, rootless_dir: Path) -> None:
    document = run_rootless(lambda: user.json("doctor"))
    works = {one["name"]: one["works"] for one in document["drivers"]}
    assert works["copy"]
    assert works["overlay2"]
    assert works["fuse"]
    assert all(one["hint"] for one in document["drivers"] if not one["works"])
    assert document["store"].startswith(str(rootless_dir))


def test_no_driver_at_all_is_status_five(run_rootless: Rootless, rootless_dir: Path) -> None:
    closed = rootless_dir / "closed"
    closed.mkdir(mode=0o555)  # it belongs to root, and the user may not write there
    document = run_rootless(lambda: json.loads(Command(closed / "store", "auto").run("--json", "doctor").stdout))
    assert not any(one["works"] for one in document["drivers"])
    assert run_rootless(lambda: Command(closed / "store", "auto").run("doctor").returncode) == 5


def test_check_and_repair(run_rootless: Rootless, user: Command, readable: Path, rootless_dir: Path) -> None:
    """A file of a layer that was changed comes back, and so does a lost database, with the clone."""

    def work() -> tuple[list[str], str, str]:
        _stock(user, readable)
        user("shell", "box", "--", "sh", "-c", "echo hello > /etc/motd")
        user("snapshot", "box")
        said = user("check", "--deep", "-q") + user("check", "--deep", "-q")
        store = rootless_dir / "store"
        (changed,) = store.glob(f"{user.backend}/1/**/etc/issue")
        changed.write_text("changed\n")
        (store / "meta.db").unlink()
        user("repair", "--force", "--offline")
        return user("-q", "ls").splitlines(), said, user("shell", "box", "--", "cat", "/etc/motd", "/etc/issue")

    names, said, shown = run_rootless(work)
    assert names == ["box"]
    assert said == ""
    assert shown.splitlines()[0] == "hello"
    assert "changed" not in shown
