"""What holds of a snapshotter over any driver: containerd's contract, every row of its table of errors.

Source: containerd ``core/snapshots/snapshotter.go``, and the cases of ``core/snapshots/testsuite``.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from functools import partial
from typing import cast

import pytest

from layerfs.contract import Driver, Info, Kind, Snapshot, SnapshotId, Usage
from layerfs.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NoSpace, NotFound, Unsupported
from layerfs.testing.fixtures import Bench, DriverFixtures
from layerfs.testing.trees import contents, write


class FullDisk:
    """A driver one verb of which finds the disk full."""

    def __init__(self, driver: Driver, verb: str) -> None:
        self._driver = driver
        self._verb = verb

    def __getattr__(self, name: str) -> object:
        return self._fail if name == self._verb else getattr(self._driver, name)

    def _fail(self, _snapshot: Snapshot) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class SnapshotterRules(DriverFixtures):
    """Tests of `layerfs.snapshotter.Snapshotter` that every driver must let pass."""

    # Kinds and parents

    def test_layers_build_on_each_other(self, bench: Bench) -> None:
        """Each layer shows its parents' changes (Basic, Transitivity)."""
        with bench.layer("first") as path:
            write(path, foo="foo\n", a__b="b")
        with bench.layer("second", "first") as path:
            write(path, bar="bar\n", foo="changed\n")
            assert contents(path) == {"a": "/", "a/b": "b", "foo": "changed\n", "bar": "bar\n"}
        bench.snapshotter.prepare("top", "second")
        with bench.mounted("top") as path:
            assert contents(path) == {"a": "/", "a/b": "b", "foo": "changed\n", "bar": "bar\n"}
        with bench.viewed("first") as path:
            assert contents(path) == {"a": "/", "a/b": "b", "foo": "foo\n"}

    def test_stat_tells_kind_and_parent(self, bench: Bench) -> None:
        """Stat of active, view and committed snapshots (StatActive, StatCommitted)."""
        with bench.layer("base"):
            pass
        bench.snapshotter.prepare("active", "base", labels={"a": "1"})
        bench.snapshotter.view("view", "base")
        expected = {"base": (Kind.COMMITTED, ""), "active": (Kind.ACTIVE, "base"), "view": (Kind.VIEW, "base")}
        for name, (kind, parent) in expected.items():
            info = bench.snapshotter.stat(name)
            assert (info.name, info.kind, info.parent) == (name, kind, parent)
            assert info.created.utcoffset() is not None
        assert bench.snapshotter.stat("active").labels == {"a": "1"}

    def test_mounts_are_repeatable(self, bench: Bench) -> None:
        """Prepare and view return what mounts returns again and again."""
        with bench.layer("base"):
            pass
        for kind in (bench.snapshotter.prepare, bench.snapshotter.view):
            first = kind(f"key of {kind.__name__}", "base")
            assert bench.snapshotter.mounts(f"key of {kind.__name__}") == first
            assert bench.snapshotter.mounts(f"key of {kind.__name__}") == first

    def test_commit_replaces_the_key(self, bench: Bench) -> None:
        """After a commit the name is there, the key is not, and the labels are those of the commit."""
        bench.snapshotter.prepare("key", labels={"of": "the active one"})
        before = bench.snapshotter.stat("key").created
        bench.snapshotter.commit("name", "key", labels={"of": "the commit"})
        with pytest.raises(NotFound):
            bench.snapshotter.stat("key")
        info = bench.snapshotter.stat("name")
        assert dict(info.labels) == {"of": "the commit"}
        assert info.created >= before
        bench.snapshotter.prepare("key", "name")

    def test_commit_freezes_usage(self, bench: Bench) -> None:
        """The usage of a committed snapshot is measured once, without its parents."""
        with bench.layer("base") as path:
            write(path, data="x" * (1 << 20))
        frozen = bench.snapshotter.usage("base")
        assert frozen.size >= 1 << 20
        with bench.layer("child", "base") as path:
            write(path, other="y" * (1 << 20))
        assert bench.snapshotter.usage("base") == frozen
        assert bench.snapshotter.usage("child").size >= 1 << 20
        bench.snapshotter.prepare("growing", "child")
        before = bench.snapshotter.usage("growing")
        with bench.mounted("growing") as path:
            write(path, more="z" * (1 << 20))
        after = bench.snapshotter.usage("growing")
        assert isinstance(after, Usage)
        assert after.size - before.size >= 1 << 20

    # The table of errors

    @pytest.mark.parametrize("verb", ["stat", "mounts", "usage", "remove", "snapshot"])
    def test_missing_key(self, bench: Bench, verb: str) -> None:
        """Every verb says NotFound for what is not there."""
        with pytest.raises(NotFound, match="missing"):
            getattr(bench.snapshotter, verb)("missing")

    def test_commit_and_update_of_a_missing_key(self, bench: Bench) -> None:
        """So do commit and update."""
        with pytest.raises(NotFound):
            bench.snapshotter.commit("name", "missing")
        bench.snapshotter.prepare("there")
        with pytest.raises(NotFound):
            bench.snapshotter.update(replace(bench.snapshotter.stat("there"), name="missing"))

    def test_names_in_use(self, bench: Bench) -> None:
        """Keys and names are one space."""
        with bench.layer("committed"):
            pass
        bench.snapshotter.prepare("active", "committed")
        bench.snapshotter.view("view", "committed")
        for name in ("committed", "active", "view"):
            for kind in (bench.snapshotter.prepare, bench.snapshotter.view):
                with pytest.raises(AlreadyExists):
                    kind(name, "committed")
        bench.snapshotter.prepare("another")
        for name in ("committed", "active", "view"):
            with pytest.raises(AlreadyExists):
                bench.snapshotter.commit(name, "another")
        assert bench.snapshotter.stat("another").kind is Kind.ACTIVE

    def test_parent_missing_or_not_committed(self, bench: Bench) -> None:
        """A parent must be there and committed (PrepareViewFailing); nothing is left of the try."""
        bench.snapshotter.prepare("active")
        bench.snapshotter.view("view")
        for kind in (bench.snapshotter.prepare, bench.snapshotter.view):
            with pytest.raises(NotFound):
                kind("new", "missing")
            for parent in ("active", "view"):
                with pytest.raises(InvalidArgument):
                    kind("new", parent)
        assert [info.name for info in bench.snapshotter.infos()] == ["active", "view"]

    def test_mounts_of_a_committed_snapshot(self, bench: Bench) -> None:
        """What is committed has no mounts."""
        with bench.layer("base"):
            pass
        with pytest.raises(FailedPrecondition):
            bench.snapshotter.mounts("base")

    def test_commit_of_a_view_or_a_committed_snapshot(self, bench: Bench) -> None:
        """Only active snapshots are committed."""
        with bench.layer("base"):
            pass
        bench.snapshotter.view("view", "base")
        for key in ("base", "view"):
            with pytest.raises(FailedPrecondition):
                bench.snapshotter.commit("name", key)
        with pytest.raises(NotFound):
            bench.snapshotter.stat("name")

    def test_remove_with_children(self, bench: Bench) -> None:
        """A parent stays until its children are gone, and the message says "remove" (RemoveIntermediateSnapshot)."""
        with bench.layer("base"):
            pass
        with bench.layer("middle", "base"):
            pass
        bench.snapshotter.prepare("top", "middle")
        for name in ("base", "middle"):
            with pytest.raises(FailedPrecondition, match="remove"):
                bench.snapshotter.remove(name)
        for name in ("top", "middle", "base"):
            bench.snapshotter.remove(name)
        assert bench.snapshotter.infos() == []

    def test_remove_twice(self, bench: Bench) -> None:
        """What is removed is not there any more."""
        bench.snapshotter.prepare("key")
        bench.snapshotter.remove("key")
        with pytest.raises(NotFound):
            bench.snapshotter.remove("key")

    @pytest.mark.parametrize("name", ["", "nul\0inside"])
    def test_names_that_cannot_be(self, bench: Bench, name: str) -> None:
        """An empty name would be "no parent"."""
        with pytest.raises(InvalidArgument):
            bench.snapshotter.prepare(name)
        bench.snapshotter.prepare("key")
        with pytest.raises(InvalidArgument):
            bench.snapshotter.commit(name, "key")

    def test_long_keys_with_slashes(self, bench: Bench) -> None:
        """A key is no file name."""
        keys = ["k8s.io/15/sha256:" + "ab/" * 1000, "../../../etc/passwd", "..", "clé \u2603 \n", "-rf"]
        for key in keys:
            bench.snapshotter.prepare(key)
            with bench.mounted(key) as path:
                write(path, f="x")
            bench.snapshotter.commit(f"{key} (committed)", key)
        assert [info.name for info in bench.snapshotter.infos()] == sorted(f"{key} (committed)" for key in keys)

    # Rebase

    def test_rebase(self, bench: Bench) -> None:
        """A layer made without a parent gets it at commit, where the driver can (containerd: Rebase)."""
        with bench.layer("base") as path:
            write(path, below="below")
        bench.snapshotter.prepare("key")
        with bench.mounted("key") as path:
            write(path, above="above")
        if not bench.snapshotter.driver.traits.rebase:
            with pytest.raises(Unsupported):
                bench.snapshotter.commit("name", "key", parent="base")
            assert bench.snapshotter.stat("key").parent == ""
            return
        bench.snapshotter.commit("name", "key", parent="base")
        assert bench.snapshotter.stat("name").parent == "base"
        with bench.viewed("name") as path:
            assert contents(path) == {"below": "below", "above": "above"}

    def test_rebase_to_what_cannot_be(self, bench: Bench) -> None:
        """A parent, once there, does not change; a new one must be there and committed."""
        for name in ("base", "other"):
            with bench.layer(name):
                pass
        bench.snapshotter.prepare("active")
        bench.snapshotter.prepare("child", "base")
        with pytest.raises(InvalidArgument):
            bench.snapshotter.commit("name", "child", parent="other")
        bench.snapshotter.prepare("parentless")
        for parent, error in (("missing", NotFound), ("active", FailedPrecondition)):
            with pytest.raises(error):
                bench.snapshotter.commit("name", "parentless", parent=parent)
        bench.snapshotter.commit("name", "child", parent="base")
        bench.snapshotter.commit("another", "parentless", parent="")

    # Labels

    def test_update_replaces_all_labels(self, bench: Bench) -> None:
        """Without field paths, or with "labels", labels become those given."""
        bench.snapshotter.prepare("key", labels={"a": "1", "b": "2"})
        info = bench.snapshotter.stat("key")
        for paths in ((), ("labels",)):
            updated = bench.snapshotter.update(replace(info, labels={"c": str(len(paths))}), *paths)
            assert dict(updated.labels) == {"c": str(len(paths))}
            assert updated.updated >= info.updated
            assert bench.snapshotter.stat("key") == updated

    def test_update_of_single_labels(self, bench: Bench) -> None:
        """With "labels.KEY" only that one is set, or removed if it is not given; keys may hold dots."""
        bench.snapshotter.prepare("key", labels={"a": "1", "b": "2", "containerd.io/gc.root": "x"})
        info = replace(bench.snapshotter.stat("key"), labels={"b": "3", "d": "4"})
        updated = bench.snapshotter.update(info, "labels.b", "labels.containerd.io/gc.root")
        assert dict(updated.labels) == {"a": "1", "b": "3"}

    @pytest.mark.parametrize("path", ["kind", "parent", "name", "created", "label", ""])
    def test_update_of_other_fields(self, bench: Bench, path: str) -> None:
        """Nothing but labels can be updated, and a refused update changes nothing."""
        bench.snapshotter.prepare("key", labels={"a": "1"})
        info = bench.snapshotter.stat("key")
        with pytest.raises(InvalidArgument):
            bench.snapshotter.update(replace(info, labels={"a": "2"}), "labels", path)
        assert bench.snapshotter.stat("key") == info

    def test_update_of_a_committed_snapshot(self, bench: Bench) -> None:
        """Labels of what is immutable may change all the same."""
        with bench.layer("base"):
            pass
        bench.snapshotter.update(replace(bench.snapshotter.stat("base"), labels={"a": "1"}))
        assert dict(bench.snapshotter.stat("base").labels) == {"a": "1"}

    def test_label_limit(self, bench: Bench) -> None:
        """Key and value have 4,096 bytes together; one more is refused, and nothing is made."""
        bench.snapshotter.prepare("key", labels={"k" * 96: "v" * 4000})
        with pytest.raises(InvalidArgument):
            bench.snapshotter.prepare("other", labels={"k" * 96: "v" * 4001})
        assert [info.name for info in bench.snapshotter.infos()] == ["key"]

    # Walk

    def test_walk_with_filters(self, bench: Bench) -> None:
        """Filters are those of containerd; of several, one is enough."""
        with bench.layer("base"):
            pass
        bench.snapshotter.prepare("one", "base", labels={"app/role": "db", "n": "1"})
        bench.snapshotter.view("two", "base", labels={"app/role": "web"})
        cases: dict[tuple[str, ...], list[str]] = {
            (): ["base", "one", "two"],
            ("kind==active",): ["one"],
            ("kind==committed", "kind==view"): ["base", "two"],
            ("parent==base",): ["one", "two"],
            ("parent==base,kind==view",): ["two"],
            ('labels."app/role"',): ["one", "two"],
            ('labels."app/role"==db',): ["one"],
            ('labels."app/role"!=db',): ["base", "two"],
            ("name~=^t",): ["two"],
            ("name==nobody",): [],
        }
        for filters, expected in cases.items():
            seen: list[Info] = []
            bench.snapshotter.walk(seen.append, *filters)
            assert sorted(info.name for info in seen) == expected, filters

    def test_walk_with_a_bad_filter(self, bench: Bench) -> None:
        """A filter that cannot be read is refused."""
        with pytest.raises(InvalidArgument):
            bench.snapshotter.walk(lambda _info: None, "kind=")

    def test_stat_inside_walk(self, bench: Bench) -> None:
        """Every verb may be called while walking (StatInWalk); an exception ends the walk and reaches the caller."""
        for key in ("a", "b", "c"):
            bench.snapshotter.prepare(key)

        def visit(info: Info) -> None:
            assert bench.snapshotter.stat(info.name) == info
            bench.snapshotter.usage(info.name)
            bench.snapshotter.remove(info.name)

        bench.snapshotter.walk(visit)
        assert bench.snapshotter.infos() == []
        bench.snapshotter.prepare("d")
        with pytest.raises(NotFound, match="missing"):
            bench.snapshotter.walk(lambda _info: bench.snapshotter.remove("missing"))

    # Checkpoint, reset, cleanup, close

    def test_checkpoint_and_reset(self, bench: Bench) -> None:
        """A checkpoint freezes what is there and goes on; a reset goes back to it."""
        bench.snapshotter.prepare("key", labels={"kept": "yes"})
        with bench.mounted("key") as path:
            write(path, f="1")
        bench.snapshotter.checkpoint("point", "key")
        with bench.mounted("key") as path:
            assert contents(path) == {"f": "1"}
            write(path, f="2", g="2")
        assert bench.snapshotter.stat("key").parent == "point"
        with bench.viewed("point") as path:
            assert contents(path) == {"f": "1"}
        bench.snapshotter.reset("key", "point")
        with bench.mounted("key") as path:
            assert contents(path) == {"f": "1"}
        bench.snapshotter.reset("key", "")
        with bench.mounted("key") as path:
            assert contents(path) == {}
        assert dict(bench.snapshotter.stat("key").labels) == {"kept": "yes"}

    def test_cleanup_reclaims_orphans(self, bench: Bench) -> None:
        """Bytes without a row go, everything else stays."""
        with bench.layer("base") as path:
            write(path, f="x")
        bench.snapshotter.prepare("lost", "base")
        lost = bench.snapshotter.snapshot("lost")
        orphan = replace(lost, id=SnapshotId(lost.id + 1000))
        bench.snapshotter.driver.create(orphan)
        assert bench.snapshotter.cleanup() == (orphan.id,)
        assert bench.snapshotter.cleanup() == ()
        with bench.mounted("lost") as path:
            assert contents(path) == {"f": "x"}

    @pytest.mark.parametrize("verb", ["create", "mounts", "usage", "commit"])
    def test_failure_leaves_neither_row_nor_bytes(self, bench: Bench, verb: str) -> None:
        """When the driver fails, the snapshotter is as it was."""
        bench.snapshotter.prepare("key")
        before, driver = bench.snapshotter.infos(), bench.snapshotter.driver
        held = set(driver.ids())
        bench.snapshotter.holdings.driver = cast("Driver", FullDisk(driver, verb))
        verbs = {"create": bench.snapshotter.prepare, "mounts": bench.snapshotter.prepare}
        with pytest.raises(NoSpace, match="No space"):
            verbs.get(verb, partial(bench.snapshotter.commit, key="key"))("new")
        bench.snapshotter.holdings.driver = driver
        assert bench.snapshotter.infos() == before
        assert set(driver.ids()) == held
        with bench.mounted("key") as path:
            write(path, f="still writable")
        bench.snapshotter.commit("new", "key")

    def test_close_twice(self, bench: Bench) -> None:
        """Closing is idempotent (CloseTwice)."""
        bench.snapshotter.close()
        bench.snapshotter.close()
