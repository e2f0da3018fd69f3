"""The zfs driver in the hands of an ordinary user whom root gave leave (zfs-allow(8)): all but the mounts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from layerfs.contract import Snapshot
from layerfs.errors import Busy, PermissionDenied, Unsupported
from layerfs.kernel.mounting import mounted
from layerfs.testing.driver_rules import active
from layerfs.testing.trees import contents
from tests.support import pools, rootless
from tests.support.rootless import Rootless

pytestmark = [pytest.mark.guest, pytest.mark.rootless]

_NAME = "layerfs-leave"


@pytest.fixture
def everybodys_zfs() -> None:
    """Let everybody ask ZFS, as udev does where it runs."""
    Path("/dev/zfs").chmod(0o666)


def _open_in_vain(place: Path) -> str:
    with pytest.raises(Unsupported, match="datasets do not work") as caught:
        pools.open_zfs(place / "zfs", dataset=_NAME)
    return caught.value.hint or ""


def _work(place: Path) -> None:
    """Do every verb of the contract."""
    driver = pools.open_zfs(place / "zfs", dataset=_NAME, refquota=str(64 << 20))
    driver.create(active(1))
    driver.create(active(2, 1))
    driver.commit(active(1))
    for snapshot in (active(3, 1), active(4, 1)):
        driver.create(snapshot)
    driver.commit_all([active(3, 1), active(4, 1)])
    assert set(driver.ids()) == {1, 2, 3, 4}
    usage = driver.usage(active(3, 1))
    assert usage.inodes == 0
    assert usage.size < 1 << 20
    with pytest.raises(Busy, match=r"/1 has clones: .*/2, .*/3, .*/4"):
        driver.remove(active(1).id)
    for number in (4, 3):
        driver.remove(active(number).id)
    assert set(driver.ids()) == {1, 2}


def _mount(place: Path, snapshot: Snapshot) -> None:
    with mounted(pools.open_zfs(place / "zfs").mounts(snapshot)):
        pass


@pytest.mark.usefixtures("everybodys_zfs")
def test_an_ordinary_user_with_leave(run_rootless: Rootless, rootless_dir: Path) -> None:
    with pools.pool(_NAME, 256 << 20):
        hint = run_rootless(_open_in_vain, rootless_dir)
        leave = re.fullmatch(r"run it as root, or let root give leave: zfs allow -u USER (\S+) (\S+)", hint)
        assert leave is not None, hint
        assert leave[2] == _NAME
        pools.sh("zfs", "allow", "-u", str(rootless.UID), leave[1], _NAME)
        run_rootless(_work, rootless_dir)
        with pytest.raises(PermissionDenied, match=f"mount zfs '{_NAME}") as caught:
            run_rootless(_mount, rootless_dir, active(2, 1))
        assert caught.value.hint == "run it as root: Linux lets nobody else mount zfs"
        driver = pools.open_zfs(rootless_dir / "zfs")  # root mounts it for them
        with mounted(driver.mounts(active(2, 1))) as path:
            assert path.stat().st_uid == rootless.UID
            assert contents(path) == {}
