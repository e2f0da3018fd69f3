"""The power fails at any moment, and the disk loses what it had not flushed: nothing acknowledged is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import power
from tests.faults.power import DISKS

pytestmark = pytest.mark.root

ROUNDS = 10


@pytest.mark.parametrize("kind", DISKS)
def test_what_was_acknowledged_survives_power_cuts(kind: str, fresh_dir: Path) -> None:
    result = power.run(DISKS[kind], fresh_dir, seed=1, seconds=2, rounds=ROUNDS)
    assert result.failures == []
    assert result.rounds == ROUNDS
    assert result.acknowledged


def test_a_disk_that_loses_what_it_flushed_is_noticed(fresh_dir: Path) -> None:
    assert power.run(DISKS["ext4"], fresh_dir, seed=2, seconds=2, rounds=4, lies=True).failures
