"""What holds of a driver over random histories: the same as of the model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from layerfs.metadata.database import Database
from layerfs.snapshotter import Snapshotter
from layerfs.testing.fixtures import DriverFixtures
from layerfs.testing.machine import check_against_model


class HistoryRules(DriverFixtures):
    """Tests of histories; ``histories`` is how many, for a driver whose stores take long to make."""

    histories: ClassVar[int] = 40

    def test_histories_match_the_model(self, driver_root: Path, tmp_path: Path) -> None:
        """After any history, snapshots and their files are what the model says."""
        driver_root.mkdir(parents=True, exist_ok=True)
        factory, options = type(self).factory, type(self).options

        @contextmanager
        def workplace() -> Iterator[Callable[[], Snapshotter]]:
            place = Path(tempfile.mkdtemp(dir=tmp_path))
            root = Path(tempfile.mkdtemp(dir=driver_root))
            database = Database(place / "meta.db")
            yield lambda: Snapshotter(factory(root, options), database, place / "lock")
            database.close()
            driver = factory(root, options)
            for number in sorted(driver.ids(), reverse=True):
                driver.remove(number)
            driver.close()
            shutil.rmtree(root)
            shutil.rmtree(place)

        check_against_model(workplace, histories=type(self).histories)
