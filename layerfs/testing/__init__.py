"""Tests that ship with layerfs: what every driver, ours or somebody else's, has to pass.

A driver's own test file needs these lines, and a fixture ``driver_root`` where pytest's temporary directory does not
suit it::

    from layerfs.testing import DriverContract
    from my_driver import open_driver

    class TestMyDriver(DriverContract):
        factory = staticmethod(open_driver)

One with quotas (`layerfs.contract.Quotas`) also subclasses `QuotaContract` where they hold.

Call ``pytest.register_assert_rewrite("layerfs.testing")`` in ``conftest.py`` to see the values in a failed assertion.
"""

from __future__ import annotations

from layerfs.testing.driver_rules import DriverRules
from layerfs.testing.file_rules import FileRules
from layerfs.testing.history_rules import HistoryRules
from layerfs.testing.quota_rules import QuotaContract, QuotaRefusalRules
from layerfs.testing.snapshotter_rules import SnapshotterRules

__all__ = ["DriverContract", "QuotaContract"]


class DriverContract(DriverRules, SnapshotterRules, FileRules, HistoryRules, QuotaRefusalRules):
    """The whole contract of a driver; subclass it, and set ``factory`` (and ``options``, if it needs some)."""
