"""A driver is chosen by opening it where it is to stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs import drivers
from layerfs.errors import Unsupported


@pytest.mark.root
def test_the_first_one_that_works_is_open(fresh_dir: Path) -> None:
    name, driver = drivers.open_first(fresh_dir)
    driver.close()
    assert name == driver.name
    assert os.listdir(fresh_dir) == [name]


def test_nothing_is_left_of_those_that_do_not_work(fresh_dir: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        drivers.open_first(fresh_dir, {"no-such-option": "1"})
    assert [name for name in drivers.names() if name not in caught.value.message] == []
    assert os.listdir(fresh_dir) == []
