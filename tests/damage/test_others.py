"""A check beside others at work, by an ordinary user, and of stores whose owners are others than the layers say."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import layerfs
from layerfs import IdMap, IdRange
from layerfs.checking.repair import Outcome
from tests.damage import odd_layers
from tests.damage.hurting import writable
from tests.support.images import write_layout

pytestmark = [pytest.mark.root, pytest.mark.host]


def test_what_others_make_and_remove_meanwhile_is_no_damage(store: layerfs.Store, image: layerfs.Image) -> None:
    stopping = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with layerfs.open(store.path) as other:
                while not stopping.is_set():
                    clone = other.clone(image.digest)
                    clone.snapshot()
                    with clone.mounted() as root:
                        (root / "file").write_text("x")
                    clone.remove()
        except BaseException as error:  # noqa: BLE001  shown by the assertion
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        found = [store.check(deep=number % 4 == 3) for number in range(12)]
    finally:
        stopping.set()
        thread.join()
    assert failures == []
    assert found == [()] * 12
    assert store.check(deep=True) == ()


def test_a_store_with_an_id_map(fresh_dir: Path) -> None:
    ids = (IdRange(0, 100_000, 65_536),)
    layout = write_layout(fresh_dir / "image", [odd_layers.base(), odd_layers.top()])
    with layerfs.open(fresh_dir / "store", driver="overlay2", id_map=IdMap(ids, ids)) as store:
        (image,) = store.import_image(layout)
        assert store.check(deep=True) == ()
        with writable(store, image.top) as root:
            (root / "hidden/own").chmod(0o777)
        assert {problem.file for problem in store.check(deep=True)} == {"/hidden/own"}
        assert {remedy.outcome for remedy in store.repair(force=True)} == {Outcome.MENDED}
        assert store.check(deep=True) == ()
