"""The ledger and the plan of the devicemapper driver, and what it says where it cannot work: no pool is needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs.contract import SnapshotId
from layerfs.errors import AlreadyExists, Corrupt, InvalidArgument, NoSpace, NotFound, PermissionDenied, Unsupported
from layerfs_backends.devicemapper import open_driver
from layerfs_backends.thin.ledger import Entry, Ledger, State
from layerfs_backends.thin.plan import Fill, Plan, low_water
from tests.support.rootless import Rootless

ONE = SnapshotId(1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


class TestLedger:
    def test_lines_are_kept(self, ledger: Ledger, tmp_path: Path) -> None:
        entry = Entry(ONE, State.CREATING)
        ledger.add(entry)
        with pytest.raises(AlreadyExists):
            ledger.add(entry)
        assert ledger.find(ONE) == entry
        with pytest.raises(NotFound):
            ledger.get(ONE)  # it is not there yet
        committed = Entry(ONE, State.COMMITTED, SnapshotId(1 << 23), (1 << 24) - 1, 1 << 40)
        ledger.change(committed)
        assert Ledger(tmp_path).get(ONE) == committed
        assert ledger.ids() == {1}
        ledger.close()
        ledger.drop(ONE)
        ledger.drop(ONE)
        assert ledger.find(ONE) is None

    def test_it_is_empty_until_and_after(self, ledger: Ledger, tmp_path: Path) -> None:
        ledger.add(Entry(SnapshotId(0), State.COMMITTED))
        assert ledger.is_empty()
        for number in (1, 5000, 3):
            ledger.add(Entry(SnapshotId(number), State.OPEN))
        assert Ledger(tmp_path).ids() == {1, 3, 5000}
        for number in (1, 3, 5000):
            assert not ledger.is_empty()
            ledger.drop(SnapshotId(number))
        assert ledger.is_empty()
        assert [entry.id for entry in ledger.entries()] == [0]

    def test_the_number_of_the_last_device(self, ledger: Ledger) -> None:
        last = SnapshotId((1 << 24) - 1)
        ledger.add(Entry(last, State.OPEN))
        assert ledger.ids() == {last}
        with pytest.raises(NoSpace) as caught:
            ledger.add(Entry(SnapshotId(last + 1), State.OPEN))
        assert caught.value.hint

    @pytest.mark.parametrize("text", ["open", "open x 0 0", "asleep 1 0 0", "\xff"])
    def test_damage_is_told(self, ledger: Ledger, tmp_path: Path, text: str) -> None:
        line = text.ljust(64).encode("latin-1")
        (tmp_path / "ledger").write_bytes(bytes(128) + line)
        with pytest.raises(Corrupt):
            ledger.find(ONE)
        assert ledger.ids() == {1}
        (tmp_path / "ledger").write_bytes(line)
        with pytest.raises(Corrupt):
            ledger.add(Entry(ONE, State.OPEN))

    @pytest.mark.parametrize("kept", ["as synced", "reach only", "lines only"])
    def test_a_power_cut_leaves_a_trace_of_every_device(self, ledger: Ledger, tmp_path: Path, kept: str) -> None:
        """Whatever reached the disk besides what was synced, each snapshot has its line or is among the uncertain."""
        file, disk = tmp_path / "ledger", tmp_path / "after"
        disk.mkdir()
        synced = b""
        for number in range(1, 200):
            before = _reach(file)
            ledger.add(Entry(SnapshotId(number), State.CREATING))
            now = file.read_bytes()
            if _reach(file) != before:
                synced = now
            ledger.change(Entry(SnapshotId(number), State.OPEN))
            left = {"as synced": synced, "reach only": now[:64] + synced[64:], "lines only": synced[:64] + now[64:]}
            (disk / "ledger").write_bytes(left[kept])
            with Ledger(disk) as after:
                assert {*after.ids(), *after.uncertain()} >= set(range(1, number + 1))
                assert len(after.uncertain()) <= 128

    def test_a_reach_that_was_not_synced_is_not_relied_upon(self, ledger: Ledger, tmp_path: Path) -> None:
        file = tmp_path / "ledger"
        ledger.add(Entry(ONE, State.OPEN))
        file.write_bytes(b"129 65".ljust(63) + b"\n" + file.read_bytes()[64:])  # killed before the sync
        ledger.add(Entry(SnapshotId(70), State.OPEN))
        assert file.read_bytes()[:64].split() == [b"134", b"134"]
        assert ledger.uncertain() == list(range(71, 134))

    def test_what_was_let_go_is_certain(self, ledger: Ledger, tmp_path: Path) -> None:
        ledger.add(Entry(ONE, State.OPEN))
        assert ledger.uncertain() == list(range(2, 65))
        ledger.settle()
        assert Ledger(tmp_path).uncertain() == []
        ledger.add(Entry(SnapshotId(2), State.CREATING))
        ledger.settle()
        assert ledger.uncertain() == [2]  # killed in between


def _reach(file: Path) -> int:
    return int((file.read_bytes()[:64].strip(b"\0").split() or [b"0"])[0]) if file.exists() else 0


class TestFill:
    def test_a_healthy_pool(self) -> None:
        status = "473 420/4096 17/16384 - rw discard_passdown error_if_no_space - 1024"
        assert Fill.parse(status) == Fill(473, "rw", (16384 - 17) << 16, 1 << 30, (4096 - 420) << 12, 16 << 20)

    @pytest.mark.parametrize(
        ("status", "mode"),
        [
            ("473 1/2 2/2 - out_of_data_space discard_passdown error_if_no_space - 1024", "out_of_data_space"),
            ("473 1/2 2/2 - ro discard_passdown error_if_no_space - 1024", "ro"),
            ("473 1/2 2/2 - ro discard_passdown error_if_no_space needs_check 1024", "needs_check"),
            ("Fail", "Fail"),
            ("", "Fail"),
        ],
    )
    def test_others(self, status: str, mode: str) -> None:
        assert Fill.parse(status).mode == mode

    def test_low_water(self) -> None:
        assert low_water(1 << 30) == (1 << 30) // 20
        assert low_water(1 << 50) == 1 << 30


def test_a_plan_is_kept(tmp_path: Path) -> None:
    assert Plan.load(tmp_path / "pool") is None
    plan = Plan.new(1 << 30, 1 << 20, "xfs")
    plan.save(tmp_path / "pool")
    assert Plan.load(tmp_path / "pool") == plan
    assert os.listdir(tmp_path) == ["pool"]
    for text in ("", "{}", "[1]"):
        (tmp_path / "pool").write_text(text, encoding="ascii")
        with pytest.raises(Corrupt):
            Plan.load(tmp_path / "pool")


@pytest.mark.parametrize(
    "options",
    [
        {"base": "x"},
        {"fs": "btrfs"},
        {"size": "much"},
        {"size": "0"},
        {"device-size": "-1G"},
        {"discard": "perhaps"},
        {"data": "/dev/x"},
        {"metadata": "/dev/x"},
        {"data": "/dev/x", "metadata": "/dev/y", "size": "1G"},
    ],
)
def test_options_are_checked(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        open_driver(tmp_path / "d", options)
    assert caught.value.hint
    assert os.listdir(tmp_path) == []


@pytest.mark.root
@pytest.mark.outside
def test_where_the_kernel_has_none_it_says_so(tmp_path: Path) -> None:
    if "device-mapper" in Path("/proc/misc").read_text(encoding="ascii"):
        pytest.skip("this kernel has device-mapper")
    before = Path("/dev/mapper").exists()
    with pytest.raises(Unsupported, match="device-mapper") as caught:
        open_driver(tmp_path / "d", {})
    assert "modprobe" in (caught.value.hint or "")
    assert os.listdir(tmp_path) == []
    assert Path("/dev/mapper").exists() == before


@pytest.mark.rootless
def test_others_than_root_are_told(run_rootless: Rootless, rootless_dir: Path) -> None:
    with pytest.raises(PermissionDenied, match="root") as caught:
        run_rootless(open_driver, rootless_dir / "d", {})
    assert "/dev/mapper/control" in (caught.value.hint or "")
    assert os.listdir(rootless_dir) == []
