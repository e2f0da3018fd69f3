"""Compare a snapshotter over a driver with the model in memory, through random histories (Hypothesis).

`check_against_model` is what the contract calls. A history that fails is shrunk to the shortest one that fails.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from stat import S_IMODE, S_ISDIR, S_ISLNK

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from layerfs.contract import Kind
from layerfs.errors import LayerfsError
from layerfs.kernel.mounting import mounted
from layerfs.snapshotter import Snapshotter
from layerfs.testing import model
from layerfs.testing.model import Model, Node, NodeKind, Operation, Refused, Tree
from layerfs.testing.trees import describe

Workplace = Callable[[], AbstractContextManager[Callable[[], Snapshotter]]]
"""Give, for one history, a function that opens a snapshotter on a store that is empty at first."""

_NAMES = st.sampled_from(["one", "two", "three", "four/with/slashes", "five", "six"])
_PARENTS = st.one_of(st.just(""), _NAMES)
_LABELS = st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["", "x"]), max_size=2)
_TEXTS = st.builds(str.__mul__, st.sampled_from(["x", "text"]), st.sampled_from([0, 1, 5000]))
_TARGETS = st.sampled_from(["a", "../b", "/c", "nowhere"])
_MODES = st.sampled_from([0o600, 0o755, 0o4711, 0o1777])


@st.composite
def operations(draw: st.DrawFn, tree: Tree) -> Operation:
    """Draw an operation that this tree most likely allows: on a name that is there, or a new one in a directory."""
    directories = ["", *(path for path, node in sorted(tree.items()) if node.kind is NodeKind.DIRECTORY)]
    new = st.builds(_join, st.sampled_from(directories), st.sampled_from(["a", "b", "c"]))
    there = st.sampled_from(sorted(tree)) if tree else new
    choices: list[st.SearchStrategy[Operation]] = [
        st.builds(model.Write, new, _TEXTS),
        st.builds(model.Append, there, _TEXTS),
        st.builds(model.MakeDirectory, new),
        st.builds(model.MakeLink, new, _TARGETS),
        st.builds(model.Delete, there),
        st.builds(model.Rename, there, new),
        st.builds(model.Rename, there, there),
        st.builds(model.ChangeMode, there, _MODES),
    ]
    return draw(st.one_of(choices))


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name


def check_against_model(workplace: Workplace, *, histories: int = 40, steps: int = 40) -> None:
    """Run random histories of at most ``steps`` steps on the snapshotter and on the model, and compare after each.

    The histories are the same every time: a test must not pass today and fail tomorrow.
    """

    class Machine(SnapshotterMachine):
        def __init__(self) -> None:
            super().__init__(workplace)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=histories,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
        ),
    )


class SnapshotterMachine(RuleBasedStateMachine):
    """Random verbs and file operations, on both; the outcomes and the trees must be the same."""

    def __init__(self, workplace: Workplace) -> None:
        super().__init__()
        self._place = workplace()
        self._open = self._place.__enter__()
        self._real = self._open()
        self._model = Model()

    def teardown(self) -> None:
        """Close the store; the place removes it."""
        self._real.close()
        self._place.__exit__(None, None, None)

    # Verbs

    @rule(key=_NAMES, parent=_PARENTS, labels=_LABELS)
    def prepare(self, key: str, parent: str, labels: dict[str, str]) -> None:
        """Make an active snapshot."""
        self._both(
            lambda: self._model.make(Kind.ACTIVE, key, parent, labels),
            lambda: self._real.prepare(key, parent, labels=labels),
        )

    @rule(key=_NAMES, parent=_PARENTS, labels=_LABELS)
    def view(self, key: str, parent: str, labels: dict[str, str]) -> None:
        """Make a view."""
        self._both(
            lambda: self._model.make(Kind.VIEW, key, parent, labels),
            lambda: self._real.view(key, parent, labels=labels),
        )

    @rule(name=_NAMES, key=_NAMES, labels=_LABELS)
    def commit(self, name: str, key: str, labels: dict[str, str]) -> None:
        """Commit, most often what cannot be."""
        self._both(lambda: self._model.commit(name, key, labels), lambda: self._real.commit(name, key, labels=labels))

    @rule(name=_NAMES, key=_NAMES)
    def checkpoint(self, name: str, key: str) -> None:
        """Commit and go on."""
        self._both(lambda: self._model.checkpoint(name, key), lambda: self._real.checkpoint(name, key))

    @rule(key=_NAMES, parent=_PARENTS)
    def reset(self, key: str, parent: str) -> None:
        """Start an active snapshot anew."""
        self._both(lambda: self._model.reset(key, parent), lambda: self._real.reset(key, parent))

    @rule(key=_NAMES)
    def remove(self, key: str) -> None:
        """Remove a snapshot."""
        self._both(lambda: self._model.remove(key), lambda: self._real.remove(key))

    @rule(key=_NAMES, labels=_LABELS)
    def update(self, key: str, labels: dict[str, str]) -> None:
        """Replace the labels."""
        if key in self._model.snapshots:
            self._model.set_labels(key, labels)
            self._real.update(replace(self._real.stat(key), labels=labels))

    @rule()
    def reopen(self) -> None:
        """Close the store and open it again."""
        self._real.close()
        self._real = self._open()

    @rule()
    def cleanup(self) -> None:
        """Find nothing to reclaim."""
        assert self._real.cleanup() == ()

    # Files

    @rule(data=st.data(), count=st.integers(1, 10))
    def change(self, data: st.DataObject, count: int) -> None:
        """Change an active snapshot through its mount, if there is one."""
        keys = self._of_kind(Kind.ACTIVE)
        if keys:
            self._change(data, data.draw(st.sampled_from(keys), label="key"), count)

    @rule(data=st.data(), count=st.integers(1, 10))
    def build(self, data: st.DataObject, count: int) -> None:
        """Add a layer to one that is there: the step that makes chains grow, which single verbs seldom do."""
        free = sorted({"one", "two", "three", "five", "six", "layer"} - set(self._model.snapshots))
        if not free:
            return
        parent = data.draw(st.sampled_from(["", *self._of_kind(Kind.COMMITTED)]), label="parent")
        name = data.draw(st.sampled_from(free), label="name")
        self.prepare("being built", parent, {})
        self._change(data, "being built", count)
        self.commit(name, "being built", {})

    @rule(key=_NAMES)
    def look(self, key: str) -> None:
        """Compare what a snapshot shows: one that is committed through a view."""
        found = self._model.snapshots.get(key)
        if found is None:
            return
        with self._shown(key, found.kind) as path:
            assert observed(path) == found.tree

    # What always holds

    @invariant()
    def has_the_same_snapshots(self) -> None:
        """Names, kinds, parents and labels are those of the model."""
        found = {info.name: (info.kind, info.parent, dict(info.labels)) for info in self._real.infos()}
        assert found == {key: (its.kind, its.parent, its.labels) for key, its in self._model.snapshots.items()}

    @invariant()
    def holds_the_same_bytes(self) -> None:
        """Each snapshot has one id in the driver, and nothing else has."""
        assert len(set(self._real.driver.ids())) == len(self._model.snapshots)

    def _of_kind(self, kind: Kind) -> list[str]:
        return sorted(key for key, found in self._model.snapshots.items() if found.kind is kind)

    def _change(self, data: st.DataObject, key: str, count: int) -> None:
        tree = self._model.snapshots[key].tree
        with mounted(self._real.mounts(key)) as path:
            for _ in range(count):
                operation = data.draw(operations(tree), label="operation")
                try:
                    operation.apply(tree)
                except Refused:
                    continue
                perform(operation, path)
            assert observed(path) == tree

    @contextmanager
    def _shown(self, key: str, kind: Kind) -> Iterator[Path]:
        if kind is not Kind.COMMITTED:
            with mounted(self._real.mounts(key)) as path:
                yield path
            return
        self._real.view("to look at", key)
        with mounted(self._real.mounts("to look at")) as path:
            yield path
        self._real.remove("to look at")

    def _both(self, expected: Callable[[], object], actual: Callable[[], object]) -> None:
        outcomes = [_outcome(expected), _outcome(actual)]
        assert outcomes[0] == outcomes[1]


def _outcome(call: Callable[[], object]) -> type[LayerfsError] | None:
    try:
        call()
    except LayerfsError as error:
        return type(error)
    return None


def observed(root: Path) -> Tree:
    """Return the tree of a directory as the model would have it."""
    found: Tree = {}
    for path, entry in describe(root).items():
        if path == b".":
            continue
        if S_ISLNK(entry.mode):
            node = Node(NodeKind.LINK, 0, entry.data.decode())
        elif S_ISDIR(entry.mode):
            node = Node(NodeKind.DIRECTORY, S_IMODE(entry.mode))
        else:
            node = Node(NodeKind.FILE, S_IMODE(entry.mode), entry.data.decode())
        found[path.decode()] = node
    return found


def perform(operation: Operation, root: Path) -> None:
    """Do on a mount what the model did in memory; modes are set after creation, whatever the umask."""
    path = root / operation.path
    match operation:
        case model.Write(data=data):
            fresh = not path.exists()
            path.write_text(data, encoding="ascii")
            if fresh:
                path.chmod(0o644)
        case model.Append(data=data):
            with open(path, "a", encoding="ascii") as file:
                file.write(data)
        case model.MakeDirectory():
            path.mkdir()
            path.chmod(0o755)
        case model.MakeLink(target=target):
            path.symlink_to(target)
        case model.Delete():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        case model.Rename(target=target):
            _move(path, root / target)
        case model.ChangeMode(mode=mode):
            path.chmod(mode)


def _move(path: Path, target: Path) -> None:
    try:
        os.rename(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # a directory of a lower layer, which mv(1) copies
            raise
        shutil.copytree(path, target, symlinks=True)
        shutil.rmtree(path)
