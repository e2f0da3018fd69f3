"""A store is checked and repaired beside another one of the same name."""

from __future__ import annotations

from pathlib import Path

import pytest

import layerfs
from tests.support.images import BASE, write_layout

pytestmark = pytest.mark.root


def test_mounts_of_another_store_of_the_same_name_are_not_ours(
    driver_name: str, driver_root: Path, tmp_path: Path
) -> None:
    layout = write_layout(tmp_path / "image", [BASE])
    with (
        layerfs.open(driver_root / "one/store", driver=driver_name) as one,
        layerfs.open(driver_root / "two/store", driver=driver_name) as two,
    ):
        one.import_image(layout)
        for number in range(5):  # ids that the other one does not have
            two.import_image(layout, names=[f"test:{number}"])
            two.clone("test:0").remove()
        with two.clone("test:0") as clone, clone.mounted() as root:
            assert one.check() == ()
            assert two.check() == ()
            assert (root / "etc/issue").exists()
