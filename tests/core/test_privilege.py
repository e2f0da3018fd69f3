"""Raised privileges: a real program with file capabilities, and what root loads and opens."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import layerfs
from layerfs import entrypoints, privilege
from layerfs.kernel import mountinfo, mounting, userns
from layerfs.kernel.overlay import Way
from tests.support.fuse_device import fuse_device
from tests.support.images import BASE, write_layout
from tests.support.rootless import GID, UID, Rootless

__all__ = ["fuse_device"]

_REPORT = """
import json, os, sys
from layerfs import entrypoints, opening, privilege, process
print(json.dumps({
    "raised": privilege.raised(),
    "drivers": sorted(entrypoints.find("layerfs.drivers")),
    "commands": sorted(entrypoints.find("layerfs.commands")),
    "place": str(opening.default_path()),
    "sh": process.require("sh", package="dash"),
    "left": (privilege.forget_environment(), sorted(os.environ))[1],
}))
"""


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Give a directory with a plug-in of somebody's, and one with a program named sh."""
    metadata = tmp_path / "plugins/planted-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[layerfs.drivers]\nplanted = planted:open_driver\n[layerfs.commands]\nplanted = planted:command\n"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sh").write_text("#!/bin/true\n")
    (tmp_path / "bin/sh").chmod(0o755)
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == 0 and str(path).startswith("/tmp/layerfs"):
            path.chmod(path.stat().st_mode | 0o011)
    return tmp_path


def _report(python: Path | str, planted: Path, *, user: int | None) -> dict[str, Any]:
    """Run the report as a user who chose the environment."""
    root = Path(layerfs.__file__).parents[1]
    paths = [root, *(root / name for name in ("backends", "fuse", "bench")), sysconfig.get_path("purelib")]
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, [*paths, planted / "plugins"])),
        "PATH": f"{planted}/bin:/usr/bin:/bin",
        "LAYERFS_STORE": "/somewhere/else",
        "XDG_DATA_HOME": "/somewhere",
        "HOME": "/somewhere/at/home",
        "LANG": "C.UTF-8",
    }
    done = subprocess.run(
        [python, "-P", "-c", _REPORT],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd="/",
        user=user,
        group=None if user is None else GID,
        extra_groups=None if user is None else [],
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.root
def test_file_capabilities_raise_and_the_environment_has_no_say(planted: Path, fresh_dir: Path) -> None:
    raised = fresh_dir / "python"
    shutil.copy(os.path.realpath(sys.executable), raised)
    fresh_dir.chmod(0o755)
    plain = _report(raised, planted, user=UID)
    # struct vfs_cap_data, revision 2, effective: CAP_NET_BIND_SERVICE, which does no harm (linux/capability.h).
    os.setxattr(raised, "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    report = _report(raised, planted, user=UID)
    assert (plain["raised"], report["raised"]) == (False, True)
    assert {"planted", "overlay2"} <= set(plain["drivers"])
    assert "planted" not in {*report["drivers"], *report["commands"]}
    assert "overlay2" in report["drivers"]
    assert plain["place"] == "/somewhere/else"
    assert not report["place"].startswith("/somewhere")
    assert plain["sh"] == f"{planted}/bin/sh"
    assert report["sh"] in {f"{place}/sh" for place in privilege.SAFE_PATH.split(":")}
    assert report["left"] == ["LANG", "PATH"]


@pytest.mark.root
@pytest.mark.parametrize(("owner", "mode", "loaded"), [(0, 0o755, True), (UID, 0o755, False), (0, 0o777, False)])
def test_root_loads_what_is_roots_alone(planted: Path, owner: int, mode: int, *, loaded: bool) -> None:
    plugins = planted / "plugins"
    os.chown(plugins, owner, 0)
    plugins.chmod(mode)
    report = _report(sys.executable, planted, user=None)
    assert not report["raised"]
    assert ("planted" in report["drivers"], "planted" in report["commands"]) == (loaded, loaded)
    assert report["place"] == "/somewhere/else"


def test_this_run_is_not_raised() -> None:
    assert not privilege.raised()
    assert privilege.environment() is os.environ
    before = dict(os.environ)
    privilege.forget_environment()
    assert dict(os.environ) == before
    assert entrypoints.find("layerfs.drivers")


@pytest.mark.rootless
def test_one_who_changed_the_user_is_not_raised(run_rootless: Rootless) -> None:
    assert not run_rootless(privilege.raised)


# --- the directory of a store -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
@pytest.mark.root
def test_nobody_else_enters_a_store_and_a_container_can_be_anybody(
    driver_name: str, driver_root: Path, tmp_path: Path, umask: int
) -> None:
    layout = write_layout(tmp_path / "image", [BASE])
    before = os.umask(umask)
    try:
        with layerfs.open(driver_root / "deep/store", driver=driver_name) as store:
            store.import_image(layout, names=["test:1"])
            with store.clone("test:1") as clone, clone.mounted() as root:
                assert stat.S_IMODE(root.stat().st_mode) == 0o755
            store.snapshotter.prepare("key")
            with mounting.mounted(store.snapshotter.mounts("key")) as root:
                assert stat.S_IMODE(root.stat().st_mode) == 0o755
            store.snapshotter.remove("key")
            assert stat.S_IMODE((driver_root / "deep/store").stat().st_mode) == 0o700
            assert stat.S_IMODE((driver_root / "deep/store/lock").stat().st_mode) & 0o077 == 0
    finally:
        os.umask(before)


def test_an_empty_directory_is_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o755)
    layerfs.open(tmp_path / "store", driver="copy").close()
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_store_that_others_write_to(tmp_path: Path, mode: int) -> None:
    layerfs.open(tmp_path / "store", driver="copy").close()
    (tmp_path / "store").chmod(mode)
    with pytest.raises(layerfs.PermissionDenied, match="others may write"):
        layerfs.open(tmp_path / "store")
    (tmp_path / "store").chmod(0o700)
    layerfs.open(tmp_path / "store").close()


def test_a_store_that_others_enter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layerfs.open(tmp_path / "store", driver="copy").close()
    assert caplog.text == ""
    (tmp_path / "store").chmod(0o711)
    layerfs.open(tmp_path / "store").close()
    assert "others may enter" in caplog.text


@pytest.mark.root
def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    layerfs.open(tmp_path / "store", driver="copy").close()
    for name in ("empty", "store"):
        os.chown(tmp_path / name, UID, GID)
        with pytest.raises(layerfs.PermissionDenied, match=f"belongs to user {UID}"):
            layerfs.open(tmp_path / name)
    assert os.listdir(tmp_path / "empty") == []


def test_a_lock_file_that_leads_elsewhere(tmp_path: Path) -> None:
    layerfs.open(tmp_path / "store", driver="copy").close()
    (tmp_path / "store/lock").unlink()
    (tmp_path / "store/lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(layerfs.LayerfsError, match="lock file"):
        layerfs.open(tmp_path / "store")
    assert not (tmp_path / "elsewhere").exists()


# --- mounts -----------------------------------------------------------------------------------------------------------


def _options_in_a_namespace(place: Path, way: Way | None, *words: str) -> list[str]:
    userns.enter()
    for name in ("lower", "target", "bound"):
        (place / name).mkdir()
    overlay = layerfs.Mount("overlay", "overlay", (f"lowerdir={place}/lower:{place}/bound", "userxattr", *words))
    mounting.mount([overlay], place / "target", way=way)
    mounting.mount([layerfs.Mount("bind", str(place / "lower"), ("rbind", *words))], place / "bound", way=way)
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [line.split()[5] for line in lines if line.split()[4] in {f"{place}/target", f"{place}/bound"}]


@pytest.mark.rootless
@pytest.mark.parametrize("way", [None, Way.LEGACY])
def test_in_a_namespace_nothing_is_set_uid(run_rootless: Rootless, rootless_dir: Path, way: Way | None) -> None:
    for options in run_rootless(_options_in_a_namespace, rootless_dir, way):
        assert {"nosuid", "nodev"} <= set(options.split(","))


@pytest.mark.rootless
def test_in_a_namespace_one_may_ask_for_it(run_rootless: Rootless, rootless_dir: Path) -> None:
    for options in run_rootless(_options_in_a_namespace, rootless_dir, None, "suid"):
        assert "nodev" in options.split(",")
        assert "nosuid" not in options.split(",")


@pytest.mark.root
def test_root_keeps_them_but_for_scratch(driver_name: str, driver_root: Path, tmp_path: Path) -> None:
    with layerfs.open(driver_root / "store", driver=driver_name) as store:
        store.import_image(write_layout(tmp_path / "image", [BASE]), names=["test:1"])
        with store.clone("test:1") as clone:
            with clone.mounted() as root:
                assert not os.statvfs(root).f_flag & (os.ST_NOSUID | os.ST_NODEV)
            with clone.mounted(suid=True) as root:
                assert not os.statvfs(root).f_flag & (os.ST_NOSUID | os.ST_NODEV)
            with mounting.mounted(mounting.scratch(clone.mounts())) as root:
                assert len(mountinfo.at(root)) == 1
                fences = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
                assert os.statvfs(root).f_flag & fences == fences
