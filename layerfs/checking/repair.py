"""Mend what a check found: from blobs, from a registry, or by clearing away; and say what is lost where nothing can."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from stat import S_IMODE

from layerfs.checking.aside import aside
from layerfs.checking.deep import DeepCheck, known_layers
from layerfs.checking.examine import examine
from layerfs.checking.fast import Check
from layerfs.checking.mending import forget_snapshot, mend_rows, restore_rows
from layerfs.checking.places import STORE_MODE
from layerfs.checking.problem import Problem, ProblemKind
from layerfs.checking.replacing import unpack_anew
from layerfs.checking.supply import Supply
from layerfs.contract import KeepsIndex
from layerfs.errors import LayerfsError, NotFound, os_error
from layerfs.events import Listener, ignore
from layerfs.kernel import mounting
from layerfs.layer.digest import Digest
from layerfs.metadata import record
from layerfs.parts import Parts
from layerfs.registry.options import Options
from layerfs.tree import LOST


class Outcome(StrEnum):
    """What becomes, or became, of a problem."""

    PLANNED = "planned"
    MENDED = "mended"
    FAILED = "failed"
    """It could be mended, and was not: the words say why."""
    LOST = "lost"
    """Nothing here can mend it: the words say what is lost."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """One problem, what is done about it or what is lost by it, and what came of it."""

    problem: Problem
    words: str
    outcome: Outcome


_ORDER = (
    ProblemKind.MODE,
    ProblemKind.MOUNT,
    ProblemKind.ROWS,
    ProblemKind.BLOB,
    ProblemKind.SNAPSHOT,
    ProblemKind.CONTENT,
    ProblemKind.INDEX,
    ProblemKind.FOREIGN,
    ProblemKind.LEFTOVER,
    ProblemKind.ORPHAN,
    ProblemKind.UNCHECKED,
    ProblemKind.DATABASE,
    ProblemKind.DRIVER,
)
"""Which comes first: blobs before what is unpacked from them, rows before bytes that no row names are deleted."""

_ROUNDS = 3
"""How often to look again: a damaged blob hides a damaged layer, and a damaged layer one that stands on it."""
_NOTHING = "nothing here can mend it"


class Repair:
    """Plan remedies and carry them out."""

    def __init__(self, parts: Parts, supply: Supply, listener: Listener = ignore) -> None:
        self._parts = parts
        self._supply = supply
        self._listener = listener
        self._known = known_layers(parts)
        self._done: dict[tuple[ProblemKind, str], Remedy] = {}
        self._is_restored = False
        self._ways: Mapping[ProblemKind, tuple[Callable[[Problem], str], Callable[[Problem], None]]] = {
            ProblemKind.MODE: (lambda _: "take the permission away", self._close),
            ProblemKind.MOUNT: (lambda _: "unmount it", self._unmount),
            ProblemKind.ROWS: (lambda _: "put the rows back", self._put_rows_back),
            ProblemKind.BLOB: (self._plan_blob, self._fetch),
            ProblemKind.SNAPSHOT: (self._plan_layer, self._unpack),
            ProblemKind.CONTENT: (self._plan_layer, self._unpack),
            ProblemKind.INDEX: (lambda _: "make the index again", self._renew),
            ProblemKind.FOREIGN: (lambda _: f"move it to {self._parts.path / LOST}", self._put_aside),
            ProblemKind.LEFTOVER: (lambda _: "remove it", self._remove),
            ProblemKind.ORPHAN: (lambda _: "delete the bytes", lambda _: self._delete_orphans()),
            ProblemKind.UNCHECKED: (lambda _: "look again when all else is mended", lambda _: None),
        }

    def plan(self, problems: Iterable[Problem]) -> tuple[Remedy, ...]:
        """Return what would be done, in the order in which it would be; nothing is changed."""
        return tuple(self._planned(problem) for problem in self._sorted(problems))

    def run(self, problems: Iterable[Problem]) -> tuple[Remedy, ...]:
        """Mend what can be mended, and return what came of each problem; wait for those who work with the store."""
        wanted = self._sorted(problems)
        with self._parts.working():  # a blob is only added, so others may go on meanwhile
            for problem in wanted:
                if problem.kind is ProblemKind.BLOB:
                    self._mend(problem)
        with self._parts.alone(wait=True):
            return tuple(self._mend(problem) for problem in wanted)

    def _sorted(self, problems: Iterable[Problem]) -> list[Problem]:
        """Return the problems in the order in which they are mended, of layers the lower ones first."""

        def key(problem: Problem) -> tuple[int, int]:
            known = self._known.get(problem.name)
            depth = known.chains.index(known.layer.chain) if known else 0
            kind = ProblemKind.CONTENT if problem.kind is ProblemKind.SNAPSHOT else problem.kind
            return _ORDER.index(kind), depth

        return sorted(problems, key=key)

    def _planned(self, problem: Problem) -> Remedy:
        way = self._ways.get(problem.kind)
        if way is None:
            return Remedy(problem, problem.hint or _NOTHING, Outcome.LOST)
        words = way[0](problem)
        return Remedy(problem, words or self._loss(problem), Outcome.PLANNED if words else Outcome.LOST)

    def _mend(self, problem: Problem) -> Remedy:
        """Do what is to be done, once for all problems of one thing."""
        kind = ProblemKind.CONTENT if problem.kind is ProblemKind.SNAPSHOT else problem.kind
        before = self._done.get((kind, problem.name))
        if before is not None:
            return Remedy(problem, before.words, before.outcome)
        remedy = self._planned(problem)
        if remedy.outcome is Outcome.PLANNED:
            try:
                self._ways[problem.kind][1](problem)
                remedy = Remedy(problem, remedy.words, Outcome.MENDED)
            except (LayerfsError, OSError) as raised:
                error = os_error(remedy.words, raised) if isinstance(raised, OSError) else raised
                words = f"{remedy.words}: {error.message}" + (f" ({error.hint})" if error.hint else "")
                remedy = Remedy(problem, words, Outcome.FAILED)
        self._done[kind, problem.name] = remedy
        return remedy

    def _loss(self, problem: Problem) -> str:
        """Say what is lost by what nothing can mend."""
        if problem.kind is ProblemKind.BLOB:
            return "no registry was asked for it, and no file (`--from`): what is unpacked of it still works"
        whom = ", ".join(problem.hurts) or problem.name
        return f"nothing else holds what it held: {whom} must go on without it, or be removed"

    # -- layers and blobs ----------------------------------------------------------------------------------------------

    def _plan_layer(self, problem: Problem) -> str:
        if problem.name in self._known:
            return "unpack the layer again from its blob"
        return "remove it from the database, which forgot that it was removed" if self._was_removed(problem) else ""

    def _was_removed(self, problem: Problem) -> bool:
        """Tell whether nothing is there of a snapshot because it was removed, as the record has it."""
        rows = record.read(self._parts.database.record)
        named = rows and any(row.get("name") == problem.name for row in rows["snapshots"].values())
        return problem.kind is ProblemKind.SNAPSHOT and rows is not None and not named

    def _unpack(self, problem: Problem) -> None:
        if problem.name not in self._known:
            forget_snapshot(self._parts, problem.name)
            return
        unpack_anew(self._parts, self._known[problem.name], self._listener)

    def _renew(self, problem: Problem) -> None:
        driver = self._parts.driver
        if isinstance(driver, KeepsIndex):
            driver.renew_index(self._parts.snapshotter.snapshot(problem.name))

    def _plan_blob(self, problem: Problem) -> str:
        places = self._supply.places(problem.name)
        return f"bring it again from {', '.join(places)}" if places else ""

    def _fetch(self, problem: Problem) -> None:
        self._supply.bring(Digest(problem.name))

    # -- what is in the way --------------------------------------------------------------------------------------------

    def _put_rows_back(self, problem: Problem) -> None:
        if not self._is_restored:  # all of the record is read for it, so once for all that is lost
            restore_rows(self._parts)
            self._is_restored = True
        mend_rows(self._parts, problem)

    def _close(self, problem: Problem) -> None:
        path = Path(problem.name)
        mode = S_IMODE(path.stat().st_mode)
        path.chmod(STORE_MODE if path == self._parts.path else mode & ~0o022)

    def _unmount(self, problem: Problem) -> None:
        mounting.unmount(Path(problem.name), lazy=True)

    def _put_aside(self, problem: Problem) -> None:
        """Move what is not ours out of the way, where its owner finds it."""
        path = Path(problem.name)
        lost = self._parts.path / LOST
        lost.mkdir(mode=0o700, exist_ok=True)
        aside(path, lost, path.name)

    def _remove(self, problem: Problem) -> None:
        if problem.name.startswith("/"):
            self._parts.blobs.cleanup()
            return
        with suppress(NotFound):
            self._parts.snapshotter.remove(problem.name)

    def _delete_orphans(self) -> None:
        self._parts.snapshotter.cleanup()


def repair(
    parts: Parts,
    clock: Callable[[], int],
    *,
    deep: bool,
    force: bool,
    options: Options | None,
    files: Sequence[Path] = (),
    listener: Listener = ignore,
) -> tuple[Remedy, ...]:
    """Mend what a check finds, or only plan it (`layerfs.store.Store.repair`).

    What was mended is looked at again, and so is what could not be looked at before that.
    """
    since = clock()
    supply = Supply(parts, options, files, listener)
    if not force:
        return Repair(parts, supply, listener).plan(examine(parts, clock, deep=deep, listener=listener))
    # Before anything is made, which might get the number of what only the record knows.
    rows = [problem for problem in Check(parts).run() if problem.kind is ProblemKind.ROWS]
    remedies = list(Repair(parts, supply, listener).run(rows)) if rows else []
    problems = examine(parts, clock, deep=deep, listener=listener)
    for _ in range(_ROUNDS):
        if not problems:
            break
        remedies += Repair(parts, supply, listener).run(problems)
        left = Check(parts).run(deep=deep)
        if deep:
            left = (*left, *DeepCheck(parts, clock, since=since, listener=listener).run())
        hopeless = {(each.problem.name, each.problem.kind) for each in remedies if each.outcome is not Outcome.MENDED}
        problems = tuple(problem for problem in left if (problem.name, problem.kind) not in hopeless)
    return (*remedies, *(Remedy(problem, "it is still wrong", Outcome.FAILED) for problem in problems))
