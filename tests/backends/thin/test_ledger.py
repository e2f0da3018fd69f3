"""The ledger and the plan of the devicemapper driver, and what it says where it cannot work: no pool is needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs.contract import SnapshotId
from layerfs.errors import AlreadyExists, Corrupt, InvalidArgument, NotFound, Unsupported
from layerfs_backends.devicemapper import open_driver
from layerfs_backends.thin.ledger import Entry, Ledger, State
from layerfs_backends.thin.pool import Fill, Plan, low_water

ONE = SnapshotId(1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


class TestLedger:
    def test_lines_are_kept(self, ledger: Ledger, tmp_path: Path) -> None:
        entry = Entry(ONE, State.CREATING, 7)
        ledger.add(entry)
        with pytest.raises(AlreadyExists):
            ledger.add(entry)
        assert ledger.find(ONE) == entry
        with pytest.raises(NotFound):
            ledger.get(ONE)  # it is not there yet
        committed = Entry(ONE, State.COMMITTED, 7, SnapshotId(0), (1 << 24) - 1, 1 << 40)
        ledger.change(committed, durable=True)
        assert Ledger(tmp_path).get(ONE) == committed
        assert (tmp_path / "devices/1").stat().st_size == 64
        assert ledger.ids() == {1}
        ledger.drop(ONE)
        ledger.drop(ONE)
        assert ledger.find(ONE) is None

    def test_the_base_is_no_snapshot(self, ledger: Ledger) -> None:
        ledger.add(Entry(SnapshotId(0), State.COMMITTED, 0))
        assert ledger.ids() == set()
        assert [entry.id for entry in ledger.entries()] == [0]

    def test_damage_is_told(self, ledger: Ledger, tmp_path: Path) -> None:
        for text in ("", "open", "open x 0 0 0", "asleep 1 0 0 0"):
            (tmp_path / "devices/1").write_text(text, encoding="ascii")
            with pytest.raises(Corrupt):
                ledger.find(ONE)
        (tmp_path / "numbers").write_text("many", encoding="ascii")
        with pytest.raises(Corrupt):
            ledger.take_number()

    def test_numbers_are_never_given_twice(self, ledger: Ledger, tmp_path: Path) -> None:
        taken = [ledger.take_number() for _ in range(100)]
        assert taken == list(range(1, 101))
        ledger.settle_numbers()
        assert ledger.lost_numbers() == []
        assert Ledger(tmp_path).take_number() == 101

    def test_a_power_cut_gives_away_what_it_may_have_lost(self, ledger: Ledger) -> None:
        for number in (ledger.take_number() for _ in range(3)):
            ledger.add(Entry(SnapshotId(10 * number), State.OPEN, number))
        ledger.drop(SnapshotId(20))
        lost = ledger.lost_numbers()
        assert lost == [2, *range(4, 65)]
        assert ledger.lost_numbers() == []
        assert ledger.take_number() == 65


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
