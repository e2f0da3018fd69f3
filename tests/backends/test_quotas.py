"""The quotas of drivers where they hold: the rules of `layerfs.testing.quota_rules`, and what is each driver's own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

from layerfs.contract import Driver, Quota, Quotas, SnapshotId
from layerfs.errors import Busy, InvalidArgument, Unsupported
from layerfs.kernel import projects
from layerfs.kernel.descriptors import opened
from layerfs.kernel.mounting import mounted
from layerfs.testing import QuotaContract
from layerfs.testing.driver_rules import active
from layerfs.testing.fixtures import Shown
from layerfs.testing.quota_rules import fill, limited
from layerfs_backends import btrfs, copy, overlay2
from layerfs_fuse import driver as fuse
from tests.support import capabilities, drivers

_MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def counting_btrfs() -> Iterator[Path]:
    with drivers.btrfs() as mount:
        yield mount


@pytest.mark.root
class TestBtrfs(QuotaContract):
    factory = staticmethod(btrfs.open_driver)
    options: ClassVar[Mapping[str, str]] = {"quotas": "on"}
    limits: ClassVar[frozenset[str]] = frozenset({"size"})
    block: ClassVar[int] = 16 << 10  # the node of a new subvolume

    @pytest.fixture
    def driver_root(self, counting_btrfs: Path, tmp_path: Path) -> Path:
        return counting_btrfs / tmp_path.name

    def test_options_are_checked(self, driver_root: Path) -> None:
        with pytest.raises(InvalidArgument, match="quotas"):
            btrfs.open_driver(driver_root, {"quotas": "off"})


@pytest.fixture(scope="module")
def ext4() -> Iterator[Path]:
    with drivers.file_system("ext4") as mount:
        yield mount


@pytest.mark.root
class TestFuse(QuotaContract):
    factory = staticmethod(fuse.open_driver)
    limits: ClassVar[frozenset[str]] = frozenset({"size", "inodes"})

    @pytest.fixture
    def driver_root(self, fresh_dir: Path) -> Path:
        return fresh_dir / "fuse"

    def test_df_shows_it(self, driver: Driver, shown: Shown) -> None:
        snapshot = limited(1, Quota(size=8 << 20, inodes=100))
        driver.create(snapshot)
        with shown(snapshot) as root:
            fill(root / "file", 2 << 20)
            counts = os.statvfs(root)
            assert counts.f_blocks * counts.f_frsize == 8 << 20
            assert counts.f_bavail * counts.f_frsize <= 6 << 20
            assert (counts.f_files, counts.f_ffree) == (100, 98)

    def test_what_is_open_without_a_name_counts(self, driver: Driver, shown: Shown) -> None:
        snapshot = limited(1, Quota(size=8 << 20))
        driver.create(snapshot)
        with shown(snapshot) as root:
            with (root / "file").open("wb", buffering=0) as file:
                file.write(bytes(6 << 20))
                (root / "file").unlink()
                assert fill(root / "other") < 3 << 20
            (root / "other").unlink()
            assert fill(root / "other", 6 << 20) == 6 << 20

    def test_what_was_deleted_makes_room_at_once(self, driver: Driver, shown: Shown) -> None:
        """The kernel tells late that a file is gone, the later the more is going on."""
        snapshot = limited(1, Quota(inodes=1 + 4))
        driver.create(snapshot)

        def work(root: Path, name: str) -> None:
            for _ in range(300):
                (root / name).touch()
                (root / name).unlink()

        with shown(snapshot) as root, ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(work, root, str(number)) for number in range(4)]:
                done.result()

    def test_who_finds_no_room_waits_for_what_is_being_closed(self, driver: Driver, shown: Shown) -> None:
        """A wait is short, and a busy machine may be late: one in many tries is enough."""
        snapshot = limited(1, Quota(inodes=2))
        driver.create(snapshot)

        def served(root: Path) -> bool:
            with (root / "held").open("wb"):
                (root / "held").unlink()
                made = pool.submit((root / "made").touch)
                wait([made], timeout=0.01)
            try:
                made.result()
            except OSError:
                return False
            (root / "made").unlink()
            return True

        with shown(snapshot) as root, ThreadPoolExecutor(1) as pool:
            assert any(served(root) for _ in range(50))

    def test_holes_are_free_and_filling_them_is_not(self, driver: Driver, shown: Shown) -> None:
        snapshot = limited(1, Quota(size=8 << 20))
        driver.create(snapshot)
        with shown(snapshot) as root, (root / "sparse").open("wb", buffering=0) as file:
            file.truncate(1 << 30)
            os.posix_fallocate(file.fileno(), 4 << 20, 4 << 20)
            with pytest.raises(OSError, match="quota"):
                os.posix_fallocate(file.fileno(), 16 << 20, 8 << 20)
            assert os.pwrite(file.fileno(), b"x" * (1 << 20), 5 << 20) == 1 << 20
            written = 0
            for piece in range(4):  # what does not fit whole is written in part
                written += os.pwrite(file.fileno(), b"x" * (1 << 20), (64 + piece) << 20)
            assert 4 * _MEBIBYTE - (64 << 10) <= written <= 4 * _MEBIBYTE
            with pytest.raises(OSError, match="quota"):
                os.pwrite(file.fileno(), b"x" * (1 << 20), 80 << 20)
            assert os.pwrite(file.fileno(), b"y" * (1 << 20), 64 << 20) == 1 << 20  # its blocks are there already

    def test_a_union_that_does_not_count_is_not_relied_on(self, driver: Driver, shown: Shown) -> None:
        driver.create(active(1))
        assert isinstance(driver, Quotas)
        with shown(active(1)), pytest.raises(Busy) as caught:
            driver.set_quota(limited(1, Quota(size=1 << 20)))
        assert caught.value.hint

    def test_fusepy_is_refused(self, driver_root: Path) -> None:
        driver = fuse.open_driver(driver_root, {"server": "fusepy"})
        with pytest.raises(Unsupported, match="fusepy"):
            driver.create(limited(1, Quota(size=1 << 20)))
        assert list(driver.ids()) == []


class TestFuseOnExt4(TestFuse):
    """Where directories take blocks, and files more than they hold."""

    @pytest.fixture
    def driver_root(self, ext4: Path, tmp_path: Path) -> Path:
        return ext4 / tmp_path.name


class TestFuseThatRedirects(TestFuse):
    options: ClassVar[Mapping[str, str]] = {"write": "redirect"}
    block: ClassVar[int] = 64 << 10  # what is stored of a lower file at a time


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def with_projects(request: pytest.FixtureRequest) -> Iterator[Path]:
    features = ("-O", "quota,project") if request.param == "ext4" else ()
    with drivers.file_system(request.param, features=features, options="prjquota") as mount:
        yield mount


class ProjectQuotas(QuotaContract):
    limits: ClassVar[frozenset[str]] = frozenset({"size", "inodes"})

    @pytest.fixture
    def driver_root(self, with_projects: Path, tmp_path: Path) -> Path:
        return with_projects / tmp_path.name

    @staticmethod
    def writer() -> AbstractContextManager[None]:
        """Write as containers do: ext4 lets those pass that may pass all limits of resources."""
        return capabilities.without(capabilities.SYS_RESOURCE)

    def test_a_removal_leaves_no_limits(self, driver: Driver, driver_root: Path, with_projects: Path) -> None:
        base = int((driver_root / "projects").read_text(encoding="ascii"))
        driver.create(limited(1, Quota(size=8 << 20, inodes=50)))
        assert _limits(with_projects, base + 1) == Quota(8 << 20, 50)
        driver.remove(SnapshotId(1))
        assert _limits(with_projects, base + 1) == Quota()

    def test_two_stores_have_numbers_of_their_own(self, driver: Driver, driver_root: Path) -> None:
        driver.create(limited(1, Quota(size=8 << 20)))
        other = type(self).factory(driver_root.with_name(f"{driver_root.name}-other"), {})
        other.create(limited(1, Quota(size=4 << 20)))
        assert isinstance(driver, Quotas)
        assert isinstance(other, Quotas)
        with mounted(other.mounts(limited(1, Quota()))) as root, self.writer():
            assert fill(root / "file") < 5 << 20
        assert driver.quota_usage(limited(1, Quota())).size < 1 << 20
        other.remove(SnapshotId(1))
        other.close()


@pytest.mark.guest("uml")
class TestOverlay2(ProjectQuotas):
    factory = staticmethod(overlay2.open_driver)


@pytest.mark.guest("uml")
class TestCopy(ProjectQuotas):
    factory = staticmethod(copy.open_driver)


@pytest.mark.root
@pytest.mark.parametrize("driver", [copy, overlay2])
def test_without_project_quotas_the_hint_says_what_to_do(ext4: Path, driver: ModuleType, tmp_path: Path) -> None:
    opened = driver.open_driver(ext4 / tmp_path.name, {})
    with pytest.raises(Unsupported, match="project quotas") as caught:
        opened.create(limited(1, Quota(size=8 << 20)))
    assert "prjquota" in (caught.value.hint or "")
    assert list(opened.ids()) == []


@pytest.mark.root
@pytest.mark.parametrize("driver", [copy, overlay2])
def test_the_record_of_the_projects_is_no_stranger(ext4: Path, driver: ModuleType, tmp_path: Path) -> None:
    """It is where the file system limits projects; a repair would move it away, and the limits would be lost."""
    root = ext4 / tmp_path.name
    opened = driver.open_driver(root, {})
    (root / "projects").write_text("16777216\n", encoding="ascii")
    assert list(opened.strangers()) == []


def _limits(mount: Path, project: int) -> Quota:
    """Ask the kernel."""
    with opened(os.open(mount, os.O_RDONLY)) as directory:
        return projects.read(directory, project)[0]
