"""What an import can be told: owners of another namespace (of the whole store), and what a layer may cost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import layerfs
from layerfs import IdMap, IdRange, LimitExceeded, Limits
from tests.support import invariants
from tests.support.images import BASE, EDIT, SHRINK, write_layout

pytestmark = pytest.mark.root

MAP = IdMap((IdRange(0, 100_000, 65536),), (IdRange(0, 200_000, 65536),))


def _owners(root: Path) -> set[tuple[int, int]]:
    paths = [root, *root.rglob("*")]
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in paths}


def test_a_store_maps_owners_there_and_back(driver_name: str, driver_root: Path, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "image", [BASE, EDIT, SHRINK])
    with (
        layerfs.open(driver_root / "mapped", driver=driver_name, id_map=MAP) as mapped,
        layerfs.open(driver_root / "plain", driver=driver_name) as plain,
    ):
        committed = []
        for store, uid, gid in ((mapped, 100_005, 200_006), (plain, 5, 6)):
            store.import_image(layout)
            clone = store.clone("test:1", "web")
            with clone.mounted() as root:
                assert _owners(root) == {(uid - 5, gid - 6)}
                (root / "etc/new").write_text("new")
                os.chown(root / "etc/new", uid, gid)
                for path in (root / "etc/new", root / "etc"):
                    os.utime(path, ns=(1, 1))
            committed.append(clone.commit("test:2"))
            clone.remove()
        assert committed[0].config.diff_ids == committed[1].config.diff_ids
        with mapped.clone("test:2") as clone, clone.mounted() as root:
            status = (root / "etc/new").stat()
            assert (status.st_uid, status.st_gid) == (100_005, 200_006)
        with mapped.clone("test:1", "host") as clone:
            with clone.mounted() as root:
                (root / "etc/new").write_text("by the host's root")
            with pytest.raises(layerfs.FailedPrecondition, match="user id 0"):
                clone.commit("test:3")
        invariants.check_store(mapped)


def test_a_store_keeps_its_map(fresh_dir: Path) -> None:
    place = fresh_dir / "store"
    layerfs.open(place, driver="overlay2", id_map=MAP).close()
    with layerfs.open(place) as store:
        assert store.id_map == MAP
    with layerfs.open(place, id_map=MAP) as store:
        assert store.id_map == MAP
    with pytest.raises(layerfs.FailedPrecondition, match="another id map"):
        layerfs.open(place, id_map=IdMap((IdRange(0, 5, 1),), (IdRange(0, 5, 1),)))
    layerfs.open(fresh_dir / "plain", driver="overlay2").close()
    with pytest.raises(layerfs.FailedPrecondition, match="another id map"):
        layerfs.open(fresh_dir / "plain", id_map=MAP)
    with pytest.raises(layerfs.InvalidArgument, match="no root"):
        layerfs.open(fresh_dir / "new", driver="copy", id_map=IdMap((), ()))
    assert not (fresh_dir / "new").exists()


def test_limits_bound_an_import(driver_name: str, driver_root: Path, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "image", [BASE, EDIT])
    with layerfs.open(driver_root / "store", driver=driver_name) as store:
        with pytest.raises(LimitExceeded, match="file_bytes=1000") as caught:
            store.import_image(layout, limits=Limits(file_bytes=1000))
        assert "--limit file_bytes=" in (caught.value.hint or "")
        assert store.images() == ()
        assert list(store.driver.ids()) == []
        assert list(store.blobs.digests()) == []
        store.import_image(layout, limits=Limits(file_bytes=100_000))
        shutil.rmtree(layout)
